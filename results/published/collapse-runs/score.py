"""How early, and how falsely, a detector warns: scored on the labelled runs beside this file.

    python results/published/collapse-runs/score.py [module:function]

prints the table of the monitor's detectors, or the row of a score of yours: a pure function from
columns of `metrics.jsonl`, named as its arguments, to a score per row. Its threshold is chosen.

- *Collapsed* runs collapsed by `diagnostics.phases`; an alarm at an earlier step is early.
- *Healthy* runs did not, and their lowest reward after the best is 0.6 of it or more; any alarm
  within the first 30 steps is false.
- *Declined* ones fell lower. They count neither way; how many a detector names is told.

On the recipe that thresholds were chosen on, an arm is judged by a threshold chosen on the other
arms. On any other recipe the published thresholds hold, whatever comes out.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from llds_core.diagnostics.phases import WINDOW, windowed_mean
from llds_core.monitor.detectors import (
    ALARMS,
    DETECTORS,
    PATIENCE,
    Detector,
    beyond_noise,
    over_start,
)
from llds_core.monitor.training_log import TrainingLog, read_log

DATA_SET = Path(__file__).resolve().parent
# Rules that a registration fixed, the present one last, and the time after which a run has to have
# begun to be new to it. The second was made when runs of `desk` were known already.
REGISTERED = {"clip_saturation": "", "reward_drop": "2026-11-28T08:59:30+00:00"}
RULE = [*REGISTERED][-1]
LABELS = ("collapsed", "healthy", "declined")
PUBLIC = DATA_SET / "public_logs.csv"
NOT_LOGGED = -1  # there, in a column of first alarms, where 0 is no alarm
_HORIZON: int = ALARMS["horizon"]
_QUANTILE: float = ALARMS["quantile"]


def gradient_growth(grad_norm: np.ndarray) -> np.ndarray:
    """Gradient norm over that of the start: a rule of the paper that is no detector here."""
    return over_start(grad_norm)


def clip_times_entropy(clip_fraction: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    """The two best signals together, as a product: tried, and not better than the first alone."""
    return windowed_mean(clip_fraction, WINDOW) * over_start(entropy)


# Scored beside the detectors, by the same rules.
OTHERS = {each.name: each for each in map(Detector.of, (gradient_growth, clip_times_entropy))}


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """A run of the data set: a row of `index.csv`, its log, and the folder of all recipes."""

    run: str
    arm: str
    recipe: str
    label: str
    collapse_step: int | None
    root: Path

    @cached_property
    def log(self) -> TrainingLog:
        """Its series, columns that no detector reads included."""
        name = self.run.removeprefix(f"{self.recipe}/")
        file = self.root / self.recipe / "runs" / f"{name}.csv.gz"
        log = read_log(file)
        others = pd.read_csv(file).drop(columns=[*log.keys.values()]).dropna(axis=1, how="all")
        return replace(log, table=log.table.merge(others, on="step"))

    @property
    def started(self) -> str:
        """When it began, in UTC: ISO 8601, from its manifest."""
        file = self.root / self.recipe / f"runs/{self.run.removeprefix(f'{self.recipe}/')}.json"
        return str(json.loads(file.read_text("utf-8"))["started"])

    def within(self, scores: np.ndarray) -> np.ndarray:
        """Scores that count: before the collapse, or within the horizon."""
        steps = self.log.table["step"].to_numpy()
        end = self.collapse_step if self.collapse_step is not None else _HORIZON + 1
        return scores[steps < end]


def load_labelled(data_set: Path) -> list[LabelledRun]:
    """The runs of the data set."""
    table = pd.read_csv(data_set / "index.csv", dtype={"collapse_step": "Int64"})
    about = table[["run", "arm", "recipe", "label"]].to_numpy().tolist()
    steps = [None if pd.isna(step) else int(step) for step in table["collapse_step"]]
    return [
        LabelledRun(*row, step, data_set.parent) for row, step in zip(about, steps, strict=True)
    ]


Scored = Mapping[str, np.ndarray]


def scores_of(detector: Detector, runs: Iterable[LabelledRun]) -> dict[str, np.ndarray]:
    """Scores (n,) by run."""
    return {run.run: detector.scores(run.log) for run in runs}


def peaks_of(runs: Iterable[LabelledRun], scores: Scored) -> dict[str, float]:
    """Highest score that counts, by run; 0 without any."""
    counted = {run.run: run.within(scores[run.run]) for run in runs}
    return {name: float(np.fmax.reduce(s, initial=0.0)) for name, s in counted.items()}


def choose_threshold(
    how: str | float,
    runs: Sequence[LabelledRun],
    peaks: Mapping[str, float],
    quantile: float = _QUANTILE,
) -> float:
    """Threshold on these runs; see `presets/alarms.yaml`. Infinite where there are none."""
    healthy = sorted(peaks[run.run] for run in runs if run.label == "healthy")
    if how == "quantile":
        return healthy[min(int(quantile * len(healthy)), len(healthy) - 1)] if healthy else np.inf
    if how == "safe":
        least = min((peaks[run.run] for run in runs if run.label == "collapsed"), default=np.inf)
        return max((peak for peak in healthy if peak < least), default=np.inf)
    return float(how)


def held_out(
    how: str | float, runs: Sequence[LabelledRun], scores: Scored, quantile: float = _QUANTILE
) -> dict[str, float]:
    """By arm, the threshold chosen on the runs of the other arms."""
    peaks = peaks_of(runs, scores)
    return {
        arm: choose_threshold(how, [r for r in runs if r.arm != arm], peaks, quantile)
        for arm in {run.arm for run in runs}
    }


def alarm_steps(
    runs: Sequence[LabelledRun], scores: Scored, thresholds: Mapping[str, float]
) -> dict[str, int]:
    """First step with an alarm by run, of runs that have one; thresholds are by arm."""
    found = {}
    for run in runs:
        rows = np.flatnonzero(scores[run.run] > thresholds[run.arm])
        if len(rows):
            found[run.run] = int(run.log.table["step"].iloc[rows[0]])
    return found


def outcome(runs: Sequence[LabelledRun], alarms: Mapping[str, int]) -> dict[str, Any]:
    """Early and false alarms with exact (Clopper-Pearson) 95 % intervals, and the median lead."""
    by_label = {label: [run for run in runs if run.label == label] for label in LABELS}
    leads = [
        run.collapse_step - alarms[run.run]
        for run in by_label["collapsed"]
        if run.collapse_step is not None and alarms.get(run.run, np.inf) < run.collapse_step
    ]
    false = sum(alarms.get(run.run, np.inf) <= _HORIZON for run in by_label["healthy"])
    row: dict[str, Any] = {}
    for name, count, label in (("early", len(leads), "collapsed"), ("false", false, "healthy")):
        low, high = exact(count, len(by_label[label]))
        row |= {label: len(by_label[label]), name: count}
        row |= {f"{name}_low": low, f"{name}_high": high}
    row["early_by_3"] = sum(lead >= 3 for lead in leads)
    row["median_lead"] = float(np.median(leads)) if leads else np.nan
    row["false_ever"] = sum(run.run in alarms for run in by_label["healthy"])
    named = sum(run.run in alarms for run in by_label["declined"])
    return row | {"declined": len(by_label["declined"]), "declined_named": named}


def exact(count: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; the whole range of none."""
    if not of:
        return 0.0, 1.0
    bounds = binomtest(count, of).proportion_ci(0.95, method="exact")
    return float(bounds.low), float(bounds.high)


def judged(runs: Sequence[LabelledRun], detector: Detector) -> dict[str, int]:
    """Alarms by run of one recipe, by the protocol: arms held out, or the published threshold."""
    how, scores = _how(detector.name), scores_of(detector, runs)
    if any(run.recipe != ALARMS["chosen_on"] for run in runs):
        return alarm_steps(runs, scores, dict.fromkeys({r.arm for r in runs}, detector.threshold))
    return alarm_steps(runs, scores, held_out(how, runs, scores))


def _how(name: str) -> str | float:
    return ALARMS["detectors"].get(name, {}).get("threshold", "quantile")


def auc(runs: Sequence[LabelledRun], detector: Detector) -> float:
    """Chance that a collapsed run peaks above a healthy one, ties half: without a threshold."""
    peaks = peaks_of(runs, scores_of(detector, runs))
    of = {label: [peaks[r.run] for r in runs if r.label == label] for label in LABELS}
    pairs = [(a > b) + 0.5 * (a == b) for a in of["collapsed"] for b in of["healthy"]]
    return float(np.mean(pairs)) if pairs else np.nan


def benchmark(
    runs: Sequence[LabelledRun], detectors: Mapping[str, Detector] | None = None
) -> pd.DataFrame:
    """One row per recipe and detector: `outcome` on the runs that log what it reads."""
    rows = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        for name, detector in (detectors or DETECTORS | OTHERS).items():
            part = [run for run in runs if run.recipe == recipe and detector.reads(run.log)]
            fixed = recipe != ALARMS["chosen_on"] or not isinstance(_how(name), str)
            row = {"recipe": recipe, "detector": name, "threshold": detector.threshold}
            row |= {"judged_by": "fixed" if fixed else "arms held out", "auc": auc(part, detector)}
            rows.append(row | outcome(part, judged(part, detector)))
    return pd.DataFrame(rows)


def operating_curve(runs: Sequence[LabelledRun], names: Sequence[str]) -> pd.DataFrame:
    """Shares of early and of false alarms as the threshold moves, arms held out: one row per
    detector and quantile of the healthy runs of other arms.
    """
    rows = []
    for name in names:
        detector = (DETECTORS | OTHERS)[name]
        scores = scores_of(detector, runs)
        for quantile in np.linspace(0.5, 1, 26):
            thresholds = held_out("quantile", runs, scores, float(quantile))
            found = outcome(runs, alarm_steps(runs, scores, thresholds))
            row = {"detector": name, "quantile": round(float(quantile), 4)}
            for key, label in (
                ("early", "collapsed"),
                ("early_by_3", "collapsed"),
                ("false", "healthy"),
            ):
                row[key] = found[key] / max(found[label], 1)
            rows.append(row | {"median_lead": found["median_lead"]})
    return pd.DataFrame(rows)


def end_row(
    log: TrainingLog, sure: Callable[[np.ndarray, float], bool] = beyond_noise
) -> int | None:
    """Row at which `stop_at` ends a run for its reward: the first at which the alarm has stood for
    `PATIENCE` rows and `sure` says of the rewards so far that the fall is no noise.
    """
    detector, reward = DETECTORS[RULE], log.column("reward")
    scores, threshold = detector.scores(log), detector.threshold
    known = np.flatnonzero(np.isfinite(scores))
    stood = pd.Series(scores[known] > threshold).rolling(PATIENCE).sum() == PATIENCE
    for end in known[stood]:
        if sure(reward[: end + 1], threshold):
            return int(end)
    return None


def public_counts(table: pd.DataFrame) -> pd.DataFrame:
    """One row per detector, of the rows of `public_logs.csv` that have a label and log what it
    reads: `early` of `collapsed`, and of the `others` those with an alarm in the first rows
    (`within`) and `ever`.
    """
    rows = []
    for name in DETECTORS:
        part = table[table["label"].isin(LABELS) & (table[name] != NOT_LOGGED)]
        fell, rest = part[part["label"] == "collapsed"], part[part["label"] != "collapsed"]
        alarms = rest.loc[rest[name] > 0, name]
        early = int(((fell[name] > 0) & (fell[name] < fell["collapse_row"])).sum())
        row = {"detector": name, "collapsed": len(fell), "early": early, "others": len(rest)}
        rows.append(row | {"within": int((alarms <= _HORIZON).sum()), "ever": len(alarms)})
    return pd.DataFrame(rows).set_index("detector")


def main(arguments: Sequence[str]) -> None:
    """Print the table of all detectors, or of the one that is named."""
    chosen = None
    if arguments:
        module, _, name = arguments[0].partition(":")
        sys.path.insert(1, str(Path.cwd()))  # where the command is given
        chosen = {name: Detector.of(getattr(importlib.import_module(module), name))}
    on = ALARMS["chosen_on"]
    runs = [run for run in load_labelled(DATA_SET) if chosen is None or run.recipe == on]
    for detector in (chosen or {}).values():
        if strange := set(detector.columns) - set(runs[0].log.table):
            raise SystemExit(f"no run logs {', '.join(sorted(strange))}: see metrics.yaml")
    print(benchmark(runs, chosen).to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main(sys.argv[1:])
