"""How trainers write checkpoints: into a hidden folder that gets its name when it is whole."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer

from llds_core.errors import RunError
from llds_core.runs.checkpoints import WEIGHTS_ONLY, checkpoint_path


class AtomicCheckpointMixin(Trainer):
    """For any `transformers.Trainer`: writes `checkpoint/step-N` whole or not at all.

    The class it is mixed into sets `updates_per_step`, and may override `checkpoint_extra` to add
    state to the checkpoint's `extra.json`, read back by `read_checkpoint_extra`.
    """

    # A trainer has these, whatever transformers allows before it is built.
    args: Any
    model: Any
    processing_class: Any

    updates_per_step = 1
    _saving_to: Path | None = None

    def checkpoint_extra(self) -> dict[str, Any]:
        """State to store beside the weights, JSON-compatible."""
        return {}

    def is_resumable(self, step: int) -> bool:
        """Whether a run can be continued from the checkpoint of `step`; else it holds weights."""
        return True

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """No model card per checkpoint: the manifest of the run says more."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied weight is stored under one of its names: the other is not missing."""
        tied = self.model.all_tied_weights_keys
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        step = self.state.global_step // self.updates_per_step
        self._saving_to = folder / f".partial-{step}"
        self.args.save_only_model = not self.is_resumable(step)
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
            if self.args.save_only_model:
                (written / WEIGHTS_ONLY).touch()
            (written / "extra.json").write_text(json.dumps(self.checkpoint_extra()), "utf-8")
            final = checkpoint_path(folder, step)
            if final.exists():
                shutil.rmtree(final)
            os.replace(written, final)
            shutil.rmtree(written.parent)
