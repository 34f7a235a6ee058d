"""`slurm`: the main job as a batch script."""

import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError

_TEMPLATE = "presets/slurm/reproduce.sbatch"


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
    """Return the script that runs `reproduce` on the machines of `config`.

    Args:
        config: any experiment of the profile, with its layout.
        arms: methods.
        seeds: of every method.
        run_root: folder of all runs, on a file system that all machines share.
        overrides: as given by the user.
        layout: as given by the user.
        hours: wall time to ask for; a job that is cut goes on when the script is submitted again.

    Raises:
        ConfigError: when the profile needs no GPU.
    """
    hardware = config.hardware
    if hardware.gpu_memory_gib is None:
        raise ConfigError(
            f'{config.profile} needs no GPU: run "make reproduce PROFILE={config.profile}", or '
            "choose a GPU profile such as paper-3b"
        )
    words = ["reproduce", config.profile, *overrides]
    words += ["--layout", layout] if layout else []
    words += ["--arms", ",".join(arms), "--seeds", ",".join(map(str, seeds))]
    words += ["--run-root", str(run_root), "--quiet"]
    template = Template((files("llds_core") / _TEMPLATE).read_text("utf-8"))
    return template.substitute(
        name=f"llds-{config.profile}",
        nodes=hardware.nodes,
        gpus=hardware.processes,
        cores=max(8, hardware.processes * config.training.threads),
        hours=hours,
        command=shlex.join(words),
    )
