"""What a run leaves behind while it trains: checkpoints that are whole or absent, metrics rows and
trajectories.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from llds_core.config import ExperimentConfig
from llds_core.diagnostics.phases import collapse_row
from llds_core.errors import RunError, one_line
from llds_core.machine.jobs import shown_metrics
from llds_core.rollout.protocol import Trajectory
from llds_core.runs import RunDirectory, best_step, read_metrics
from llds_core.runs.checkpoints import (
    WEIGHTS_ONLY,
    checkpoint_path,
    checkpoint_steps,
    rotate_checkpoints,
)

_logger = logging.getLogger("llds_core")
_ACTION = ("kind", "content", "text", "start", "end", "executed", "retrieval_failed")


class AtomicCheckpointMixin(Trainer):
    """For any `transformers.Trainer`: writes `checkpoint/step-N` whole or not at all.

    The class it is mixed into sets `updates_per_step`, and may override `checkpoint_extra` to add
    state to the checkpoint's `extra.json`.
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
            raise RunError(
                f"checkpoint of step {step} cannot be written to {folder} ({one_line(error)}): "
                "free space and issue the same command again; earlier checkpoints are intact"
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


def note_collapse(directory: RunDirectory, config: ExperimentConfig) -> bool:
    """Whether a run that is to stop after its collapse has proved it, which its directory notes."""
    if config.diagnostics.stop_after_collapse and (rows := read_metrics(directory.path)):
        rewards = np.array([row["reward"] for row in rows], float)
        directory.collapsed = collapse_row(rewards, config.diagnostics.window) is not None
    return directory.collapsed


class Recorder(TrainerCallback):
    """Writes each step to the run directory; keeps the progress bar and the best checkpoint."""

    def __init__(
        self,
        directory: RunDirectory,
        config: ExperimentConfig,
        done: int,
        *,
        after_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.directory = directory
        self._config = config
        self._after_step = after_step
        self._bar = tqdm(total=config.training.steps, initial=done, desc=config.name, unit="step")

    def __call__(self, row: dict[str, Any], trajectories: list[Trajectory]) -> None:
        """A step has ended: put its metrics and a few of its trajectories on disk."""
        stored = trajectories[: self._config.training.trajectories_per_step]
        self.directory.append_trajectories(trajectory_record(t, row["step"]) for t in stored)
        self.directory.append_metrics(row)
        gap, alarm = row["sampler_gap"], self._config.sampler.gap_alarm
        # Written so that NaN warns too.
        if gap is not None and not gap <= alarm:
            _logger.warning(
                "step %d: the sampler's log-probabilities differ from the trainer's by %.3g nats a "
                "token in the mean (at most %.3g), above sampler.gap_alarm=%g: the rollouts may "
                "come from other weights",
                row["step"],
                gap,
                row["sampler_gap_max"],
                alarm,
            )
        self._bar.set_postfix(shown_metrics(row))
        self._bar.update()
        if self._after_step is not None:
            self._after_step(row)

    def saved(self, step: int) -> None:
        """A checkpoint of `step` is on disk: rank it and drop old ones."""
        folder = self.directory.checkpoints
        best = best_step(read_metrics(self.directory.path), checkpoint_steps(folder))
        rotate_checkpoints(folder, self._config.training.keep_checkpoints, best)
        self.directory.update(best_step=best, last_step=step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        self.saved(state.global_step // self._config.training.updates_per_rollout)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is over."""
        self._bar.close()


def trajectory_record(trajectory: Trajectory, step: int) -> dict[str, Any]:
    """JSON-compatible record of a whole trajectory: tokens, masks, actions, hits, reward."""
    return {
        "step": step,
        "question_id": trajectory.question.id,
        "question": trajectory.question.question,
        "golden_answers": list(trajectory.question.golden_answers),
        "kind": trajectory.question.metadata.get("kind"),
        "sample": trajectory.sample,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "correct": trajectory.correct,
        "stop_reason": trajectory.stop_reason,
        "actions": [
            {name: getattr(action, name) for name in _ACTION}
            | {"hits": [{"id": h.id, "title": h.title, "text": h.text} for h in action.hits]}
            for action in trajectory.actions
        ],
        "prompt_ids": trajectory.prompt_ids,
        "completion_ids": trajectory.completion_ids,
        "response_mask": trajectory.response_mask,
        "sampler_logprobs": [round(value, 6) for value in trajectory.sampler_logprobs],
        "logprob_changes": [round(value, 6) for value in trajectory.logprob_changes],
    }
