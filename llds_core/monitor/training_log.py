"""One training log as a table of our metrics, one row per step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llds_core.errors import DataError
from llds_core.files import project_path
from llds_core.monitor.log_formats import framework_of, named, read_rows, step_of, to_number
from llds_core.runs.checkpoints import checkpoint_steps

# Of these a value that is not finite is a fault; of others it may mean that there was nothing.
_MUST_BE_FINITE = ("loss", "grad_norm", "entropy", "kl", "reward", "clip_fraction")
# How often, and for what share of rows, steps may go back in one run's log, or rows contradict.
_RESTARTS, _RESTART_SHARE = 3, 0.05


@dataclass(frozen=True)
class TrainingLog:
    """What a log says.

    Its table has a column `step`, ascending, and one per metric; NaN where nothing was measured.
    `nonfinite` counts the values of a row that were logged as NaN or infinite, and
    `updates_per_rollout` is there when it is known.
    """

    source: str
    framework: str  # whose keys it uses
    table: pd.DataFrame
    keys: Mapping[str, str]  # that each metric was read from
    notes: tuple[str, ...] = ()  # what was left out or assumed
    checkpoints: tuple[int, ...] = ()  # steps that can be gone back to, where known

    def column(self, metric: str) -> np.ndarray:
        """Values of a metric (n,), NaN where missing."""
        missing = pd.Series(np.nan, self.table.index)
        return self.table.get(metric, missing).to_numpy(float)


def read_log(
    path: Path, *, format: str = "auto", updates_per_rollout: int | None = None
) -> TrainingLog:
    """Read a log, a file or the folder of a run, in one of `log_formats.FORMATS`.

    `updates_per_rollout` is for logs that do not say it; of TRL, whose steps are updates, the rows
    of a rollout are then averaged.
    """
    notes: list[str] = []
    root = project_path(".")
    source = str(path.relative_to(root) if path.is_relative_to(root) else path)
    log = to_log(read_rows(path, format, notes), source, notes, updates_per_rollout)
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
    notes: Sequence[str] = (),
    updates_per_rollout: int | None = None,
) -> TrainingLog:
    """Put logged rows together: by step, the last one of a step counting."""
    first, known = "", []
    for row in rows:
        first = first or ", ".join([str(key) for key in row][:5])
        if values := named(row):
            known.append((step_of(row), to_number(row.get("epoch")) or 0.0, values))
    if not known:
        what = f"keys: {first}" if first else "it has no rows"
        raise DataError(f"{source} holds no metric that is known ({what}): see docs/monitor.md")
    found_notes = [*notes]
    numbered = 2 * sum(step is not None for step, *_ in known) > len(known)
    if not numbered:
        found_notes.append("rows name no step and are counted")
    elif missing := sum(step is None for step, *_ in known):
        found_notes.append(f"{missing} of {len(known)} rows name no step and are left out")
        known = [row for row in known if row[0] is not None]
    steps, epochs, metrics = zip(*known, strict=True)
    keys = {metric: key for values in metrics for metric, (key, _) in values.items()}
    found = [{metric: value for metric, (_, value) in values.items()} for values in metrics]
    order = np.array(steps if numbered else epochs, float)
    kept = _kept_rows(order, found, source, found_notes, merge=numbered)
    final = order[kept].astype(int) if numbered else np.arange(1, len(kept) + 1)
    table = _to_table([found[row] for row in kept], final, found_notes)
    table = _with_updates(table, framework_of(keys), updates_per_rollout)
    return TrainingLog(source, framework_of(keys), table, keys, tuple(found_notes))


def _kept_rows(
    order: np.ndarray, rows: list[dict[str, float]], source: str, notes: list[str], *, merge: bool
) -> list[int]:
    """Places of the rows that count, ascending: not those behind which the log went back.

    With `merge`, rows of one step become its last one; rows of several runs among each other are
    refused.
    """
    back, clashes = int((np.diff(order) < 0).sum()), 0
    later = np.append(np.minimum.accumulate(order[::-1])[::-1][1:], np.inf)
    kept: list[int] = []
    for place in np.flatnonzero(order <= later).tolist():
        if merge and kept and order[kept[-1]] == order[place]:
            before = rows[kept.pop()]
            clash = any(before.get(key, value) != value for key, value in rows[place].items())
            clashes += clash and order[place - 1] == order[place]
            rows[place] = before | rows[place]
        kept.append(place)
    if max(back, clashes) > max(_RESTARTS, _RESTART_SHARE * len(rows)):
        raise DataError(
            f"{source} seems to mix several runs (steps go back {back} times, {clashes} rows "
            "contradict the one before): give one log per run"
        )
    if back:
        left = len(rows) - len(kept)
        notes.append(f"after a restart steps came again: {left} earlier rows are left out")
    return kept


def _to_table(
    rows: Sequence[Mapping[str, float]], steps: np.ndarray, notes: list[str]
) -> pd.DataFrame:
    """Rows with their steps; what is not finite is counted, told and taken out."""
    table = pd.DataFrame(rows)
    faults = np.zeros(len(rows), int)
    for name in _MUST_BE_FINITE:
        bad = np.array([not math.isfinite(row.get(name, 0)) for row in rows])
        for step in steps[bad][:1]:
            notes.append(f"{name} is NaN or infinite in {bad.sum()} rows, first at step {step}")
        faults += bad
    # A single update that was skipped is no fault.
    faults += [row.get("nonfinite_updates", 0) > 1 for row in rows]
    table.insert(0, "step", steps)
    return table.assign(nonfinite=faults).replace([np.inf, -np.inf], np.nan)


def _with_updates(table: pd.DataFrame, framework: str, updates: int | None) -> pd.DataFrame:
    """Add the updates per rollout where they are known; average TRL's rows, which are updates."""
    if updates is None and "updates" in table:
        made = table["updates"].diff() / table["step"].diff()
        return table.assign(updates_per_rollout=made.fillna(table["updates"] / table["step"]))
    if updates is not None and framework == "trl":
        rollouts = table.groupby((table["step"] - 1) // updates)
        last, worst = rollouts["step"].max(), rollouts["nonfinite"].max()
        table = rollouts.mean().assign(step=last, nonfinite=worst).reset_index(drop=True)
    return table if updates is None else table.assign(updates_per_rollout=float(updates))
