"""The processes that train one run together: who they are, decisions that all of them share, and a
policy that FSDP2 has sharded among them.

`torchrun` and `accelerate launch` start one copy of the command per process and tell each its place
through the environment. The first process alone owns the run directory; whatever it reads or
decides there reaches the others through `decide`, its errors included, so that no process waits for
one that has given up.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError, LLDSError, RunError, one_line

T = TypeVar("T")
# How long a process waits for the slowest one, which may still be searching.
_PATIENCE = timedelta(minutes=30)
# How the communication libraries say that the other side is gone.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out", re.I)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    def decide(self, decision: Callable[[], T]) -> T:
        """Return what `decision` returns in the first process; raise what it raises there.

        Only an `LLDSError` is shared: anything else is a defect, which ends all processes anyway.
        """
        if self.count == 1:
            return decision()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = decision()
            except LLDSError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def check_world_size(config: ExperimentConfig) -> Processes:
    """Return the processes of this launch, in contact; they must be those of `config`."""
    here = Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if here.count != config.world_size:
        raise ConfigError(
            f"hardware.nodes={config.hardware.nodes} × hardware.processes="
            f"{config.hardware.processes} ask for {config.world_size} processes, but {here.count} "
            'run: start them with "python -m llds_core train", or set hardware.processes to what '
            "was launched"
        )
    if here.count > 1:
        sharding, has_gpu = config.hardware.sharding, torch.cuda.is_available()
        # What `accelerate launch` sets from its file; without, it would train unsharded silently.
        launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if sharding != "none" and not has_gpu:
            raise ConfigError(
                f"hardware.sharding={sharding} needs GPUs, and none is found: set "
                "hardware.sharding=none"
            )
        if sharding != "none" and not launched:
            raise ConfigError(
                f"hardware.sharding={sharding}, but the processes were launched without it: start "
                'them with "python -m llds_core train"'
            )
        PartialState(cpu=not has_gpu, timeout=_PATIENCE)
    return here


@contextmanager
def ending_together(processes: Processes) -> Iterator[None]:
    """Turn the end of another process into a `RunError` in this one.

    A process learns of it by a broken connection, or by the SIGTERM of the launcher, which would
    end it before the run directory says why.
    """
    if processes.count == 1:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _lost("the launcher stopped this one")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException as error:
        # This process ends by itself, once it has written why.
        before = signal.SIG_IGN
        ours = isinstance(error, LLDSError) or not isinstance(error, RuntimeError)
        if not ours and _LOST.search(str(error)):
            raise _lost(one_line(error)) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _lost(reason: str) -> RunError:
    return RunError(
        f"another process of this run has ended ({reason}): issue the same command again; the last "
        "checkpoint is intact"
    )


def reshard(policy: torch.nn.Module) -> None:
    """Shard again what a pass without gradients has left whole.

    accelerate keeps the last norm and the output matrix (tied: the embedding) gathered for a
    backward pass. TRL's push to vLLM fails on such weights, which mixed precision has rounded, too.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole_policy(policy: PreTrainedModel, copy: PreTrainedModel | None) -> PreTrainedModel:
    """Return `copy`, made when it is None, with the present weights of the sharded `policy`.

    All processes call it together, before each rollout.
    """
    if copy is None:
        copy = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
        copy.generation_config = policy.generation_config
        cast(Any, copy).to(policy.device)  # transformers loses the types of `to`
    present = dict(policy.named_parameters())
    for name, value in copy.named_parameters():
        value.copy_(cast(DTensor, present[name]).full_tensor())
    return copy


@torch.no_grad()
def copy_to_sharded(policy: PreTrainedModel, sharded: PreTrainedModel) -> None:
    """Give `sharded` the weights that the whole `policy` has in the first process.

    Only there has transformers read them, to save host memory. accelerate passes them on for the
    model that is trained, but TRL shards a reference policy as each process holds it.
    """
    present = dict(policy.named_parameters())
    for name, value in sharded.named_parameters():
        whole = present[name].detach().to(value.device)
        placed = cast(DTensor, value)
        value.copy_(distribute_tensor(whole, placed.device_mesh, placed.placements))
