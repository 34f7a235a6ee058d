"""What the monitor says of training logs that other people made.

    python results/published/collapse-runs/public_logs.py [FIRST SECOND THIRD]

Logs of the three folders are judged by `PREREGISTERED-3.md`, `-4.md` and `-5.md`. Each folder has
an `index.csv` (`repository,commit,path,file,kind`, and `floor`, the lowest reward of a response
where the repository tells it) and the logs that it names by `file`: they are other people's, and
are not part of this repository. The outcome goes into `public_logs.csv`, one row per log, and from
there, also without folders, into `docs/monitor.md`.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from make import HEALTHY, LEAST, PAGE, with_numbers
from score import LABELS, NOT_LOGGED, PUBLIC, RULE, end_row, exact, public_counts

from llds_core.diagnostics.phases import (
    WINDOW,
    collapse_row,
    lowest_after_best,
    windowed_mean,
)
from llds_core.errors import DataError
from llds_core.files import write_table, write_text
from llds_core.monitor.detectors import DETECTORS, PATIENCE, beyond_noise
from llds_core.monitor.training_log import TrainingLog, read_log

ENDS = {
    "ends": "six rows",
    "ends_registered": "six rows, and a fall in steady means (registered)",
    "ends_now": "six rows, and a fall beyond the noise (as it waits now)",
}
# Means that labels are read off: a prefix of columns, and how many rows they take.
MEANS = {"": "three rows", "steady_": "as many as the noise asks for"}
GATHERED = ("first", "second", "third")
ABOUT = ["repository", "commit", "path", "kind", "framework", "rows", "label", "collapse_row"]
STOPS = [f"{each}{later}" for each in ENDS for later in ("", "_later", "_steady_later")]
FOUND = ["lowest_after_best", *DETECTORS, "stands", "steady_label", *STOPS, "not_read"]


def judged(log: TrainingLog) -> dict[str, Any]:
    """Labels of a log, by detector the row (from 1) of its first alarm, and where `stop_at` ends
    it: rows that have a reward.
    """
    known = np.isfinite(log.column("reward"))
    reward = log.column("reward")[known]
    # Alarms count by rows that have a reward: there are the collapse and the horizon.
    reached = np.maximum(known.cumsum(), 1)
    row: dict[str, Any] = {"framework": log.framework, "rows": len(reward)}
    row |= _label(reward, WINDOW)
    window = steady_window(reward)
    row["steady_label"] = "not judged" if window is None else _label(reward, window)["label"]
    for name, detector in DETECTORS.items():
        scores = detector.scores(log)
        first = detector.alarm_row(scores)
        alarm = 0 if first is None else int(reached[first])
        row[name] = alarm if detector.reads(log) else NOT_LOGGED
        if name == RULE:
            row["stands"] = bool((scores[np.isfinite(scores)][-1:] > detector.threshold).any())
    rules = (lambda reward, threshold: True, steady_fall, beyond_noise)
    for name, rule in zip(ENDS, rules, strict=True):
        end = end_row(log, rule)
        if end is not None:
            row[name] = int(reached[end])
            row[f"{name}_later"] = _later(reward, row[name], WINDOW)
            if window is not None:
                row[f"{name}_steady_later"] = _later(reward, row[name], window)
    return row


def steady_window(values: np.ndarray) -> int | None:
    """How many of `values` (n,) make a mean whose standard error is at most a tenth of the best
    such mean, three or more; None where there are too few, or no mean is positive.
    """
    rows = WINDOW
    while rows <= len(values):
        best = np.convolve(values, np.ones(rows), "valid").max() / rows
        if best <= 0:
            return None
        needed = np.mean(np.diff(values) ** 2) / 2 / (0.1 * best) ** 2
        if needed <= rows:
            return rows
        rows = int(min(np.ceil(needed), len(values) + 1))
    return None


def steady_fall(reward: np.ndarray, threshold: float) -> bool:
    """The rule that `PREREGISTERED-4.md` fixed: whether the last of such means has lost more than
    `threshold` of the best.
    """
    known = reward[np.isfinite(reward)]
    if (rows := steady_window(known)) is None:
        return False
    sums = np.convolve(known, np.ones(rows), "valid")
    return bool(sums.max() - sums[-1] > threshold * sums.max())


def _label(reward: np.ndarray, window: int) -> dict[str, Any]:
    lowest = lowest_after_best(reward, window)
    if np.isnan(lowest) or reward.min() < 0:
        return {"label": "not judged", "collapse_row": None, "lowest_after_best": np.nan}
    collapse = collapse_row(reward, window, rows=PATIENCE)
    label = "healthy" if lowest >= HEALTHY else "declined"
    if collapse is not None:
        return {"label": "collapsed", "collapse_row": collapse + 1, "lowest_after_best": lowest}
    return {"label": label, "collapse_row": None, "lowest_after_best": lowest}


def _later(reward: np.ndarray, rows: int, window: int) -> float:
    """The best windowed mean after so many rows, as a multiple of the best until then; NaN where
    there is none until then.
    """
    means = windowed_mean(reward, window)
    until, later = (np.fmax.reduce(part, initial=0) for part in (means[:rows], means[rows:]))
    return later / until if until > 0 else np.nan


def read_all(folder: Path, reward_floor: float | None = 0.0) -> pd.DataFrame:
    """One row per log of the index; `not_read` is why the reader refused one. Rewards are counted
    from `reward_floor`; with None from the floor that the index tells, else from the lowest of a
    response, if that is logged.
    """
    rows = []
    for entry in pd.read_csv(folder / "index.csv", dtype=str).fillna("").to_dict("records"):
        row = {key: entry[key] for key in ("repository", "commit", "path", "kind")}
        told = reward_floor is None and entry.get("floor")
        floor = float(told) if told else reward_floor
        try:
            log = read_log(folder / entry["file"], reward_floor=floor)
            if not np.isfinite(log.column("reward")).any():
                raise DataError("no reward found")
            rows.append(row | judged(log) | {"not_read": ""})
        except DataError as error:
            said = str(error).replace(str(folder / entry["file"]), "it")
            rows.append(row | {"label": "not read", "not_read": said})
    table = pd.DataFrame(rows).sort_values(["repository", "path"], ignore_index=True)
    whole = dict.fromkeys(["rows", "collapse_row", *ENDS, *DETECTORS], "Int64")
    return table.reindex(columns=[*ABOUT, *FOUND]).astype(whole)


def fates(table: pd.DataFrame) -> dict[str, int]:
    """What became of runs that the rule alarmed on before any collapse."""
    part = table[table["label"].isin(LABELS) & (table[RULE] > 0)]
    fell = part["label"] == "collapsed"
    before = fell & (part[RULE] < part["collapse_row"])
    stands = part["stands"].astype(bool) & ~fell
    return {
        "collapsed": int(before.sum()),
        "ended below": int(stands.sum()),
        "came back": int((~fell & ~stands).sum()),
    }


def statements(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Statement of `PREREGISTERED-3.md`, and its verdict with the share that it rests on."""
    of, fate = public_counts(table), fates(table)
    rule, alarmed = of.loc[RULE], sum(fate.values())
    early, fell, meant = rule["early"], rule["collapsed"], fate["collapsed"] + fate["ended below"]
    seldom = of[of["ever"] <= 0.1 * of["others"]]
    most = max(seldom["early"], default=0)
    enough = fell >= LEAST["collapsed"] and rule["others"] >= LEAST["healthy"]
    return [
        ("warns in time", _verdict(early >= 0.8 * fell, early, fell, enough)),
        ("an alarm means something", _verdict(2 * meant >= alarmed, meant, alarmed, enough)),
        ("warns of most", _verdict(early >= most, early, fell, enough)),
    ]


def stop_statements(table: pd.DataFrame, ends: str, means: str) -> list[str]:
    """The same of `PREREGISTERED-4.md`: it spares healthy runs, it ends collapsed ones, and few of
    the runs that it ends get better later; by the column of the rule and the prefix of the means.
    """
    part = table[table[f"{means}label"].isin(LABELS)]
    label, ended = part[f"{means}label"], part[ends].notna()
    fell, healthy = ended[label == "collapsed"], ended[label == "healthy"]
    later = part.loc[ended, f"{ends}_{means}later"].dropna()
    better = later[later > 1]
    enough = len(fell) >= LEAST["collapsed"] and len(healthy) >= LEAST["healthy"]
    few = len(better) <= 0.2 * len(later)
    most = f", by {100 * (better.median() - 1):.0f} % in the median" if len(better) else ""
    return [
        _verdict(healthy.sum() <= 0.1 * len(healthy), healthy.sum(), len(healthy), enough),
        _verdict(fell.sum() >= 0.8 * len(fell), fell.sum(), len(fell), enough),
        _verdict(few, len(better), len(later), len(later) >= LEAST["collapsed"]) + most,
    ]


def _verdict(holds: bool, count: int, of: int, enough: bool) -> str:
    return (
        f"{('holds' if holds else 'does not hold') if enough else 'not tested'}, {share(count, of)}"
    )


def share(count: int, of: int) -> str:
    """A count with the exact 95 % interval of its share."""
    low, high = exact(int(count), int(of))
    return f"{count}/{of} [{low:.2f}, {high:.2f}]"


def told(logs: pd.DataFrame) -> str:
    """The part of `docs/monitor.md` about public logs, by all three registrations."""
    table = logs[logs["counted_from"] == "0"]
    lowest = logs[logs["counted_from"] != "0"]
    then, second, third = (lowest[lowest["gathered"] == when] for when in GATHERED)
    parts = {
        "first gathering": table,
        "first, one log per repository": _one_each(table),
        "counted from the lowest response": then,
        "second": second,
        "second, one log per repository": _one_each(second),
        "third": third,
        "third, one log per repository": _one_each(third),
        "second and third": pd.concat([second, third]),
    }
    gathered = dict(zip(GATHERED, (table, second, third), strict=True))
    lines = []
    for name, part in gathered.items():
        labels = part["label"].value_counts()
        repositories = part["repository"].nunique()
        lines += [
            f"{name.capitalize()} gathering: {len(part)} logs of {repositories} repositories. "
            f"Not read: {labels.get('not read', 0)}. Not judged, as the reward goes below its zero "
            f"or is never above: {labels.get('not judged', 0)}.",
            "",
        ]
    lines += ["<details><summary>Labels, alarms, what `stop_at` ends, and each rule</summary>", ""]
    lines += _row("", *parts) + _row(*["---"] * (len(parts) + 1))
    for label in LABELS:
        lines += _row(label, *((part["label"] == label).sum() for part in parts.values()))
    found = [fates(part) for part in parts.values()]
    for name in found[0]:
        counts = (f"{fate[name]} of {sum(fate.values())}" for fate in found)
        lines += _row(f"alarms of `{RULE}`: {name}", *counts)
    for rows in zip(*map(statements, parts.values()), strict=True):
        lines += _row(f"*{rows[0][0]}*", *(verdict for _, verdict in rows))
    head = ("healthy ended", "collapsed ended", "better later")
    lines += ["", *_row("`stop_at` waits for", "means for label", "gathering", *head)]
    lines += _row(*["---"] * 6)
    judged_by = zip(GATHERED, (then, second, third), strict=True)
    for (ends, rule), (means, of), (when, part) in product(ENDS.items(), MEANS.items(), judged_by):
        lines += _row(rule, of, when, *stop_statements(part, ends, means))
    for name, part in gathered.items():
        lines += ["", *_row(f"rule, {name} gathering", "early", "false in 30 rows", "at any row")]
        lines += _row(*["---"] * 4)
        for rule, row in public_counts(part).iterrows():
            if row["collapsed"] + row["others"]:
                pairs = (("early", "collapsed"), ("within", "others"), ("ever", "others"))
                lines += _row(rule, *(share(row[count], row[of]) for count, of in pairs))
    return "\n".join([*lines, "", "</details>"])


def _one_each(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["label"].isin(LABELS)].drop_duplicates("repository")


def _row(*cells: object) -> list[str]:
    return [f"| {' | '.join(map(str, cells))} |"]


def main(arguments: Sequence[str]) -> None:
    """Read the logs, if they are given, and write what came out."""
    if arguments:
        if len(arguments) != len(GATHERED):
            raise SystemExit(f"{len(arguments)} folders given: give all three, in their order")
        folders = dict(zip(GATHERED, map(Path, arguments), strict=True))
        parts = [read_all(folders["first"], 0.0).assign(counted_from="0", gathered="first")]
        for when, folder in folders.items():
            parts.append(read_all(folder, None).assign(counted_from="lowest", gathered=when))
        write_table(PUBLIC, pd.concat(parts))
    text = told(pd.read_csv(PUBLIC, dtype={"counted_from": str}))
    write_text(PAGE, with_numbers(PAGE.read_text("utf-8"), text, marker="public"))


if __name__ == "__main__":
    main(sys.argv[1:])
