"""How early, and how falsely, detectors warn: scored on labelled runs.

    python -m llds_core.monitor.alarm_benchmark STUDY [STUDY ...]

A study is a folder of published runs (`runs.csv`, `runs/<arm>-seed<k>.csv.gz`). The labels go to
`index.csv` of `results/published/collapse-runs`, the tables beside it, thresholds and what advice
rests on into `presets/alarm_evidence.yaml`.

- *Collapsed* runs collapsed by `diagnostics.phases`; an alarm at an earlier step is early.
- *Healthy* runs did not, and their lowest reward after the best is 0.6 of it or more; any alarm
  within the first 30 steps is false.
- *Declined* ones fell lower. They count neither way; how many a detector names is told.

On the recipe that thresholds were chosen on, an arm is judged by a threshold chosen on the other
arms. On any other recipe the published thresholds hold, whatever comes out.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import binomtest

from llds_core.diagnostics.phases import WINDOW, windowed_mean
from llds_core.errors import DataError
from llds_core.files import project_path, write_table, write_text
from llds_core.monitor.detectors import ALARMS, DETECTORS, Detector, _over_start
from llds_core.monitor.training_log import TrainingLog, read_log

PUBLISHED = Path("results/published")
DATA_SET = PUBLISHED / "collapse-runs"
HEALTHY = 0.6
RULE = "clip_saturation"
_HORIZON: int = ALARMS["horizon"]
_QUANTILE: float = ALARMS["quantile"]
_EVIDENCE = Path("llds_core/presets/alarm_evidence.yaml")
_EXTERNAL = "rl_doctor_alarms.csv"


def gradient_growth(grad_norm: np.ndarray) -> np.ndarray:
    """Gradient norm over that of the start: a rule of the paper that is no detector here."""
    return _over_start(grad_norm)


def clip_times_entropy(clip_fraction: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    """The two best signals together, as a product: tried, and not better than the first alone."""
    return windowed_mean(clip_fraction, WINDOW) * _over_start(entropy)


# Scored beside the detectors, by the same rules.
OTHERS = {
    "gradient_growth": Detector("gradient_growth", gradient_growth, ("grad_norm",), "info", np.inf),
    "clip_times_entropy": Detector(
        "clip_times_entropy", clip_times_entropy, ("clip_fraction", "entropy"), "info", np.inf
    ),
}


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """A run of the data set; columns of `index.csv`, and its log."""

    run: str
    arm: str
    recipe: str
    label: str
    collapse_step: int | None
    root: Path

    @cached_property
    def log(self) -> TrainingLog:
        """Its series."""
        name = self.run.removeprefix(f"{self.recipe}/")
        return read_log(self.root / self.recipe / "runs" / f"{name}.csv.gz")

    def within(self, scores: np.ndarray) -> np.ndarray:
        """Scores that count: before the collapse, or within the horizon."""
        steps = self.log.table["step"].to_numpy()
        end = self.collapse_step if self.collapse_step is not None else _HORIZON + 1
        return scores[steps < end]


def label_runs(study: Path, published: Path) -> pd.DataFrame:
    """Rows of `index.csv` of the runs of a published study."""
    file = study / "runs.csv"
    if not file.is_file():
        raise DataError(f"{file} does not exist: name a folder of published runs")
    table = pd.read_csv(file)
    recipe = study.resolve().relative_to(published.resolve()).as_posix()
    healthy = ~(table["lowest_after_best"] < HEALTHY)
    label = np.where(healthy, "healthy", "declined")
    return pd.DataFrame(
        {
            "run": [f"{recipe}/{a}-seed{s}" for a, s in table[["method", "seed"]].to_numpy()],
            "arm": table["method"],
            "recipe": recipe,
            "seed": table["seed"],
            "label": np.where(table["collapse_step"].notna(), "collapsed", label),
            "collapse_step": table["collapse_step"].astype("Int64"),
            "steps": table["steps"],
        }
    )


def load_labelled(data_set: Path, recipe: str | None = None) -> list[LabelledRun]:
    """The runs of the data set, or those of one recipe."""
    table = pd.read_csv(data_set / "index.csv", dtype={"collapse_step": "Int64"})
    return [
        LabelledRun(
            row.run,
            row.arm,
            row.recipe,
            row.label,
            None if pd.isna(row.collapse_step) else int(row.collapse_step),
            data_set.parent,
        )
        for row in table.itertuples()
        if recipe in (None, row.recipe)
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
    by_label = {
        label: [run for run in runs if run.label == label]
        for label in ("collapsed", "healthy", "declined")
    }
    leads = [
        run.collapse_step - alarms[run.run]
        for run in by_label["collapsed"]
        if run.collapse_step is not None and alarms.get(run.run, np.inf) < run.collapse_step
    ]
    false = sum(alarms.get(run.run, np.inf) <= _HORIZON for run in by_label["healthy"])
    row: dict[str, Any] = {}
    for name, count, label in (("early", len(leads), "collapsed"), ("false", false, "healthy")):
        row |= {label: len(by_label[label]), name: count}
        row |= dict(zip((f"{name}_low", f"{name}_high"), exact(count, len(by_label[label]))))
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


def benchmark(
    runs: Sequence[LabelledRun], detectors: Mapping[str, Detector] | None = None
) -> pd.DataFrame:
    """One row per recipe and detector: `outcome`, and how the threshold was come by."""
    rows = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        chosen = [run for run in runs if run.recipe == recipe]
        known = ALARMS["chosen_on"] == recipe
        for name, detector in (detectors or DETECTORS | OTHERS).items():
            how = ALARMS["detectors"].get(name, {}).get("threshold", "quantile")
            measured = [run for run in chosen if detector.reads(run.log)]
            scores = scores_of(detector, measured)
            if known:
                thresholds = held_out(how, measured, scores)
            else:
                thresholds = dict.fromkeys({run.arm for run in measured}, detector.threshold)
            row = {"recipe": recipe, "detector": name, "threshold": detector.threshold}
            row["judged_by"] = "arms held out" if known and isinstance(how, str) else "fixed"
            rows.append(row | outcome(measured, alarm_steps(measured, scores, thresholds)))
    return pd.DataFrame(rows)


def external(runs: Sequence[LabelledRun], file: Path) -> pd.DataFrame:
    """Outcomes of alarms that another tool gave: a table of `tool,run,name,severity,step`."""
    table = pd.read_csv(file)
    rows = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        chosen = [run for run in runs if run.recipe == recipe]
        mine = table[table["run"].isin([run.run for run in chosen])]
        for (tool, severity), group in mine.groupby(["tool", "severity"]):
            for name, part in [("any", group), *group.groupby("name")]:
                first = part.groupby("run")["step"].min().to_dict()
                about = {"recipe": recipe, "detector": f"{tool}: {name}, {severity}"}
                rows.append(about | {"judged_by": "its own"} | outcome(chosen, first))
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
            row["early"] = found["early"] / max(found["collapsed"], 1)
            row["false"] = found["false"] / max(found["healthy"], 1)
            rows.append(row | {"median_lead": found["median_lead"]})
    return pd.DataFrame(rows)


def saved_compute(runs: Sequence[LabelledRun], alarms: Mapping[str, int]) -> pd.DataFrame:
    """What stopping at the alarm and going back to the best checkpoint would have changed, by label
    of the runs that it would have stopped.

    `steps_saved` is the share of the steps of all these runs; rewards are means of three steps:
    the best up to the alarm, the best of the whole run, and the last.
    """
    rows = []
    for label in ("collapsed", "declined", "healthy"):
        of_label = [run for run in runs if run.label == label]
        stopped = [run for run in of_label if run.run in alarms]
        parts = []
        for run in stopped:
            steps = run.log.table["step"].to_numpy()
            reward = windowed_mean(run.log.column("reward"), WINDOW)
            until = reward[steps <= alarms[run.run]]
            parts.append((len(steps) - len(until), np.nanmax(until), np.nanmax(reward), reward[-1]))
        made = sum(len(run.log.table) for run in of_label)
        values = np.array(parts, float).reshape(-1, 4)
        row = {"label": label, "runs": len(of_label), "stopped": len(stopped)}
        row["steps_saved"] = float(values[:, 0].sum() / made) if made else np.nan
        names = ("best_before_alarm", "best_of_run", "last")
        means = values[:, 1:].mean(0) if len(values) else np.full(3, np.nan)
        rows.append(row | dict(zip(names, means)))
    return pd.DataFrame(rows)


def arm_outcomes(study: Path) -> dict[str, dict[str, Any]]:
    """What advice rests on, by arm: a row of `effects.csv` against the baseline's same seeds."""
    table = pd.read_csv(study / "effects.csv").drop_duplicates("arm")
    names = ("seeds", "collapsed", "grpo_collapsed")
    outcomes: dict[str, dict[str, Any]] = {}
    for row in table.to_dict("records"):
        found: dict[str, Any] = {name: int(row[name]) for name in names}
        found["last_reward"] = [
            None if pd.isna(row[key]) else float(row[key])
            for key in ("last_reward", "last_reward_low", "last_reward_high")
        ]
        found["note"] = "" if pd.isna(row["note"]) else row["note"]
        outcomes[row["arm"]] = found
    return outcomes


def evidence(runs: Sequence[LabelledRun], study: Path) -> dict[str, Any]:
    """What `presets/alarm_evidence.yaml` holds: thresholds chosen on all runs of the recipe,
    outcomes with arms held out, and outcomes of the arms that advice names.
    """
    detectors: dict[str, Any] = {}
    for name, detector in DETECTORS.items():
        how = ALARMS["detectors"][name]["threshold"]
        measured = [run for run in runs if detector.reads(run.log)]
        scores = scores_of(detector, measured)
        found = outcome(measured, alarm_steps(measured, scores, held_out(how, measured, scores)))
        kept = ("collapsed", "early", "median_lead", "healthy", "false")
        lead = found["median_lead"]
        found |= {"median_lead": None if np.isnan(lead) else lead}
        threshold = float(f"{choose_threshold(how, measured, peaks_of(measured, scores)):.6g}")
        detectors[name] = {"threshold": threshold} | {key: found[key] for key in kept}
    entries = [entry for each in ALARMS["detectors"].values() for entry in each["advice"]]
    named, all_arms = {e["arm"] for e in entries if "arm" in e}, arm_outcomes(study)
    arms = {arm: all_arms[arm] for arm in sorted(named)}
    return {"recipe": ALARMS["chosen_on"], "detectors": detectors, "arms": arms}


def main(arguments: Sequence[str]) -> None:
    """Write the data set, its tables and the evidence of alarms from published studies."""
    published, data_set = project_path(PUBLISHED), project_path(DATA_SET)
    studies = [project_path(name) for name in arguments]
    if not studies:
        raise SystemExit(__doc__)
    labelled = pd.concat([label_runs(study, published) for study in studies], ignore_index=True)
    write_table(data_set / "index.csv", labelled)
    runs = load_labelled(data_set)
    chosen = [run for run in runs if run.recipe == ALARMS["chosen_on"]]
    found: dict[str, Any] = {}
    if chosen:
        found = evidence(chosen, published / ALARMS["chosen_on"])
        head = f"# Written by llds_core.monitor.alarm_benchmark from study {found['recipe']}.\n"
        text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=100)
        write_text(project_path(_EVIDENCE), head + text)
    detectors = {
        name: replace(each, threshold=found["detectors"][name]["threshold"]) if found else each
        for name, each in DETECTORS.items()
    }
    tables = [benchmark(runs, detectors | OTHERS)]
    if (data_set / _EXTERNAL).is_file():
        tables.append(external(runs, data_set / _EXTERNAL))
    write_table(data_set / "benchmark.csv", pd.concat(tables, ignore_index=True))
    curves, saved = [], []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        of_recipe = [run for run in runs if run.recipe == recipe]
        names = [RULE, "entropy_rise", "kl_drift", "likelihood_displacement", "reward_drop"]
        curve = operating_curve(of_recipe, [*names, "gradient_growth"])
        curves.append(curve.assign(recipe=recipe))
        scores = scores_of(rule := detectors[RULE], of_recipe)
        thresholds = (
            held_out("quantile", of_recipe, scores)
            if recipe == ALARMS["chosen_on"]
            else dict.fromkeys({run.arm for run in of_recipe}, rule.threshold)
        )
        alarms = alarm_steps(of_recipe, scores, thresholds)
        saved.append(saved_compute(of_recipe, alarms).assign(recipe=recipe, detector=RULE))
    write_table(data_set / "operating_curve.csv", pd.concat(curves))
    write_table(data_set / "saved_compute.csv", pd.concat(saved))
    print(f"{len(runs)} runs: {data_set}")


if __name__ == "__main__":
    main(sys.argv[1:])
