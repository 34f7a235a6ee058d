"""One training log as a table of our metrics, one row per step."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llds_core.errors import ConfigError, DataError, closest
from llds_core.files import project_path
from llds_core.monitor import log_formats as logs
from llds_core.runs.checkpoints import checkpoint_steps

# Of these a value that is not finite is a fault; of others it may mean that there was nothing.
_MUST_BE_FINITE = ("loss", "grad_norm", "entropy", "kl", "reward", "clip_fraction")
_HELD_OUT = r"^(val-core/.+/mean@\d+|eval/all/avg_score|eval_reward)$"  # scores of a validation
COUNTED = "rows name no step and are counted"
PER_EPOCH = "steps start anew in each epoch and are counted"


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
        return self.table.reindex(columns=[metric])[metric].to_numpy(float)


def read_log(
    path: Path,
    *,
    format: str = "auto",
    updates_per_rollout: int | None = None,
    reward_floor: float | None = None,
    reward_key: str | None = None,
    checkpoints: Path | None = None,
) -> TrainingLog:
    """Read a log, a file or the folder of a run, in one of `log_formats.FORMATS`.

    `updates_per_rollout` is for logs that do not say it; of TRL, whose steps are updates, the rows
    of a rollout are then averaged. `reward_floor` is what the worst response gets, from which the
    reward is counted; of logs that have the lowest reward of a batch the lowest one so far is, if
    it is below 0. `reward_key` is the key to judge as the reward, such as that of one of several
    rewards. Checkpoints are looked for beside the log, or in the folder `checkpoints`.
    """
    notes: list[str] = []
    root = project_path(".")
    source = str(path.relative_to(root) if path.is_relative_to(root) else path)
    rows = logs.read_rows(path, format, notes)
    log = to_log(rows, source, notes, updates_per_rollout, reward_floor, reward_key)
    folder = checkpoints or (path if path.is_dir() else path.parent)
    if not checkpoints and re.fullmatch(r"checkpoint-\d+", folder.name):
        folder = folder.parent
    steps = checkpoint_steps(folder / "checkpoint") or logs.saved_steps(folder)
    if checkpoints and not steps:
        raise DataError(f"{checkpoints} holds no checkpoint-<step> or global_step_<step>: name it")
    if {COUNTED, PER_EPOCH} & {*log.notes}:  # of which row a checkpoint is nobody knows
        if checkpoints:
            raise DataError(f"{source} names no step of the training: drop --checkpoints")
        return log
    return replace(log, checkpoints=tuple(steps))


def to_log(
    rows: Iterable[Mapping[str, Any]],
    source: str,
    notes: Sequence[str] = (),
    updates_per_rollout: int | None = None,
    reward_floor: float | None = None,
    reward_key: str | None = None,
) -> TrainingLog:
    """Put logged rows together: by step, the last one of a step counting. The options are those of
    `read_log`; a `ConfigError` for a floor that is not finite.
    """
    if reward_floor is not None and not math.isfinite(reward_floor):
        raise ConfigError(f"reward_floor={reward_floor} is not finite: give the lowest reward")
    rows, said = [*rows], [*notes]
    training = [not logs.of_evaluation(row) for row in rows]
    if others := training.count(False):
        said.append(f"{others} rows of evaluations are left out")
    numbers = logs.numbers_of(rows, said)
    said += _not_judged(numbers, reward_key)
    numbers = numbers[training]
    if reward_key not in numbers:
        reward_key = logs.FLAT.get(reward_key or "", reward_key)
    table, keys = logs.metrics_of(numbers, reward_key)
    if reward_key and "reward" not in keys:
        near = closest(reward_key, {str(key) for row in rows for key in row})
        hint = f'did you mean "{near}"?' if near else "name a key that it logs"
        raise DataError(f'{source} has no number under the key "{reward_key}": {hint}')
    if not keys:
        what = "no row of training" if others else "no row: is it another --format?"
        if any(training):
            what = f"keys: {', '.join([*map(str, rows[training.index(True)])][:5])}"
        what = "; ".join([what, *said])
        raise DataError(f"{source} holds no number of a known metric ({what}): see docs/monitor.md")
    key, lowest = keys.get("reward", ""), reward_floor
    if reward_floor is None and "mean" in key:
        lowest = numbers.get(key.replace("mean", "min"))
    table = table.assign(epoch=numbers.get("epoch", 0.0), lowest=lowest).astype(float)
    table = _one_row_per_step(table.fillna({"epoch": 0}), source, said)
    bad = np.isinf(table.reindex(columns=_MUST_BE_FINITE))
    for name, rows_of_it in bad.loc[:, bad.any()].items():
        step = table["step"][rows_of_it].iloc[0]
        said.append(f"{name} is NaN or infinite in {rows_of_it.sum()} rows, first at step {step}")
    # Mixed precision skips an update whose gradient overflows; three in a row are no such thing.
    bad["grad_norm"] = bad["grad_norm"].rolling(3).sum() == 3
    lowest = table.pop("lowest").cummin().ffill()  # looks back only, as detectors do
    table = table.replace(np.inf, np.nan)
    floor = lowest.clip(upper=0).fillna(0) if reward_floor is None else lowest
    if "reward" in table and floor.any():
        table["reward"] -= floor
        said.append(f"the reward is counted from {floor.iloc[-1]:g}, the lowest of a response")
    skipped = table.get("nonfinite_updates", 0) > 1  # a single one that was skipped is no fault
    table = table.assign(nonfinite=bad.sum(axis=1) + skipped)
    framework = logs.framework_of(keys.values())
    table = _with_updates(table, framework, updates_per_rollout)
    return TrainingLog(source, framework, table, keys, tuple(said))


def _not_judged(numbers: pd.DataFrame, reward_key: str | None) -> list[str]:
    """What is to be said of rewards beside the one that is judged."""
    parts = sorted(numbers.filter(regex="^rewards/.+/mean$"))
    one = f"the reward is a sum ({', '.join(parts)}): --reward-key judges one of them"
    said = [one] if len(parts) > 1 and not reward_key else []
    held_out = numbers.filter(regex=_HELD_OUT).replace(np.inf, np.nan).dropna(axis=1, how="all")
    for key, column in held_out.iloc[:, :3].items():
        scores = column.dropna()
        told = f"first {scores.iloc[0]:.3g}, best {scores.max():.3g}, last {scores.iloc[-1]:.3g}"
        said += [f"{key}, not judged: {told}"] if key != reward_key else []
    return said


def _one_row_per_step(table: pd.DataFrame, source: str, notes: list[str]) -> pd.DataFrame:
    """Rows that count, ascending: not those behind which the log went back. Those of one step
    become its last values; rows of several runs among each other are refused.
    """
    # Rows between rollouts may name no step where those of rollouts do, as on SkyRL's console.
    counted = table.dropna(subset="reward") if "reward" in table else table
    numbered = 2 * counted["step"].count() > len(counted)
    if not numbered:
        notes.append(COUNTED)
    elif missing := int(table["step"].isna().sum()):
        notes.append(f"{missing} of {len(table)} rows name no step and are left out")
        table = table.dropna(subset="step")
    anew = (table["step"].diff() < 0) & (table["epoch"].diff() > 0)
    if numbered and (anew & (table["step"] <= table["step"].iloc[0])).any():
        table = table.assign(step=table.groupby(["epoch", "step"]).ngroup() + 1)
        notes.append(PER_EPOCH)
    order, metrics = table["step" if numbered else "epoch"], table.drop(columns=["step", "epoch"])
    clash = (metrics.diff().abs() > 0).any(axis=1) & (order.diff() == 0) & numbered
    clashes, back = int(clash.sum()), int((order.diff() < 0).sum())
    # In the log of one run few rows go back, or contradict: three, or a fifth, or a twentieth.
    if back > max(3, len(table) / 5) or clashes > max(3, len(table) / 20):
        raise DataError(
            f"{source} seems to mix several runs (steps go back {back} times, {clashes} rows "
            "contradict the one before): give one log per run, sorted by step, one row each"
        )
    kept = table[order <= order[::-1].cummin().shift(fill_value=np.inf)[::-1]]
    if numbered:
        kept = kept.groupby("step", as_index=False).last()
    else:
        kept = kept.assign(step=range(1, len(kept) + 1)).reset_index(drop=True)
    if back:
        left = len(table) - len(kept)
        notes.append(f"after a restart steps came again: {left} earlier rows are left out")
    return kept.drop(columns="epoch").astype({"step": int})


def _with_updates(table: pd.DataFrame, framework: str, updates: int | None) -> pd.DataFrame:
    """Add the updates per rollout where they are known; average TRL's rows, which are updates."""
    if updates is None and "updates" in table:
        made = table["updates"].diff() / table["step"].diff()
        return table.assign(updates_per_rollout=made.fillna(table["updates"] / table["step"]))
    if updates is not None and framework == "trl" and table["step"].diff().median() == 1:
        rollouts = table.groupby((table["step"] - 1) // updates)
        last, worst = rollouts["step"].max(), rollouts["nonfinite"].max()
        table = rollouts.mean().assign(step=last, nonfinite=worst).reset_index(drop=True)
    return table if updates is None else table.assign(updates_per_rollout=float(updates))
