"""Scripted trainers in one or several processes, and what they computed: gradients and metrics.

Children are forked from a server that has only imported the package. The environment gives them
their place, as `torchrun` would.
"""

import gc
import math
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rounding
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from scripted import build, largest_difference, policy, settings, trajectories, weights
from torch.distributed.tensor import DTensor
from trl.generation.vllm_generation import VLLMGeneration

from llds_core.__main__ import main
from llds_core.config import laid_over, load_experiment
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, LLDSError, TrainingDivergedError
from llds_core.losses import llds_penalty, penalty_tokens
from llds_core.rollout.loop import Rollout
from llds_core.runs.checkpoints import check_checkpoint, checkpoint_path
from llds_core.training.micro_batches import per_process
from llds_core.training.processes import Processes, check_world_size, ending_together
from llds_core.training.trainer import SearchGRPOTrainer

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["llds_core.training.experiment", "llds_core.training.trainer"])

_PENALTY = ("loss.llds_weight=1.5", "loss.answer_ramp=paper", "loss.answer_weight=0.5")
CASES: dict[str, tuple[str, ...]] = {
    "token-mean": ("loss.kl_weight=0.02", "loss.entropy_weight=0.01"),
    "batch-std": ("loss.advantage_std=batch", "loss.kl_weight=0.02", "loss.kl_clamp=0.0005"),
    "gspo": ("loss.aggregate=seq-mean-token-mean", "loss.ratio=sequence"),
    "constant": ("loss.aggregate=constant",),
    "batch-mean": ("loss.advantage_mean=batch", "loss.advantage_std=batch"),
    "by-tokens": (
        *("loss.aggregate=seq-mean-token-mean", "loss.entropy_weight=0.01", *_PENALTY),
        "training.max_tokens_per_micro_batch=90",
    ),
    "lp-reg": ("loss.lp_reg_weight=9", "loss.lp_reg_share=0.9", "loss.kl_weight=0"),
} | {
    f"{gate}-{normalizer}": (f"loss.gate={gate}", f"loss.normalizer={normalizer}", *_PENALTY)
    for gate, normalizer in (("action", "preserved"), ("response", "preserved"), ("token", "all"))
}
SHARDED = ("token-mean", "action-preserved", "by-tokens")
# Wall time, and how much padding the shares of a mini-batch need.
_OWN = {"padding", "rollout_seconds", "retrieval_seconds", "update_seconds", "trajectories"}
_OWN |= {"rollout_tokens_per_second", "update_tokens_per_second"}
# Rounding itself, or its exponential: what it may be for one token.
_OF_A_TOKEN = {"sampler_gap", "sampler_gap_max", "ratio_max", "ratio_min"}
_OF_A_RESPONSE = {"loglik_change_correct", "loglik_change_incorrect"}
# Means of many numbers. Everything else is counted, and equal.
_MEANS = {name for name in METRICS if name.startswith("loglik_")} - _OF_A_RESPONSE
_MEANS |= {"entropy", "kl", "hidden_similarity", "loss", "llds_penalty", "answer_weight"}
_MEANS |= {"lp_reg_penalty", "grad_norm", "grad_norm_max"}


def spawn(world: int, work: Callable, *arguments: Any) -> list[multiprocessing.Process]:
    """Start `work(*arguments)` in `world` processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {key: str(value) for key, value in place.items()} if world > 1 else {}
        process = _FORKED.Process(target=_run, args=(environment, work, arguments))
        process.start()
        started.append(process)
    return started


def command(words: Sequence[str], errors: Path) -> None:
    """To be spawned: `python -m llds_core` with `words`, its standard error in a file."""
    # Tests run in the background (`nohup … &`) hand down a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    raise SystemExit(main([*words, "--quiet"]))


def wait(processes: Sequence[multiprocessing.Process], seconds: float = 900) -> list[int | None]:
    """Exit codes; None for a process that had to be ended."""
    codes = []
    for process in processes:
        process.join(seconds)
        codes.append(process.exitcode)
        process.kill()
    return codes


def _run(environment: dict[str, str], work: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    try:
        work(*arguments)
    except LLDSError:
        traceback.print_exc()
        raise SystemExit(2) from None


def case_trainer(
    case: str,
    folder: Path,
    processes: Processes,
    *overrides: str,
    cls: type["WholeGradients"] | None = None,
) -> "WholeGradients":
    """A trainer of a case: two mini-batches of 8 trajectories an epoch, two epochs."""

    def rollout(mine: Sequence[dict], policy: torch.nn.Module, step: int) -> Rollout:
        share = slice(processes.rank * len(mine), (processes.rank + 1) * len(mine))
        trainer.sampled = largest_difference(start_weights(), policy.state_dict())
        if trainer.accelerator.is_fsdp2:
            trainer.pushed = largest_difference(pushed(trainer), dict(policy.named_parameters()))
        return Rollout(trajectories(step)[share], 0.5 + processes.rank, 0.1)

    values = ("training.steps=1", "training.micro_batch_size=2", *CASES[case])
    world = f"hardware.processes={processes.count}"
    # Where a gradient is mere rounding, Adam divides rounding by rounding.
    args = settings(folder, world, *laid_over(values, overrides), adam_epsilon=1e-5)
    trainer = build(args, cls or WholeGradients, rollout=rollout)
    return trainer


def compute(
    case: str, folder: Path, processes: Processes, *overrides: str, resume: int | None = None
) -> dict[str, Any]:
    """Train `case`, for one step unless overrides say more, or continue after step `resume`;
    `sampled` is how far the policy that sampled the last rollout was from the start policy.
    """
    start_weights()
    trainer = case_trainer(case, folder, processes, *overrides)
    trainer.train(str(checkpoint_path(folder, resume)) if resume is not None else None)
    return {
        "row": trainer.row,
        "gradients": trainer.gradients,
        "weights": {name: whole(value) for name, value in trainer.model.state_dict().items()},
        "sampled": trainer.sampled,
        "pushed": trainer.pushed,
        "scores": trainer.scores[0],
    }


def penalties(place: Processes) -> dict[tuple, tuple[torch.Tensor, torch.Tensor]]:
    """Penalty and gradient by gate and count, on every second of eight rows, or on all alone."""
    random = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 8, 12, generator=random, dtype=torch.float64)
    mask = (torch.rand(8, 12, generator=random) < 0.6).long()
    advantages = torch.tensor([1.0, 0, -1, 0.5, 0, -2, 0, 3])
    mine = slice(place.rank, None, place.count)
    accelerator = Accelerator(cpu=True)
    found = {}
    for gate, *counted in product(
        ("action", "response", "token"), ("preserved", "all"), ("nonnegative", "positive")
    ):
        logprobs = (new[mine] - 0.5).requires_grad_()
        batch = {"policy_mask": mask[mine], "group_advantages": advantages[mine]}
        tokens = penalty_tokens(*batch.values(), normalizer=counted[0], preserve=counted[1])
        value, _ = llds_penalty(
            *(logprobs, old[mine], *batch.values()),
            **{"gate": gate, "normalizer": counted[0], "preserve": counted[1]},
            denominator=per_process([tokens], accelerator),
        )
        found[gate, *counted] = value.detach(), *torch.autograd.grad(value, logprobs)
    return found


@cache
def start_weights() -> dict[str, torch.Tensor]:
    """Of the start policy. To be called before processes know of each other: transformers lets
    only one of them store a policy, and load one that is to be sharded.
    """
    return weights(policy())


class WholeGradients(SearchGRPOTrainer):
    """Keeps the gradient of each update and the row of the last step."""

    pushed: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.scores: list[torch.Tensor] = []
        super().__init__(*args, on_step=self._keep, **kwargs)

    def _keep(self, row: dict[str, Any], made: list[Any]) -> None:
        self.row = row | {"trajectories": len(made)}

    def _forward(self, model: Any, micro: dict[str, Any], *also: Any) -> Any:
        output = super()._forward(model, micro, *also)
        self.scores.append(output.log_probs.detach())
        return output

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        names = {name.removeprefix("module."): p for name, p in model.named_parameters()}
        self.gradients.append({name: whole(p.grad) for name, p in names.items()})
        return super()._clip_grad_norm(model)


def pushed(trainer: SearchGRPOTrainer) -> dict[str, torch.Tensor]:
    """The weights that TRL would give to vLLM now."""
    here = SimpleNamespace(accelerator=trainer.accelerator)
    here._fix_param_name_to_vllm = lambda name, **_: name
    return dict(VLLMGeneration._iter_fsdp2_params(here, trainer.model))


def whole(value: torch.Tensor) -> torch.Tensor:
    """A copy of `value`, put together when it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


class OneIsNotFinite(WholeGradients):
    """The loss of the last process alone counts as not finite, while its gradient is."""

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        self._loss_is_finite &= self.accelerator.is_main_process
        return super()._clip_grad_norm(model)


def compute_all(folder: Path) -> None:
    """Every case in this process's place; then decisions that one process takes for all."""
    start_weights()
    place = check_world_size(load_experiment("smoke/grpo", ["hardware.processes=2"]))
    results: dict[str, Any] = {}
    with ending_together(place):
        for case in CASES:
            results[case] = compute(case, folder / case, place)
        results["penalties"] = penalties(place)
        results["decided"] = place.decide(lambda: f"by {place.rank}")
        try:
            place.decide(lambda: load_experiment("smoke/no-method"))
        except ConfigError as error:
            results["refused"] = str(error)
        limit = "training.max_nonfinite_updates=2"
        trainer = case_trainer("token-mean", folder, place, limit, cls=OneIsNotFinite)
        try:
            trainer.train()
        except TrainingDivergedError as error:
            moved = largest_difference(start_weights(), weights(trainer.model))
            results["diverged"] = (str(error), moved, trainer.nonfinite_in_a_row)
    torch.save(results, folder / f"rank{place.rank}.pt")


def compute_sharded(folder: Path) -> None:
    """Cases with the model sharded by FSDP2; a run of two steps, and its second step resumed."""
    place = _sharding()
    results = {case: compute(case, folder / case, place) for case in SHARDED}
    more = ("training.steps=2", "training.save_every=1")
    results["two steps"] = compute("action-preserved", folder / "steps", place, *more)
    check_checkpoint(checkpoint_path(folder / "steps", 1))
    unsaved = ("training.steps=2", "training.save_every=2")
    results["unsaved"] = compute("action-preserved", folder / "unsaved", place, *unsaved)
    results["resumed"] = compute("action-preserved", folder / "steps", place, *more, resume=1)
    results["stored"] = sorted(path.name for path in checkpoint_path(folder / "steps", 1).iterdir())
    torch.save(results, folder / f"rank{place.rank}.pt")


def compute_sharded_in_bfloat16(folder: Path) -> None:
    """A case with the model sharded and products in bfloat16; settled once for a process."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    place = _sharding()
    results = compute("action-preserved", folder / "half", place, "training.dtype=bfloat16")
    torch.save(results, folder / f"rank{place.rank}.pt")


def _sharding() -> Processes:
    """Join the other processes to shard models, as accelerate's configuration file would."""
    start_weights()
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    torch.distributed.init_process_group("gloo")
    # accelerate shards across GPUs only: told that this is one, its own code runs over gloo.
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Metrics of two rows that differ by more than rounding; counts, by anything at all."""
    assert one.keys() == other.keys()
    bounds = dict.fromkeys(_OF_A_TOKEN, rounding.LOGPROB)
    bounds |= dict.fromkeys(_OF_A_RESPONSE, rounding.LOGPROB * math.sqrt(one["response_length"]))
    return {
        name: (value, other[name])
        for name, value in one.items()
        if name not in _OWN
        and value != other[name]
        and (
            None in (value, other[name])
            or abs(value - other[name])
            > bounds.get(name, rounding.PASS if name in _MEANS else 0) * max(1, abs(value))
        )
    }
