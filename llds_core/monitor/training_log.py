"""One training log as a table of our metrics, one row per step."""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llds_core.errors import DataError
from llds_core.monitor.log_formats import read_rows
from llds_core.monitor.log_keys import framework_of, named, step_of, to_number
from llds_core.runs.checkpoints import checkpoint_steps

# Of these a value that is not finite is a fault; of others it may mean that there was nothing.
_MUST_BE_FINITE = ("loss", "grad_norm", "entropy", "kl", "reward", "clip_fraction")
# Steps that go back, or rows that contradict the one before, of a run that was restarted.
_RESTARTS, _RESTART_SHARE = 3, 0.05


@dataclass(frozen=True)
class TrainingLog:
    """What a log says.

    Attributes:
        source: where it was read.
        framework: whose keys it uses.
        table: a column `step`, ascending, and one per metric; NaN where nothing was measured.
            `nonfinite` counts the values of a row that were logged as NaN or infinite, and
            `updates_per_rollout` is there when it is known.
        keys: the key that each metric was read from.
        notes: what was left out or assumed.
        checkpoints: steps that can be gone back to; empty when none are known.
    """

    source: str
    framework: str
    table: pd.DataFrame
    keys: Mapping[str, str]
    notes: tuple[str, ...] = ()
    checkpoints: tuple[int, ...] = ()

    def column(self, metric: str) -> np.ndarray:
        """Values of a metric (n,), NaN where missing."""
        if metric in self.table:
            return self.table[metric].to_numpy(float)
        return np.full(len(self.table), np.nan)

    def has(self, metric: str) -> bool:
        """Whether the metric was measured, be it as NaN."""
        return metric in self.table


def read_log(
    path: Path, *, format: str = "auto", updates_per_rollout: int | None = None
) -> TrainingLog:
    """Read a log of any known format; see `log_formats`.

    Args:
        path: a file, or the folder of a run.
        format: one of `log_formats.FORMATS`.
        updates_per_rollout: where the log does not say it. Of TRL, whose steps are updates, the
            rows of a rollout are then averaged.
    """
    notes: list[str] = []
    log = to_log(read_rows(path, format, notes), str(path), notes, updates_per_rollout)
    folder = path if path.is_dir() else path.parent
    steps = checkpoint_steps(folder / "checkpoint") or saved_steps(folder)
    return replace(log, checkpoints=tuple(steps))


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that transformers wrote into `folder`."""
    names = (path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def to_log(
    rows: Iterable[Mapping[str, Any]],
    source: str,
    notes: list[str] | None = None,
    updates_per_rollout: int | None = None,
) -> TrainingLog:
    """Put logged rows together: by step, the last one of a step counting."""
    notes = [] if notes is None else notes
    keys: dict[str, str] = {}
    seen: dict[str, None] = {}
    kept = _Kept(source)
    for row in rows:
        if len(seen) < 5:
            seen |= dict.fromkeys(str(key) for key in row)
        values = named(row)
        keys |= {metric: key for metric, (key, _) in values.items()}
        if values:
            numbers = {metric: value for metric, (_, value) in values.items()}
            kept.add(step_of(row), to_number(row.get("epoch")), numbers)
    if not kept.rows:
        what = f"keys: {', '.join([*seen][:5])}" if seen else "it has no rows"
        raise DataError(f"{source} holds no metric that is known ({what}): see docs/monitor.md")
    if not kept.numbered:
        notes.append("rows name no step and are counted")
    notes += kept.notes()
    steps = kept.steps() if kept.numbered else np.arange(1, len(kept.rows) + 1)
    notes += _faults(kept.rows, steps)
    table = _to_table(kept.rows, steps, keys, updates_per_rollout)
    return TrainingLog(source, framework_of(keys), table, keys, tuple(notes))


class _Kept:
    """Rows so far, in ascending order of steps; a step that comes again replaces what follows."""

    def __init__(self, source: str) -> None:
        self.rows: list[dict[str, float]] = []
        self.numbered = True
        self._source = source
        self._orders: list[float] = []
        self._back, self._anew, self._clashes, self._added, self._dropped = 0, 0, 0, 0, 0

    def add(self, step: float | None, epoch: float | None, values: dict[str, float]) -> None:
        """Take a row; without a step its epoch tells its place, else it is the next."""
        self._added += 1
        if step is None:
            self.numbered = False
        order = step if self.numbered else epoch
        last = self._orders[-1] if self._orders else -math.inf
        if order is None or not math.isfinite(order):
            order = last + 1 if self._orders else 1.0
        if order == last and self.numbered:
            before = self.rows[-1]
            self._clashes += any(before.get(key, value) != value for key, value in values.items())
            before |= values
            return
        if order < last:
            self._back += 1
            place = bisect.bisect_left(self._orders, order)
            self._anew += place == 0
            self._dropped += len(self.rows) - place
            del self.rows[place:], self._orders[place:]
        self.rows.append(values)
        self._orders.append(order)

    def steps(self) -> np.ndarray:
        """Steps (n,) of the rows."""
        return np.array(self._orders).astype(int)

    def notes(self) -> list[str]:
        """What was left out of restarts; rows of several runs among each other are refused."""
        allowed = max(_RESTARTS, _RESTART_SHARE * self._added)
        if self._back > allowed or self._clashes > allowed:
            raise DataError(
                f"{self._source} seems to mix several runs (steps go back {self._back} times, "
                f"{self._clashes} rows contradict the one before): give one log per run"
            )
        if self._anew:
            return [f"the log starts anew: {self._dropped} earlier rows are left out"]
        if self._back:
            return [f"after a restart {self._dropped} rows came again: the later ones count"]
        return []


def _faults(rows: Sequence[Mapping[str, float]], steps: np.ndarray) -> list[str]:
    """Where values are NaN or infinite that must not be."""
    found = []
    for name in _MUST_BE_FINITE:
        at = [s for row, s in zip(rows, steps, strict=True) if not math.isfinite(row.get(name, 0))]
        if at:
            found.append(f"{name} is NaN or infinite in {len(at)} rows, first at step {at[0]}")
    return found


def _to_table(
    rows: Sequence[Mapping[str, float]],
    steps: np.ndarray,
    keys: Mapping[str, str],
    updates_per_rollout: int | None,
) -> pd.DataFrame:
    """Count what is not finite, derive updates per rollout, and average TRL's rows per rollout."""
    table = pd.DataFrame(rows)
    table.insert(0, "step", steps)
    table["nonfinite"] = [
        sum(not math.isfinite(row[key]) for key in _MUST_BE_FINITE if key in row)
        + (row.get("nonfinite_updates", 0) > 1)
        for row in rows
    ]
    table = table.replace([np.inf, -np.inf], np.nan)
    if updates_per_rollout and framework_of(keys) == "trl":
        rollout = (table["step"] - 1) // updates_per_rollout
        steps, faults = table.groupby(rollout)["step"].max(), table.groupby(rollout)["nonfinite"]
        table = table.groupby(rollout).mean().assign(step=steps, nonfinite=faults.max())
        table = table.reset_index(drop=True)
    if updates_per_rollout:
        table["updates_per_rollout"] = float(updates_per_rollout)
    elif "updates" in table:
        made = table["updates"].diff() / table["step"].diff()
        table["updates_per_rollout"] = made.fillna(table["updates"] / table["step"])
    return table
