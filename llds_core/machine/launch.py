"""Starts the processes of a run that needs several, and sees to it that all of them end.

On GPUs `accelerate launch` starts them; on a CPU `torchrun`, because accelerate's own launcher of
CPU processes needs MPI. With several machines the same command is issued on
each, with its `--machine-rank` and the address of the first. The output of the processes goes to
`processes-<machine rank>.log` in the run directory. What a killed process can no longer write, its
status and why, is written here.
"""

import importlib.resources
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError, RunError
from llds_core.machine.jobs import Child, ProgressBars
from llds_core.runs import Run, end_run

_POLL_SECONDS = 0.5
_LOST = "another process of this run has ended"
_ENDED = re.compile(r"rank\s*: (\d+) .*\n\s*exitcode\s*: -(\d+) +\(pid: (\d+)\)")
_STOPPED = re.compile(r"process (\d+) closing signal")  # by the launcher, after the first end
_EXCEPTION = re.compile(r"(\[rank\d+\]: )?\w[\w.]*(Error|Exception)\b")


@dataclass(frozen=True)
class Machine:
    """This machine among those that train together.

    Attributes:
        rank: its number, from 0.
        main_address: host name or address of machine 0.
        main_port: a port of machine 0 that is free; on one machine any free one is taken.
    """

    rank: int = 0
    main_address: str = "127.0.0.1"
    main_port: int = 29500


ALONE = Machine()


def is_launched() -> bool:
    """Whether this is one of several processes that `torchrun` or `accelerate launch` started."""
    return "RANK" in os.environ


def launch_command(
    config: ExperimentConfig,
    arguments: Sequence[str],
    machine: Machine = ALONE,
    *,
    on_gpu: bool,
) -> list[str]:
    """Return the command that starts this machine's processes.

    Args:
        config: the experiment, for the number of processes, sharding and precision.
        arguments: what each process runs, as after `python -m llds_core`.
        machine: this machine.
        on_gpu: whether the processes find GPUs.

    Raises:
        ConfigError: when `machine` is none of `hardware.nodes`.
    """
    hardware = config.hardware
    if not 0 <= machine.rank < hardware.nodes:
        raise ConfigError(
            f"--machine-rank is {machine.rank} with hardware.nodes={hardware.nodes}: it counts "
            f"from 0 to {hardware.nodes - 1}"
        )
    program = ["-m", "llds_core", *arguments]
    if not on_gpu:
        where = ["--standalone", "--nnodes", "1"]
        if hardware.nodes > 1:
            where = ["--nnodes", str(hardware.nodes), "--node-rank", str(machine.rank)]
            where += ["--master-addr", machine.main_address, "--master-port"]
            where += [str(machine.main_port)]
        count = ["--nproc-per-node", str(hardware.processes)]
        return [sys.executable, "-m", "torch.distributed.run", *where, *count, *program]
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if hardware.sharding == "none":
        command += ["--multi_gpu"]
    else:
        command += ["--config_file", str(sharding_file(hardware.sharding))]
    command += ["--num_processes", str(config.world_size), "--num_machines", str(hardware.nodes)]
    command += ["--machine_rank", str(machine.rank), "--same_network"]
    command += ["--main_process_ip", machine.main_address, "--main_process_port"]
    # 0 takes a free port, which other machines could not know.
    command += [str(machine.main_port if hardware.nodes > 1 else 0)]
    command += ["--mixed_precision", "bf16" if config.training.dtype == "bfloat16" else "no"]
    command += ["--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", str(config.training.threads)]
    return [*command, *program]


def sharding_file(sharding: str) -> Path:
    """The accelerate configuration of `hardware.sharding`."""
    file = importlib.resources.files("llds_core") / "presets" / "accelerate" / f"{sharding}.yaml"
    return Path(str(file))


def launch_training(run: Run, machine: Machine = ALONE) -> None:
    """Train `run`, whose start policy is there, in processes of its own; see `train`.

    Raises:
        RunError: when a process fails or is killed, naming which and why.
    """
    if run.is_complete():
        return
    import torch

    arguments = [*run.command("train"), "--quiet"]
    command = launch_command(run.config, arguments, machine, on_gpu=torch.cuda.is_available())
    bars = ProgressBars()
    child = Child(
        command,
        run.path / f"processes-{machine.rank}.log",
        environment={"OMP_NUM_THREADS": str(run.config.training.threads)},
        all_output=True,
        append=True,
    )
    interrupted = False
    try:
        while child.code is None:
            if machine.rank == 0:
                bars.refresh([run])
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        child.stop()
        bars.close()
        if interrupted and machine.rank == 0:
            end_run(run.path, "interrupted", "stopped by the user")
    if child.code:
        reason = _reason(child.output)
        if machine.rank == 0:
            end_run(run.path, "failed", reason)
        raise RunError(f"train {run.title} failed: {reason} (log: {child.log})")


def _reason(output: str) -> str:
    """Why the processes ended: what one of them said of itself, or what killed it."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    causes = [line.removeprefix("error: ") for line in errors if _LOST not in line]
    if causes:
        return causes[0]
    stopped = set(_STOPPED.findall(output))
    for rank, number, process in _ENDED.findall(output):
        if process not in stopped:
            return f"process {rank} was killed by {signal.Signals(int(number)).name}"
    lines = [line for line in output.splitlines() if line.strip()]
    # A defect: the last line of the first traceback names it.
    defects = [line for line in lines if _EXCEPTION.match(line)]
    return (defects or errors or lines or ["no output"])[0]
