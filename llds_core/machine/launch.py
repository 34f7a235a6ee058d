"""Starts the processes of a run that needs several, and sees to it that all of them end.

On GPUs `accelerate launch` starts them; on a CPU `torchrun`, because accelerate's own launcher of
CPU processes needs MPI. With several machines the same command is issued on each, with its
`--machine-rank` and the address of the first. Output goes to `processes-<machine rank>.log` in the
run directory. What a killed process can no longer write, its status and why, is written here.

`batch_script` is the main job as a Slurm script, from the commented template in `presets/slurm`.
"""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError, RunError
from llds_core.machine.jobs import Child, ProgressBars, stop_children
from llds_core.runs import Run, end_run

_POLL_SECONDS = 0.5
_LOST = "another process of this run has ended"
_ENDED = re.compile(r"rank\s*: (\d+) .*\n\s*exitcode\s*: -(\d+) +\(pid: (\d+)\)")
_STOPPED = re.compile(r"process (\d+) closing signal")  # by the launcher, after the first end
_EXCEPTION = re.compile(r"(\[rank\d+\]: )?\w[\w.]*(Error|Exception)\b")


@dataclass(frozen=True)
class Machine:
    """This machine among those that train together; address and port are those of machine 0."""

    rank: int = 0
    main_address: str = "127.0.0.1"
    main_port: int = 29500  # on one machine any free one is taken


ALONE = Machine()


def is_launched() -> bool:
    """Whether this is one of several processes that `torchrun` or `accelerate launch` started."""
    return "RANK" in os.environ


def launch_command(
    config: ExperimentConfig, arguments: Sequence[str], machine: Machine = ALONE, *, on_gpu: bool
) -> list[str]:
    """Return the command that starts this machine's processes, each with `arguments` as after
    `python -m llds_core`; `on_gpu` when they find GPUs.
    """
    hardware = config.hardware
    if not 0 <= machine.rank < hardware.nodes:
        raise ConfigError(
            f"--machine-rank is {machine.rank} with hardware.nodes={hardware.nodes}: it counts "
            f"from 0 to {hardware.nodes - 1}"
        )
    alone = hardware.nodes == 1
    launcher, flags = "torch.distributed.run", ["--standalone"] if alone else []
    options: dict[str, Any] = {"nnodes": hardware.nodes, "nproc-per-node": hardware.processes}
    if not alone:
        options |= {"node-rank": machine.rank, "master-addr": machine.main_address}
        options |= {"master-port": machine.main_port}
    if on_gpu:
        launcher, flags = "accelerate.commands.launch", ["--same_network"]
        options = {
            "num_processes": config.world_size,
            "num_machines": hardware.nodes,
            "machine_rank": machine.rank,
            "main_process_ip": machine.main_address,
            # 0 takes a free port, which other machines could not know.
            "main_process_port": 0 if alone else machine.main_port,
            "mixed_precision": "bf16" if config.training.dtype == "bfloat16" else "no",
            "dynamo_backend": "no",
            "num_cpu_threads_per_process": config.training.threads,
        }
        if hardware.sharding == "none":
            flags += ["--multi_gpu"]
        else:
            file = f"presets/accelerate/{hardware.sharding}.yaml"
            options["config_file"] = files("llds_core") / file
    flags += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", launcher, *flags, "-m", "llds_core", *arguments]


def launch_training(run: Run, machine: Machine = ALONE) -> None:
    """Train `run`, whose start policy is there, in processes of its own; see `train`. A `RunError`
    when one fails or is killed says which and why.
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
    )
    try:
        try:
            while child.code is None:
                if machine.rank == 0:
                    bars.show([run])
                time.sleep(_POLL_SECONDS)
        finally:
            stop_children(child)
            bars.show([])
    except KeyboardInterrupt:
        if machine.rank == 0:
            end_run(run.path, "interrupted", "stopped by the user")
        raise
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


def batch_script(
    config: ExperimentConfig,
    *,
    arms: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
    layout: str | None = None,
    hours: int = 24,
) -> str:
    """Return the script that runs `reproduce` for at most `hours` on the machines of `config`."""
    hardware = config.hardware
    if hardware.gpu_memory_gib is None:
        raise ConfigError(
            f'{config.profile} needs no GPU: run "make reproduce PROFILE={config.profile}", or '
            "choose a GPU profile such as paper-3b"
        )
    words = ["reproduce", config.profile, *overrides, *(["--layout", layout] if layout else [])]
    words += ["--arms", ",".join(arms), "--seeds", ",".join(map(str, seeds))]
    template = files("llds_core") / "presets/slurm/reproduce.sbatch"
    return Template(template.read_text("utf-8")).substitute(
        name=f"llds-{config.profile}",
        nodes=hardware.nodes,
        gpus=hardware.processes,
        cores=max(8, hardware.processes * config.training.threads),
        hours=hours,
        command=shlex.join([*words, "--run-root", str(run_root), "--quiet"]),
    )
