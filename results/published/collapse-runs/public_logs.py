"""What the monitor says of training logs that other people made.

    python results/published/collapse-runs/public_logs.py [FOLDER LATER]

Logs of FOLDER are judged by `PREREGISTERED-3.md`, those of LATER by `PREREGISTERED-4.md`. Each has
an `index.csv` (`repository,commit,path,file,kind`, and `floor`, the lowest reward of a response
where the repository tells it) and the logs that it names by `file`: they are other people's, and
are not part of this repository. The outcome goes into `public_logs.csv`, one row per log, and from
there, also without folders, into `docs/monitor.md`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from make import HEALTHY, LEAST, PAGE, with_numbers
from score import LABELS, NOT_LOGGED, PUBLIC, end_row, exact, public_counts

from llds_core.diagnostics.phases import WINDOW, collapse_row, lowest_after_best, windowed_mean
from llds_core.errors import DataError
from llds_core.files import write_table, write_text
from llds_core.monitor.detectors import DETECTORS
from llds_core.monitor.training_log import TrainingLog, read_log

RULE = "reward_drop"
ABOUT = ["repository", "commit", "path", "kind", "framework", "rows", "label", "collapse_row"]
FOUND = ["lowest_after_best", *DETECTORS, "stands", "ends", "better_later", "not_read"]


def judged(log: TrainingLog) -> dict[str, Any]:
    """Label of a log and, by detector, the row (from 1) of its first alarm."""
    known = np.isfinite(log.column("reward"))
    reward = log.column("reward")[known]
    # Alarms count by rows that have a reward: there are the collapse and the horizon.
    reached = np.maximum(known.cumsum(), 1)
    row: dict[str, Any] = {"framework": log.framework, "rows": len(reward)}
    row |= _label(reward)
    for name, detector in DETECTORS.items():
        scores = detector.scores(log)
        first = detector.alarm_row(scores)
        alarm = 0 if first is None else int(reached[first])
        row[name] = alarm if detector.reads(log) else NOT_LOGGED
        if name == RULE:
            row["stands"] = bool((scores[np.isfinite(scores)][-1:] > detector.threshold).any())
            end = end_row(scores, detector.threshold)
            if end is not None:
                row["ends"] = int(reached[end])
                row["better_later"] = _better_later(reward, row["ends"])
    return row


def _better_later(reward: np.ndarray, rows: int) -> bool:
    """Whether a windowed mean after so many rows is above all until then."""
    means = windowed_mean(reward, WINDOW)
    return bool(np.nanmax(means[rows:], initial=-np.inf) > np.nanmax(means[:rows]))


def _label(reward: np.ndarray) -> dict[str, Any]:
    lowest = lowest_after_best(reward)
    if np.isnan(lowest) or reward.min() < 0:
        return {"label": "not judged", "collapse_row": None, "lowest_after_best": np.nan}
    collapse = collapse_row(reward)
    label = "healthy" if lowest >= HEALTHY else "declined"
    if collapse is not None:
        return {"label": "collapsed", "collapse_row": collapse + 1, "lowest_after_best": lowest}
    return {"label": label, "collapse_row": None, "lowest_after_best": lowest}


def read_all(folder: Path, reward_floor: float | None = 0.0) -> pd.DataFrame:
    """One row per log of the index; `not_read` is why the reader refused one. Rewards are counted
    from the log's own floor, else from `reward_floor`; with None from the lowest of a response, if
    that is logged.
    """
    rows = []
    for entry in pd.read_csv(folder / "index.csv", dtype=str).fillna("").to_dict("records"):
        row = {key: entry[key] for key in ("repository", "commit", "path", "kind")}
        floor = float(entry["floor"]) if entry.get("floor") else reward_floor
        try:
            log = read_log(folder / entry["file"], reward_floor=floor)
            if not np.isfinite(log.column("reward")).any():
                raise DataError("no reward found")
            rows.append(row | judged(log) | {"not_read": ""})
        except DataError as error:
            said = str(error).replace(str(folder / entry["file"]), "it")
            rows.append(row | {"label": "not read", "not_read": said})
    table = pd.DataFrame(rows).sort_values(["repository", "path"], ignore_index=True)
    whole = dict.fromkeys(["rows", "collapse_row", "ends", *DETECTORS], "Int64")
    return table.reindex(columns=[*ABOUT, *FOUND]).astype(whole | {"better_later": "boolean"})


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


def statements(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Statement, verdict, and the share that it rests on: those about the alarm, by
    `PREREGISTERED-3.md`, and those about `stop_at`, by `PREREGISTERED-4.md`.
    """
    of, fate = public_counts(table), fates(table)
    rule, alarmed = of.loc[RULE], sum(fate.values())
    early, meant = rule["early"], fate["collapsed"] + fate["ended below"]
    seldom = of[of["ever"] <= 0.1 * of["others"]]
    most = max(seldom["early"], default=0)
    part = table[table["label"].isin(LABELS)]
    fell, healthy = (part.loc[part["label"] == label, "ends"].notna() for label in LABELS[:2])
    better = part.loc[part["ends"].notna(), "better_later"].astype(bool)
    enough = len(fell) >= LEAST["collapsed"] and rule["others"] >= LEAST["healthy"]
    both = len(fell) >= LEAST["collapsed"] and len(healthy) >= LEAST["healthy"]
    spared, ended, lost = healthy.sum(), fell.sum(), better.sum()
    some = len(better) >= LEAST["collapsed"]
    tests = [
        ("warns in time", early >= 0.8 * len(fell), early, len(fell), enough),
        ("an alarm means something", 2 * meant >= alarmed, meant, alarmed, enough),
        ("warns of most", early >= most, early, len(fell), enough),
        ("`stop_at` spares healthy runs", spared <= 0.1 * len(healthy), spared, len(healthy), both),
        ("`stop_at` ends collapsed runs", ended >= 0.8 * len(fell), ended, len(fell), both),
        ("better after `stop_at`: few", lost <= 0.2 * len(better), lost, len(better), some),
    ]
    return [
        (name, ("holds" if holds else "does not hold") if known else "not tested", share(n, of_all))
        for name, holds, n, of_all, known in tests
    ]


def share(count: int, of: int) -> str:
    """A count with the exact 95 % interval of its share."""
    low, high = exact(int(count), int(of))
    return f"{count}/{of} [{low:.2f}, {high:.2f}]"


def told(logs: pd.DataFrame) -> str:
    """The part of `docs/monitor.md` about public logs, by both registrations."""
    table = logs[logs["counted_from"] == "0"]
    lowest = logs[logs["counted_from"] != "0"]
    later = lowest[lowest["gathered"] == "later"]
    first = table[table["label"].isin(LABELS)].drop_duplicates("repository")
    parts = {
        "first gathering": table,
        "of each repository one": first,
        "counted from the lowest response": lowest[lowest["gathered"] == "first"],
        "later gathering": later,
        "of each repository one ": later[later["label"].isin(LABELS)].drop_duplicates("repository"),
    }
    lines = []
    for name, part in (("First", table), ("Later", later)):
        labels = part["label"].value_counts()
        lines.append(
            f"{name} gathering: {len(part)} logs of {part['repository'].nunique()} repositories. "
            f"Not read: {labels.get('not read', 0)}. Not judged, as the reward goes below its zero "
            f"or is never above: {labels.get('not judged', 0)}."
        )
        lines.append("")
    lines += [" | ".join(["| ", *parts]) + " |", "|---" * (len(parts) + 1) + "|"]
    for label in LABELS:
        numbers = [str(int((part["label"] == label).sum())) for part in parts.values()]
        lines.append(" | ".join([f"| {label}", *numbers]) + " |")
    for name in fates(table):
        found = [fates(part) for part in parts.values()]
        numbers = [f"{fate[name]} of {sum(fate.values())}" for fate in found]
        lines.append(" | ".join([f"| alarms of `{RULE}`: {name}", *numbers]) + " |")
    for label in LABELS:
        of = [part.loc[part["label"] == label, "ends"] for part in parts.values()]
        numbers = [f"{ends.notna().sum()} of {len(ends)}" for ends in of]
        lines.append(" | ".join([f"| `stop_at` ends of them: {label}", *numbers]) + " |")
    for rows in zip(*map(statements, parts.values()), strict=True):
        numbers = [f"{verdict}, {found}" for _, verdict, found in rows]
        lines.append(" | ".join([f"| *{rows[0][0]}*", *numbers]) + " |")
    for name, part in (("first", table), ("later", later)):
        lines += [
            "",
            f"| rule, {name} gathering | early | no collapse, alarm in 30 rows | at any row |",
            "|---|---|---|---|",
        ]
        for rule, row in public_counts(part).iterrows():
            if row["collapsed"] + row["others"]:
                pairs = (("early", "collapsed"), ("within", "others"), ("ever", "others"))
                cells = [share(row[count], row[of]) for count, of in pairs]
                lines.append(" | ".join([f"| {rule}", *cells]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Read the logs, if they are given, and write what came out."""
    if arguments:
        folder, later = map(Path, arguments)
        parts = [
            read_all(folder, 0.0).assign(counted_from="0", gathered="first"),
            read_all(folder, None).assign(counted_from="lowest", gathered="first"),
            read_all(later, None).assign(counted_from="lowest", gathered="later"),
        ]
        write_table(PUBLIC, pd.concat(parts))
    text = told(pd.read_csv(PUBLIC, dtype={"counted_from": str}))
    write_text(PAGE, with_numbers(PAGE.read_text("utf-8"), text, marker="public"))


if __name__ == "__main__":
    main(sys.argv[1:])
