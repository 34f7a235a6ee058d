"""Checkpoints that are either whole or absent.

A checkpoint is written into a hidden folder and renamed when it is complete, so that a killed
process leaves at most a hidden leftover behind. Names count rollout steps: `step-000012`.
"""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llds_core.errors import CheckpointError, RunError

_PREFIX = "step-"
_CHECKPOINT = re.compile(rf"{_PREFIX}(\d{{6,}})")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return folder / f"{_PREFIX}{step:06d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    names = (path.name for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save or deletion left; only for the process that holds the run."""
    for leftover in folder.glob(".partial*"):
        shutil.rmtree(leftover)


def rotate_checkpoints(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the latest `keep` checkpoints and the one of step `best`."""
    steps = checkpoint_steps(folder)
    for step in steps[:-keep]:
        if step != best:
            # Rename first: a killed deletion must not leave half a checkpoint under a valid name.
            doomed = folder / f".partial-delete-{step}"
            os.replace(checkpoint_path(folder, step), doomed)
            shutil.rmtree(doomed)


def check_checkpoint(path: Path) -> None:
    """Check that a run could continue from `path`, without loading it.

    Raises:
        CheckpointError: when a file is missing or truncated.
    """
    # Several processes store one generator each. FSDP names the moments differently, DeepSpeed
    # keeps them in folders of its own, to which `latest` points.
    generators = "rng_state_0.pth" if (path / "rng_state_0.pth").exists() else "rng_state.pth"
    names = ["model.safetensors", "scheduler.pt", generators]
    if not (path / "latest").exists():
        names += ["optimizer.bin" if (path / "optimizer.bin").exists() else "optimizer.pt"]
    for name in names:
        file = path / name
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    continue
            # torch saves zip archives, whose directory stands at the end.
            if zipfile.is_zipfile(file):
                continue
            reason = "truncated" if file.exists() else "missing"
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{file} cannot be read ({reason}): delete {path.name} to resume from an earlier one"
        )


class AtomicCheckpointMixin:
    """For `transformers.Trainer`: writes `checkpoint/step-N` whole or not at all.

    The class it is mixed into sets `updates_per_step`, and may override `checkpoint_extra` to add
    state to the checkpoint's `extra.json`, read back by `read_checkpoint_extra`.
    """

    updates_per_step = 1
    _saving_to: Path | None = None

    def checkpoint_extra(self) -> dict:
        """State to store beside the weights, JSON-compatible."""
        return {}

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """No model card per checkpoint: the manifest of the run says more."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied weight is stored under one of its names: the other is not missing."""
        tied = self.model.all_tied_weights_keys
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_output_dir(self, trial: object) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: object, trial: object) -> None:
        folder = Path(self.args.output_dir)
        step = self.state.global_step // self.updates_per_step
        self._saving_to = folder / f".partial-{step}"
        try:
            super()._save_checkpoint(model, trial)
            written = self._saving_to / f"checkpoint-{self.state.global_step}"
        except (OSError, RuntimeError, SafetensorError) as error:
            # A full disk speaks through whichever library was writing.
            reason = " ".join(str(error).split())[:120]
            raise RunError(
                f"checkpoint of step {step} cannot be written to {folder} ({reason}): free space "
                "and issue the same command again; earlier checkpoints are intact"
            ) from error
        finally:
            self._saving_to = None
        # Every process has put its part there before the folder gets its name.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (written / "extra.json").write_text(json.dumps(self.checkpoint_extra()), "utf-8")
            final = checkpoint_path(folder, step)
            if final.exists():
                shutil.rmtree(final)
            os.replace(written, final)
            shutil.rmtree(written.parent)


def read_checkpoint_extra(path: Path) -> dict:
    """Return what `checkpoint_extra` stored.

    Raises:
        CheckpointError: when it is missing or not JSON.
    """
    try:
        return json.loads((path / "extra.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({error}): delete it to resume from an earlier one"
        ) from error
