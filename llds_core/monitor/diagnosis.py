"""Where a run stands, what it is warned of, the likeliest cause and what to do about it.

Every number of an answer comes from the log or from `presets/alarm_evidence.yaml`, which is
computed from published runs. An alarm without a measured operating point says so.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from llds_core.diagnostics.phases import COLLAPSE_SHARE, WINDOW, detect_phases, windowed_mean
from llds_core.errors import DataError
from llds_core.files import bounded, finite
from llds_core.monitor.detectors import (
    ALARMS,
    DETECTORS,
    EVIDENCE,
    FIRST,
    SEVERITIES,
    Detector,
    beyond_noise,
)
from llds_core.monitor.log_formats import NEARLY, how_to_log
from llds_core.monitor.training_log import TrainingLog, read_log
from llds_core.runs import best_step

_logger = logging.getLogger("llds_core")
PHASES = ("unknown", "stagnation", "decay", "acceleration", "collapse")
_MEANS = {
    "unknown": " (too few rows, or no reward that can be judged: see what cannot be said)",
    "stagnation": " (no decay of likelihood and no collapse found)",
}


@dataclass(frozen=True)
class Alarm:
    """What a detector found, at the first step at which it did."""

    name: str
    step: int
    severity: str  # info, warning or critical
    evidence: str  # where the metrics were at first, at most, at the alarm and at the end
    cause: str
    advice: tuple[str, ...]  # each with the arm and the interval that it rests on
    score: float  # at that step
    threshold: float  # above which it is an alarm
    last: float  # score at the end
    rates: tuple[str, ...]  # how the rule did on each set of labelled runs
    passed: bool = False  # the score has come back: at the end it is no alarm
    standing: int = 1  # rows, up to the end, since which it is one; 0 when it has passed
    beyond_noise: bool | None = None  # of a fall of the reward that stands: no noise between rows

    @property
    def title(self) -> str:
        """Severity, name and step, and whether it has passed."""
        return f"{self.severity.upper()} {self.name}, step {self.step}{', passed' * self.passed}"

    @property
    def measured(self) -> str:
        """Its score, and from where on it is an alarm."""
        return (
            f"score {self.score:.3g}, {self.last:.3g} at the end; alarm above {self.threshold:.3g}"
        )


@dataclass(frozen=True)
class Diagnosis:
    """What a log says about a run."""

    source: str
    framework: str
    rows: int
    last_step: int
    phase: str  # one of `PHASES`; unknown for fewer than nine rows, or without a reward
    alarms: tuple[Alarm, ...]  # those that passed last; the worst first, then the earliest
    cause: str  # the likeliest, empty without a warning
    go_back_to: int | None  # step of a checkpoint, where there is a critical alarm
    missing: tuple[str, ...]  # what cannot be said for lack of a metric, and how to log it
    notes: tuple[str, ...]

    def reaches(self, severity: str, rows: int | None = None) -> bool:
        """Whether an alarm this severe stands. With `rows` it must have stood for so many, and a
        fall of the reward must be beyond the noise. Values that are not finite count whenever they
        came.
        """
        lasting = [a for a in self.alarms if a.standing >= (rows or 1)]
        if rows is not None:
            lasting = [alarm for alarm in lasting if alarm.beyond_noise is not False]
        counted = [*lasting, *(a for a in self.alarms if a.name == "not_finite")]
        level = SEVERITIES.index(severity)
        return any(SEVERITIES.index(alarm.severity) >= level for alarm in counted)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return finite(asdict(self))

    def text(self) -> str:
        """For a terminal."""
        head = f"{self.source}: {self.rows} rows of {self.framework}, to step {self.last_step}"
        lines = [head, f"phase: {self.phase}{self._phase_means()}"]
        lines += [f"{alarm.title}: {alarm.evidence}" for alarm in self.alarms] or ["no alarm"]
        if self.cause:
            lines += [f"a possible cause: {self.cause}", "what to do:"]
            lines += [f"  - {advice}" for advice in self.advice]
        if self.go_back_to is not None:
            lines.append(f"go back to: step {self.go_back_to}")
        lines += [f"cannot be said: {entry}" for entry in self.missing]
        lines += [f"note: {note}" for note in self.notes]
        lines += ["how these rules did on labelled runs (docs/monitor.md):"] * bool(self.alarms)
        for alarm in self.alarms:
            lines += [f"  {alarm.name}, {alarm.measured}", *(f"    {r}" for r in alarm.rates)]
        return "\n".join(lines)

    def _phase_means(self) -> str:
        fall = next((a for a in self.alarms if a.name == "reward_drop" and not a.passed), None)
        if fall and self.phase != "collapse":
            lost = f"{100 * fall.last:.0f} % of the best reward is lost"
            return f" (but {lost}: no collapse is proved)"
        return _MEANS.get(self.phase, "")

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do about the likeliest cause."""
        return next((alarm.advice for alarm in self.alarms if alarm.cause == self.cause), ())


def follow(
    path: Path, *, every: float = 5.0, **options: Any
) -> Iterator[tuple[TrainingLog, Diagnosis]]:
    """A log and its diagnosis whenever it has grown, with the options of `read_log`. A log without
    a metric is waited for; each change reads all of it, so it may be replaced or restarted.
    """
    seen, told = None, ""
    while True:
        try:
            stats = (file.stat() for file in (path, *path.rglob("*")) if file.exists())
            now = [(stat.st_mtime_ns, stat.st_size) for stat in stats]  # links may lead nowhere
            if now != seen:
                seen = now
                log = read_log(path, **options)
                yield log, judge(log)
        except (OSError, DataError) as error:  # a checkpoint may go while it is looked at
            if told != (told := str(error)):
                _logger.warning("waiting: %s", told)
        time.sleep(every)


def judge(log: TrainingLog) -> Diagnosis:
    """Judge a log that was read."""
    phase, notes = _phase(log)
    found = [alarm for each in DETECTORS.values() if (alarm := _alarm(each, log))]
    alarms = sorted(found, key=lambda a: (a.passed, -SEVERITIES.index(a.severity), a.step))
    lasting = [a for a in found if not a.passed and a.severity != "info"]
    fall = next((alarm for alarm in lasting if alarm.name == "reward_drop"), None)
    # A fall is explained by what came before it: warnings that have passed, too, and values that
    # are not finite to the end.
    able = [
        a for a in found if a.severity == "warning" or (a.name == "not_finite" and a in lasting)
    ]
    before = [alarm for alarm in able if fall and alarm.step <= fall.step]
    causes = [a.cause for a in ([*before, fall] if fall else lasting)]
    critical = [alarm.step for alarm in lasting if alarm.severity == "critical"]
    back = _go_back_to(log, min(critical)) if critical else None
    if back is not None and not log.checkpoints:
        notes += (f"no checkpoint was seen: before the alarm the reward was best at {back}",)
    if 2 * log.table.get("reward", log.table["step"]).count() < len(log.table):
        notes += ("most rows have no reward: if each is an update, give --updates-per-rollout",)
    notes += _given_up(log)
    notes += tuple(f"{key}: {NEARLY[key]}" for key in log.keys.values() if key in NEARLY)
    return Diagnosis(
        log.source,
        log.framework,
        len(log.table),
        int(log.table["step"].iloc[-1]),
        phase,
        tuple(alarms),
        causes[0] if causes else "",
        back,
        tuple(_missing(log)),
        log.notes + notes,
    )


def _phase(log: TrainingLog) -> tuple[str, tuple[str, ...]]:
    """The last phase of the rows that have a reward, and what is to be said about it."""
    columns = log.table.reindex(columns=["step", "reward", "loglik_correct"])
    known = columns.dropna(subset="reward")
    phases, means = detect_phases(known), windowed_mean(known["reward"].to_numpy(), WINDOW)
    if not phases or known["reward"].min() < 0:
        return PHASES[0], ()
    if phases[-1].name == "collapse" and means[-1] >= COLLAPSE_SHARE * np.nanmax(means):
        note = f"the reward collapsed at step {phases[-1].first} and has come back"
        return phases[-2].name, (note,)
    return phases[-1].name, ()


def _given_up(log: TrainingLog) -> tuple[str, ...]:
    """What a reward need not show: an agent that has stopped searching."""
    searches, key = log.column("valid_searches"), log.keys.get("valid_searches")
    levels = windowed_mean(searches[np.isfinite(searches)], WINDOW)
    levels = levels[np.isfinite(levels)]
    if key in NEARLY or len(levels) < WINDOW or levels[-1] > 0.1 * levels[0] or levels[0] < 0.5:
        return ()
    return (
        f"it hardly searches any more: {levels[0]:.3g} per response at first, {levels[-1]:.3g} at "
        "the end; what it is rewarded for, it answers from memory",
    )


def _alarm(detector: Detector, log: TrainingLog) -> Alarm | None:
    scores = detector.scores(log)
    row = detector.alarm_row(scores)
    if row is None:
        return None
    step, preset = int(log.table["step"].iloc[row]), ALARMS["detectors"][detector.name]
    known = scores[~np.isnan(scores)]
    standing = int((known[::-1] > detector.threshold).cumprod().sum())
    course, sure = _course(detector, log, row), None
    if standing and detector.name == "reward_drop":
        sure = beyond_noise(log.column("reward"), detector.threshold)
        course += "" if sure else ", which may be noise between rows"
    return Alarm(
        detector.name,
        step,
        detector.severity,
        course,
        preset["cause"],
        tuple(advice_text(entry) for entry in preset["advice"] if _is_open(entry, log)),
        float(scores[row]),
        detector.threshold,
        float(known[-1]),
        tuple(_rates(detector.name)),
        not standing,
        standing,
        sure,
    )


def _course(detector: Detector, log: TrainingLog, row: int) -> str:
    """Where the metrics of a detector were, at its alarm in `row` and else."""
    told = []
    for name in detector.columns:
        key, values = log.keys.get(name, name), log.column(name)
        known = np.isfinite(values)
        levels = windowed_mean(values[known], 1 if detector.first < 3 else WINDOW)
        if not np.isfinite(levels).any():
            continue
        at = levels[known[: row + 1].sum() - 1] if known[: row + 1].any() else np.nan
        first = levels[np.isfinite(levels)][0]
        told.append(
            f"{name}{f' ({key})' * (key != name)} {first:.3g} at first, {np.nanmax(levels):.3g} at "
            f"most, {at:.3g} at the alarm, {levels[-1]:.3g} at the end"
        )
    return " and ".join(told)


def _is_open(entry: Mapping[str, str], log: TrainingLog) -> bool:
    """Whether advice is neither followed already nor impossible."""
    done, several = log.column(entry.get("unless", "")), log.column(entry.get("above_one", ""))
    return not (done > 0).any() and not (several <= 1).any()


def _rates(name: str) -> Iterator[str]:
    """How a detector did on logs of other people, on recipes that its threshold was not chosen on,
    and on other arms of the recipe that it was chosen on.
    """
    found, said = EVIDENCE["detectors"][name], ALARMS["said"]
    public, lead = found["public"], found["median_lead"]
    if public.get("others"):
        yield said["public"].format(logs=public["collapsed"] + public["others"], **public)
    if not found["collapsed"] or not (found["early"] or found["false"]):
        yield "no published run shows it: not measured"
        return
    for recipe, each in found["unseen"].items():
        yield said["unseen"].format(recipe=recipe, **each)
    before = "" if lead is None else f", {lead:g} steps before in the median"
    yield said["chosen_on"].format(recipe=EVIDENCE["recipe"], before=before, **found)


def advice_text(entry: Mapping[str, str]) -> str:
    """A piece of advice with the outcome of its arm: collapses against GRPO's on the same seeds,
    and the difference of last rewards with Student's 95 % interval.
    """
    if "arm" not in entry:
        return f"{entry['do']} (no arm of the study measures it)"
    about = {"study": EVIDENCE["recipe"], **entry}
    found = EVIDENCE["arms"][f"{about['study']}/{about['arm']}"]
    estimate, low, high = (math.nan if v is None else v for v in found["last_reward"])
    reward = bounded(estimate, low, high, "+.2f")
    note = f"; {found['note']}" if found["note"] else ""
    return ALARMS["said"]["advice"].format(**found | about | {"reward": reward, "note": note})


def _go_back_to(log: TrainingLog, alarm: int) -> int | None:
    """The checkpoint before the alarm, or without checkpoints the step, at whose last rows the
    reward was best, of several the last; without a reward the last one.
    """
    steps = log.checkpoints or tuple(log.table["step"].tolist())
    before = [step for step in steps if step < alarm]
    if not before or "reward" not in log.table:
        return before[-1] if before else None
    known = log.table[["step", "reward"]].dropna().to_dict("records")
    return best_step(cast(list[dict[str, Any]], known), before[::-1])


def _missing(log: TrainingLog) -> list[str]:
    """What cannot be said, and how to have what it needs logged."""
    read_by = {"reward": ["phase"]}
    for detector in DETECTORS.values():
        for column in detector.columns:
            read_by.setdefault(column, []).append(detector.name)
    told = []
    for column, names in read_by.items():
        if column not in log.table:
            metric = column.removesuffix("_per_rollout")  # by what is logged
            how = how_to_log(metric, log.framework)
            told.append(f"{', '.join(names)}: {metric} has no value in any row ({how})")
    reward = log.column("reward")
    if np.isfinite(reward).any() and not np.nanmin(reward) >= 0 < np.nanmax(reward):
        why = "goes below 0" if np.nanmin(reward) < 0 else "never rose above 0"
        floor = "its 0 has to mean failure, or --reward-floor say what does"
        told.insert(0, f"phase, reward_drop: the reward {why}, and {floor}")
    elif 0 < np.isfinite(reward).sum() < 3 * WINDOW:
        told.insert(0, f"phase: it needs {3 * WINDOW} rows with a reward")
    short = len(log.table) < FIRST
    return told + [f"any but not_finite: alarms need {FIRST} rows"] * short
