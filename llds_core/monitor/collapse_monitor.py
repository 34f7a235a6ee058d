"""Watching a run from inside the trainer; `diagnosis.follow` does it by the log."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llds_core.errors import ConfigError, DataError
from llds_core.monitor.detectors import PATIENCE, SEVERITIES
from llds_core.monitor.diagnosis import PHASES, Alarm, Diagnosis, judge
from llds_core.monitor.log_formats import has_metric, saved_steps
from llds_core.monitor.training_log import to_log

_logger = logging.getLogger("llds_core")
_EACH_OF = 200  # as each judgement reads all rows: of n rows every (n // 200)th is judged


class CollapseMonitor(TrainerCallback):
    """Judges a run after every log (from 400 rows on after every second, and so on), warns once per
    alarm, and ends the training at one of the severity `stop_at` that has stood for `patience`
    rows, a fall of the reward only where it is beyond the noise between rows, or at once where
    values are not finite. It is a callback of TRL's trainer, from whose arguments it learns the
    updates per rollout; around our own trainer, `train(run, after_step=monitor.observe)`.

    Each log gets `monitor/phase` (place of the phase in `diagnosis.PHASES`), `monitor/alarms`
    (alarms so far) and `monitor/<detector>` (1 from its alarm on); they stand in
    `trainer_state.json` too. Trackers read the log before callbacks that are given to a trainer:
    `attach` puts the monitor before them. `reward_floor` and `reward_key` are those of `read_log`.
    """

    def __init__(
        self,
        *,
        stop_at: str | None = None,
        patience: int = PATIENCE,
        reward_floor: float | None = None,
        reward_key: str | None = None,
    ) -> None:
        if stop_at not in (None, *SEVERITIES):
            raise ConfigError(f'stop_at="{stop_at}" is no severity: {", ".join(SEVERITIES)}')
        if patience < 1:
            raise ConfigError(f"patience={patience} is no number of rows: give 1 or more")
        self.diagnosis: Diagnosis | None = None
        self.stopped = False
        self._stop_at = stop_at
        self._patience = patience
        self._updates: int | None = None
        self._reward = (reward_floor, reward_key)
        self._rows: list[dict[str, Any]] = []
        self._told: set[str] = set()

    def attach(self, trainer: Any) -> "CollapseMonitor":
        """Join a trainer before its trackers; return the monitor."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def observe(self, row: Mapping[str, Any], checkpoints: tuple[int, ...] = ()) -> list[Alarm]:
        """Take a logged row, with its step; return alarms that are new."""
        if not has_metric(row):
            return []
        self._rows.append(dict(row))
        if len(self._rows) % max(1, len(self._rows) // _EACH_OF):
            return []
        try:
            log = to_log(self._rows, "this run", (), self._updates, *self._reward)
        except DataError as error:  # no reason to end a training
            _logger.warning("the monitor cannot judge: %s", error)
            return []
        self.diagnosis = judge(replace(log, checkpoints=checkpoints))
        fresh = [alarm for alarm in self.diagnosis.alarms if alarm.name not in self._told]
        self._told |= {alarm.name for alarm in fresh}
        for alarm in fresh:
            if alarm.severity != "info":
                said = (alarm.step, alarm.name, alarm.evidence, alarm.advice[0].partition(":")[0])
                _logger.warning("step %d: %s: %s. %s (llds diagnose tells more)", *said)
        stop_at, found = self._stop_at, self.diagnosis
        if stop_at and not self.stopped and found.reaches(stop_at, self._patience):
            self.stopped = True
            back = found.go_back_to if checkpoints else None
            where = "no checkpoint before it" if back is None else f"go back to step {back}"
            _logger.warning("the training ends at a %s alarm: %s", stop_at, where)
        return fresh

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn the updates per rollout, and on a resumed run what was logged before."""
        if getattr(args, "steps_per_generation", None):
            made = args.steps_per_generation * args.num_iterations
            self._updates = max(1, made // args.gradient_accumulation_steps)
        self._rows = [dict(row) for row in state.log_history if has_metric(row)]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Judge the run, add the verdict to the log, end the training if asked to."""
        if not state.is_world_process_zero and not self._stop_at:
            return
        saved = tuple(saved_steps(Path(args.output_dir)))
        self.observe({**logs, "step": state.global_step}, saved)
        if self.diagnosis:
            alarms = self.diagnosis.alarms
            verdict = {f"monitor/{alarm.name}": 1 for alarm in alarms}
            verdict["monitor/phase"] = PHASES.index(self.diagnosis.phase)
            verdict["monitor/alarms"] = len(alarms)
            for row in (logs, state.log_history[-1]):
                row.update(verdict)
        self.on_step_end(args, state, control)  # before another rollout is made

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training where an alarm asked for it, in our own trainer as well."""
        if self.stopped:
            control.should_training_stop = True

    on_substep_end = on_step_end
