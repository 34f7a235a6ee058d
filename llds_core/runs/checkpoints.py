"""Checkpoints that are either whole or absent.

A checkpoint is written into a hidden folder and renamed when it is complete, so that a killed
process leaves at most a hidden leftover behind. Names count rollout steps: `step-000012`.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llds_core.errors import CheckpointError, one_line
from llds_core.files import disk_errors

WEIGHTS_ONLY = "weights-only"  # an empty file in checkpoints that no run continues from
_CHECKPOINT = re.compile(r"step-(\d{6,})")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return folder / f"step-{step:06d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    names = (path.name for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def resumable_steps(folder: Path) -> list[int]:
    """Those of the `checkpoint_steps` that a run can be continued from."""
    steps = checkpoint_steps(folder)
    return [step for step in steps if not (checkpoint_path(folder, step) / WEIGHTS_ONLY).exists()]


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save or deletion left; only for the process that holds the run."""
    with disk_errors(folder):
        for leftover in folder.glob(".partial*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def rotate_checkpoints(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the latest `keep` checkpoints, the one of step `best`, and the latest that a
    run can be continued from.
    """
    kept = {best, *resumable_steps(folder)[-1:]}
    delete_checkpoints(folder, [s for s in checkpoint_steps(folder)[:-keep] if s not in kept])


def delete_checkpoints(folder: Path, steps: Iterable[int]) -> None:
    """Delete the checkpoints of `steps`."""
    for step in steps:
        # Rename first: a killed deletion must not leave half a checkpoint under a valid name.
        doomed = folder / f".partial-delete-{step}"
        os.replace(checkpoint_path(folder, step), doomed)
        shutil.rmtree(doomed)


def check_checkpoint(path: Path) -> None:
    """Check that a run could continue from `path`, without loading it."""
    # Several processes store one generator each, and FSDP names the moments differently.
    generators = "rng_state_0.pth" if (path / "rng_state_0.pth").exists() else "rng_state.pth"
    moments = "optimizer.bin" if (path / "optimizer.bin").exists() else "optimizer.pt"
    names = ["config.json", "trainer_state.json", "extra.json"]
    for name in (*names, "model.safetensors", "scheduler.pt", generators, moments):
        file = path / name
        try:
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt")
            elif file.suffix == ".json":
                read_object(file)
            # torch saves zip archives, whose directory stands at the end.
            elif not zipfile.ZipFile(file).namelist():
                raise ValueError("it holds nothing")
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{file} cannot be read ({one_line(error, 100)}): delete {path.name} to resume "
                "from an earlier one"
            ) from error


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; a `ValueError` for anything else."""
    value = json.loads(file.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} is {value!r}, not an object")
    return value
