"""Files that training leaves behind, as rows of keys and values, and the metrics in such a row:
`docs/monitor.md` lists the files, `presets/log_keys.yaml` the keys of the frameworks.

Nothing is evaluated, only matched. What a killed process leaves (a torn last line) is left out with
a note; what cannot be such a file is a `DataError` of one line.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from llds_core.errors import ConfigError, DataError, did_you_mean

Rows = Iterator[dict[str, Any]]
_PRESET = yaml.safe_load((files("llds_core") / "presets/log_keys.yaml").read_text("utf-8"))
STEP_KEYS: tuple[str, ...] = tuple(_PRESET["steps"])
NEARLY: dict[str, str] = _PRESET["nearly"]
_HOW: dict[str, dict[str, str]] = _PRESET["how"]
# Keys by metric, the preferred one first, and the frameworks that use a key.
KEYS: dict[str, list[str]] = {}
_FRAMEWORKS: dict[str, list[str]] = {}
for _metric, _by_framework in _PRESET["metrics"].items():
    for _framework, _keys in _by_framework.items():
        for _key in _keys:
            KEYS.setdefault(_metric, []).append(_key)
            _FRAMEWORKS.setdefault(_key, []).append(_framework)
KNOWN = {*_FRAMEWORKS, *STEP_KEYS, "epoch"}
# `np.float64(0.2)`, `tensor(0.3, device='cuda:0')`
_WRAPPED = re.compile(r"^[\w.]+\(\s*([-+.\w]+)")
_VALUE = r"(?:[\w.]+\(\s*)?['\"]?([-+]?[\w.]+(?:[-+]\d+)?)"
_DICT_PAIR = re.compile(r"['\"]([^'\"{}]+)['\"]:\s*" + _VALUE)
_VERL_PAIR = re.compile(r"(?:^|\s)([^\s:]+):" + _VALUE)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SLIME = re.compile(r"\b(step|rollout) (\d+): \{")
_RUN_COLUMNS = ("run", "run_id", "run_name", "experiment", "seed", "Name")


def to_number(value: Any) -> float | None:
    """A number as frameworks log it, text included; None where nothing was measured.

    `nan` and `inf`, in whatever spelling, stay what they are: they were measured.
    """
    if isinstance(value, str):
        text = value.strip()
        wrapped = _WRAPPED.match(text)
        try:
            return float(wrapped[1] if wrapped else text)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def named(row: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """The metrics of a logged row by our names, each with the key it was read from."""
    found: dict[str, tuple[str, float]] = {}
    for metric, keys in KEYS.items():
        for key in keys:
            if key in row and (value := to_number(row[key])) is not None:
                found[metric] = (key, value)
                break
    return found


def step_of(row: Mapping[str, Any]) -> float | None:
    """The step of a logged row; None where it names none."""
    values = (to_number(row[key]) for key in STEP_KEYS if key in row)
    return next((value for value in values if value is not None and abs(value) < 2**53), None)


def framework_of(keys: Mapping[str, str]) -> str:
    """The framework that uses most of the keys read; in doubt the one listed first."""
    votes = Counter(name for key in keys.values() for name in _FRAMEWORKS[key])
    return votes.most_common(1)[0][0]


def how_to_log(metric: str, framework: str) -> str:
    """What to set, or to log, for a metric that a log lacks."""
    known = _HOW[metric]
    return known.get(framework, known["any"])


def read_rows(path: Path, format: str, notes: list[str]) -> Rows:
    """Rows of the log `path`, in the order written; what is left out is added to `notes`."""
    if format not in FORMATS:
        raise ConfigError(f'unknown format "{format}": {did_you_mean(format, FORMATS)}')
    try:
        file = _log_inside(path) if path.is_dir() and format != "tensorboard" else path
        yield from READERS[_guess(file) if format == "auto" else format](file, notes)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}): name a training log") from error


def _log_inside(folder: Path) -> Path:
    """The log in a folder of a run."""
    for name in ("metrics.jsonl", "trainer_state.json"):
        if (folder / name).is_file():
            return folder / name
    states = [*folder.glob("checkpoint-*/trainer_state.json")]
    if states:
        return max(states, key=lambda file: int(file.parent.name.rpartition("-")[2] or 0))
    if any(folder.glob("*tfevents*")):
        return folder
    endings = (".jsonl", ".csv", ".csv.gz", ".log", ".txt")
    found = sorted(file for file in folder.iterdir() if file.name.endswith(endings))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:4]) or "no metrics.jsonl, trainer_state.json"
        raise DataError(f"{folder} is no folder of one run ({names}): name the file")
    return found[0]


def _guess(file: Path) -> str:
    if file.is_dir() or "tfevents" in file.name:
        return "tensorboard"
    name = file.name.removesuffix(".gz")
    if name.endswith(".json"):
        return "state"
    if name.endswith((".csv", ".tsv")):
        return "csv"
    first = next((line for line in _lines(file, []) if line.strip()), "")
    return "jsonl" if first.lstrip().startswith('{"') else "console"


def _open(file: Path) -> io.TextIOWrapper:
    """A text file, unpacked where it is packed; the bytes of a binary one are refused."""
    if not file.exists():
        raise DataError(f"{file} does not exist: name a training log or the folder of a run")
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as start:
        if b"\0" in start.read(4096):
            raise DataError(f"{file} is binary: name a log in text, JSON, CSV or TensorBoard's")
    return io.TextIOWrapper(opened(file, "rb"), "utf-8-sig", errors="replace")


def _lines(file: Path, notes: list[str]) -> Iterator[str]:
    """Lines without colours; a last one that was not finished is left out."""
    with _open(file) as text:
        for line in text:
            if not line.endswith("\n") and not line.rstrip().endswith("}"):
                notes.append("the last line is cut off and left out")
                return
            yield _ANSI.sub("", line)


def _read_jsonl(file: Path, notes: list[str]) -> Rows:
    good, broken = 0, 0
    for line in filter(str.strip, _lines(file, notes)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        good, broken = good + isinstance(row, dict), broken + (row is None)
        if isinstance(row, dict):
            inner = row.get("data")  # of verl's file logger
            yield {**inner, "step": row.get("step")} if isinstance(inner, dict) else row
    if broken > good:
        raise DataError(f"{file} has {broken} lines that are no JSON: give --format console or csv")
    if broken:
        notes.append(f"{broken} damaged lines are left out")


def _read_state(file: Path, notes: list[str]) -> Rows:
    try:
        with _open(file) as text:
            state = json.load(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is no whole JSON file ({error}): name trainer_state.json of an earlier "
            "checkpoint"
        ) from error
    rows = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(rows, list):
        raise DataError(f"{file} has no log_history: name trainer_state.json of a checkpoint")
    yield from (row for row in rows if isinstance(row, dict))


def _read_console(file: Path, notes: list[str]) -> Rows:
    rollout: dict[str, Any] = {}  # of slime: a rollout's line, then its updates'
    updates: list[dict[str, Any]] = []
    for line in _lines(file, notes):
        if "step:" in line and " - " in line:
            yield dict(_VERL_PAIR.findall(line[line.index("step:") :]))
            continue
        start = max(line.find("{'"), line.find('{"'))
        if start < 0 or "}" not in line:
            continue
        row = dict(_DICT_PAIR.findall(line[start:]))
        if not (kind := _SLIME.search(line)):
            yield row
        elif kind[1] == "rollout":
            if rollout.get("step") not in (None, kind[2]):
                yield rollout | _averaged(updates)
                rollout, updates = {}, []
            rollout |= row | {"step": kind[2]}
        elif rollout:
            updates.append(row)
        else:
            yield row | {"step": kind[2]}
    if rollout:
        yield rollout | _averaged(updates)


def _averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of the metrics of several updates; one that is not finite stays so."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key in row.keys() & KNOWN - set(STEP_KEYS):
            if (number := to_number(row[key])) is not None:
                values.setdefault(key, []).append(number)
    return {key: sum(found) / len(found) for key, found in values.items()}


def _read_csv(file: Path, notes: list[str]) -> Rows:
    delimiter = "\t" if ".tsv" in file.name else ","
    reader = csv.reader(_lines(file, notes), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    # Weights & Biases writes `<run> - <key>`, and bounds beside.
    exported = {name.rpartition(" - ")[0] for name in header if " - " in name}
    if len(exported) > 1:
        raise DataError(
            f"{file} holds {len(exported)} runs ({', '.join(sorted(exported)[:3])}): export one"
        )
    names = [name.rpartition(" - ")[2] for name in header]
    kept = [(place, name) for place, name in enumerate(names) if name in KNOWN]
    of_run = [place for place, name in enumerate(names) if name in _RUN_COLUMNS]
    run: list[str] = []
    short = 0
    for cells in reader:
        if len(cells) < len(names):
            short += bool(cells)
            continue
        told = [cells[place] for place in of_run]
        run = run or told
        if told != run:
            raise DataError(f"{file} holds several runs ({run} and {told}): filter one")
        yield {name: cells[place] for place, name in kept}
    if short:
        notes.append(f"{short} short rows are left out")


def _read_tensorboard(path: Path, notes: list[str]) -> Rows:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} needs the package tensorboard: pip install tensorboard, or export CSV there"
        ) from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    rows: dict[int, dict[str, Any]] = {}
    for key in events.Tags()["scalars"]:
        for event in events.Scalars(key):
            row = rows.setdefault(event.step, {"step": event.step})
            row |= {key: event.value, key.removeprefix("train/"): event.value}  # HF's prefix
    yield from (rows[step] for step in sorted(rows))


READERS: dict[str, Callable[[Path, list[str]], Rows]] = {
    "jsonl": _read_jsonl,
    "state": _read_state,
    "console": _read_console,
    "csv": _read_csv,
    "tensorboard": _read_tensorboard,
}
FORMATS = ("auto", *READERS)
