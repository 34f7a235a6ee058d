"""`slurm`: the main job as a batch script, from the commented template in `presets/slurm`."""

import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError


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
