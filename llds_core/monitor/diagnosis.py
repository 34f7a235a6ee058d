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


@dataclass(frozen=True)
class Alarm:
    """What a detector found, at the first step at which it did."""

    name: str
    step: int
    severity: str  # info, warning or critical
    evidence: str  # the numbers, the threshold, and how the rule did on published runs
    cause: str
    advice: tuple[str, ...]  # each with the arm and the interval that it rests on
    passed: bool = False  # the score has come back: at the end it is no alarm
    standing: int = 1  # rows, up to the end, since which it is one; 0 when it has passed
    beyond_noise: bool | None = None  # of a fall of the reward that stands: no noise between rows

    @property
    def title(self) -> str:
        """Severity, name and step, and whether it has passed."""
        return f"{self.severity.upper()} {self.name}, step {self.step}{', passed' * self.passed}"


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
        # One thing per line: the numbers, then what the rule is worth on each recipe.
        lines = [f"{a.title}: " + a.evidence.replace("; ", "\n    ") for a in self.alarms]
        means = " (no decay of likelihood and no collapse found)" * (self.phase == PHASES[1])
        lines = [head, f"phase: {self.phase}{means}", *(lines or ["no alarm"])]
        if self.cause:
            lines += [f"a possible cause: {self.cause}", f"{self.to_do}:"]
            lines += [f"  - {advice}" for advice in self.advice]
        if self.go_back_to is not None:
            lines.append(f"go back to: step {self.go_back_to}")
        lines += [f"cannot be said: {entry}" for entry in self.missing]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    @property
    def to_do(self) -> str:
        """Heading of the advice: a fall that may be noise is to be watched first."""
        unsure = any(alarm.beyond_noise is False for alarm in self.alarms)
        return "what to do" + ", if the fall lasts" * unsure

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
            files = [*path.rglob("*")] if path.is_dir() else [path]
            stats = [file.stat() for file in files if file.exists()]  # links may lead nowhere
            now = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
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
    # A fall is explained by what came before it, whether it has passed or not.
    if phase == "collapse" and fall and not fall.beyond_noise:
        notes += ("the collapse is read off means of three rows, and may be noise between them",)
    before = [a for a in found if fall and a.step <= fall.step and a.severity == "warning"]
    causes = [a.cause for a in ([*before, fall] if fall else lasting)]
    critical = [a.step for a in ([fall] if fall else lasting) if a.severity == "critical"]
    back = _go_back_to(log, critical[0]) if critical else None
    if back is not None and not log.checkpoints:
        notes += (f"no checkpoint was seen: before the alarm the reward was best at {back}",)
    if 2 * log.table.get("reward", log.table["step"]).count() < len(log.table):
        notes += ("most rows have no reward: if each is an update, give --updates-per-rollout",)
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


def _alarm(detector: Detector, log: TrainingLog) -> Alarm | None:
    scores = detector.scores(log)
    row = detector.alarm_row(scores)
    if row is None:
        return None
    step, preset = int(log.table["step"].iloc[row]), ALARMS["detectors"][detector.name]
    advice = [a for a in preset["advice"] if not (log.column(a.get("unless", "")) > 0).any()]
    known = scores[~np.isnan(scores)]
    standing = int((known[::-1] > detector.threshold).cumprod().sum())
    evidence, sure = _evidence(detector, log, scores[row], known[-1]), None
    if standing and detector.name == "reward_drop":
        sure = beyond_noise(log.column("reward"), detector.threshold)
        evidence = evidence if sure else f"the fall may be noise between rows; {evidence}"
    return Alarm(
        detector.name,
        step,
        detector.severity,
        evidence,
        preset["cause"],
        tuple(map(advice_text, advice)),
        not standing,
        standing,
        sure,
    )


def _evidence(detector: Detector, log: TrainingLog, score: float, last: float) -> str:
    read = {name: log.keys.get(name, name) for name in detector.columns if name in log.table}
    names = [name if key == name else f"{name} ({key})" for name, key in read.items()]
    now = f", at the end {last:.3g}" if last != score else ""
    unit = "" if detector.first < 3 else f" over {WINDOW} rows"
    return (
        f"{' and '.join(names)}: score {score:.3g}{unit}, alarm above {detector.threshold:.3g}"
        f"{now}; {operating_point(detector.name)}"
    )


def operating_point(name: str) -> str:
    """How a detector did on published runs, thresholds chosen on other arms, and on recipes that
    its threshold was not chosen on.
    """
    found = EVIDENCE["detectors"][name]
    public, others = found["public"], ""
    if public.get("others"):
        logs = public["collapsed"] + public["others"]
        others = (
            f"on {logs} logs of other people: before {public['early']} of {public['collapsed']} "
            f"collapses, and in {public['ever']} of {public['others']} runs without one; "
        )
    if not found["collapsed"] or not (found["early"] or found["false"]):
        return f"{others}no published run shows it: not measured"
    lead = found["median_lead"]
    before = "" if lead is None else f", {lead:g} steps before in the median"
    unseen = others + "".join(
        f"on recipe {recipe}, new to its threshold: before {each['early']} of "
        f"{each['collapsed']} collapses, in {each['false']} of {each['healthy']} healthy runs "
        f"({each['false_ever']} at any row), in {each['declined_named']} of {each['declined']} "
        "that declined without a collapse; "
        for recipe, each in found["unseen"].items()
    )
    return (
        f"{unseen}on recipe {EVIDENCE['recipe']}, whose other arms gave the threshold: before "
        f"{found['early']} of {found['collapsed']} collapses {found['early_share']}{before}, in "
        f"{found['false']} of {found['healthy']} healthy runs {found['false_share']}, in "
        f"{found['declined_named']} of {found['declined']} that declined without a collapse"
    )


def advice_text(entry: Mapping[str, str]) -> str:
    """A piece of advice with the outcome of its arm: collapses against GRPO's on the same seeds,
    and the difference of last rewards with Student's 95 % interval.
    """
    if "arm" not in entry:
        return f"{entry['do']} (no arm of the study measures it)"
    study = entry.get("study", EVIDENCE["recipe"])
    found = EVIDENCE["arms"][f"{study}/{entry['arm']}"]
    estimate, low, high = (math.nan if v is None else v for v in found["last_reward"])
    reward = bounded(estimate, low, high, "+.2f")
    note = f"; {found['note']}" if found["note"] else ""
    return (
        f"{entry['do']}: {found['collapsed']} of {found['seeds']} seeds collapsed "
        f"{found['share']}, GRPO's {found['grpo_collapsed']} of {found['seeds']} on the same "
        f"seeds; last reward {reward} against GRPO's (arm {entry['arm']} of study "
        f"{study}{note})"
    )


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
    needs = {each.name: each.columns for each in DETECTORS.values()} | {"phase": ("reward",)}
    lacking: dict[str, list[str]] = {}
    for name, columns in needs.items():
        for column in columns:
            if column not in log.table:
                metric = "updates" if column == "updates_per_rollout" else column
                lacking.setdefault(metric, []).append(name)
    told = [
        f"{', '.join(names)}: {metric} has no value in any row ("
        f"{how_to_log(metric, log.framework)})"
        for metric, names in lacking.items()
    ]
    reward = log.column("reward")
    if np.isfinite(reward).any() and not np.nanmin(reward) >= 0 < np.nanmax(reward):
        why = "goes below 0" if np.nanmin(reward) < 0 else "never rose above 0"
        floor = "its 0 has to mean failure, or --reward-floor say what does"
        told.insert(0, f"reward_drop, phase: the reward {why}, and {floor}")
    short = len(log.table) < FIRST
    return [f"any but not_finite: alarms need {FIRST} rows"] * short + told
