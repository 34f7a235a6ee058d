"""All checks of a profile, in order."""

from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.errors import LLDSError
from llds_core.machine.doctor import machine
from llds_core.machine.doctor.data import data_findings
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.gpu import gpu_findings
from llds_core.machine.doctor.probes import Probes
from llds_core.machine.doctor.search import sampler_findings, search_findings
from llds_core.machine.plan import Plan, plan


def examine(
    config: ExperimentConfig, run_root: Path, *, runs: int = 1, probes: Probes | None = None
) -> list[Finding]:
    """Return all findings for `config`.

    Args:
        config: any experiment of the profile.
        run_root: folder of all runs.
        runs: how many will leave their checkpoints there.
        probes: what is asked; None for this machine.
    """
    probes = probes or Probes()
    on_gpu = config.hardware.gpu_memory_gib is not None
    planned, problems = _planned(config, run_root)
    memory, disk = machine.NEEDED_MEMORY_GIB, machine.NEEDED_DISK_GIB
    if planned:
        disk += runs * planned.disk_parts_gib["checkpoints"]
    if planned and on_gpu:
        memory = planned.host_memory_gib
    needed = planned.gpu_memory_gib["total"] if planned and on_gpu else 0.0
    return [
        machine.python(),
        *machine.packages(config, probes),
        machine.cores(config),
        machine.memory(memory, probes),
        machine.run_folder(run_root),
        machine.disk(run_root, disk, probes),
        machine.notebooks(),
        *problems,
        *(gpu_findings(config, probes.gpus(), needed) if on_gpu else []),
        *data_findings(config, probes),
        *search_findings(config, probes),
        *sampler_findings(config, probes),
    ]


def _planned(config: ExperimentConfig, run_root: Path) -> tuple[Plan | None, list[Finding]]:
    """What a run takes; a warning where that cannot be told."""
    try:
        return plan(config, run_root), []
    except LLDSError as error:
        said, _, advice = " ".join(str(error).split()).partition(": ")
        fix = advice or "nothing is known about memory and disk: watch them"
        return None, [Finding("plan", "warn", said, fix)]
