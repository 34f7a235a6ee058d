"""Files that training leaves behind, as rows of keys and values, and the metrics in such a row:
`docs/monitor.md` lists the files, `presets/log_keys.yaml` the keys of the frameworks.

Nothing is evaluated, only matched. What a killed process leaves (a torn end) is left out with a
note; what cannot be such a file is a `DataError` of one line.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from llds_core.config.load import PRESETS
from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.monitor.rollout_dumps import dump_files, rows_of_dump

Rows = Iterator[dict[str, Any]]
_PRESET = yaml.safe_load((PRESETS / "log_keys.yaml").read_text("utf-8"))
NEARLY: dict[str, str] = _PRESET["nearly"]
_BY_FRAMEWORK: dict[str, dict[str, list[str]]] = _PRESET["metrics"]
# Keys by metric, the preferred one first.
KEYS = {metric: sum(of.values(), list[str]()) for metric, of in _BY_FRAMEWORK.items()}
_RATIOS = {key: key.split(" / ") for keys in KEYS.values() for key in keys if " / " in key}
_OF_METRICS = {part for keys in KEYS.values() for key in keys for part in key.split(" / ")}
_KNOWN = _OF_METRICS | {*_PRESET["steps"], "epoch"}
# As spreadsheets and data frames have it: `critic_score_mean`.
FLAT = {key.replace("/", "_"): key for key in _KNOWN} | {key: key for key in _KNOWN}
_NOTHING = {"", "none", "null", "n/a", "na", "-"}
# `np.float64(0.2)`, `tensor(0.3, device='cuda:0')`
_WRAPPED = re.compile(r"^[\w.]+\(\s*([-+.\w]+)")
_VALUE = r"(?:[\w.]+\(\s*)?['\"]?([-+]?[\w.]+(?:[-+]\d+)?)"
_DICT_PAIR = re.compile(r"['\"]([^'\"{}]+)['\"]:\s*" + _VALUE)
_VERL_PAIR = re.compile(r"(?:^|\s)([^\s:]+):" + _VALUE)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RAY = re.compile(r"^\([^()]*\bpid=\d+[^()]*\) ?")  # before each line of a worker
_CHECKPOINT = re.compile(r"(?:checkpoint-|global_step_)(\d+)")
_BETWEEN = re.compile(r"( - |[,;\t])")  # values, on a console and in CSV
_SLIME = re.compile(r"\b(step|rollout) (\d+): \{")
_LONGEST = 10_000  # characters of a dictionary that a narrow terminal broke into lines
_EVALUATIONS = {"eval", "evaluation", "val", "valid", "validation", "test"}
_KINDS = ("type", "split", "phase", "mode")  # keys that say what kind of row it is
_RUN_COLUMNS = ("run", "run_id", "run_name", "experiment", "seed", "Name")


def to_number(value: Any) -> float | None:
    """A number as frameworks log it, text included; None where nothing was measured.

    `nan` and `inf` stay what they are: they were measured.
    """
    if isinstance(value, str):
        wrapped = _WRAPPED.match(value.strip())
        value = wrapped[1] if wrapped else value
    elif isinstance(value, bool) or not isinstance(value, (int, float, Real)):  # the last is slow
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def numbers_of(rows: Iterable[Mapping[str, Any]], notes: list[str]) -> pd.DataFrame:
    """The numbers of logged rows, one column per key, and those ratios of them that are metrics.
    Infinite is what was measured and is not finite, NaN what is missing; known keys whose value is
    there and is no number are noted.
    """
    found: list[dict[str, float]] = []
    wrong: dict[str, list[str]] = {}
    for place, row in enumerate(rows, 1):
        found.append({})
        for key, value in row.items():
            if (number := to_number(value)) is not None:
                found[-1][key] = number if math.isfinite(number) else math.inf
            elif key in _KNOWN and str(value).strip().lower() not in _NOTHING:
                wrong.setdefault(key, []).append(f"{str(value)[:40]!r} in row {place}")
    notes += [f"{key} is no number {len(of)} times, first {of[0]}" for key, of in wrong.items()]
    table = pd.DataFrame(found)
    for ratio, (over, under) in _RATIOS.items():
        if {over, under} <= {*table}:
            table[ratio] = table[over] / table[under].replace([0, math.inf], math.nan)
    return table


def metrics_of(
    numbers: pd.DataFrame, reward_key: str | None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Step and metrics by our names, of the rows of `numbers_of` that have a metric, and the key
    that each metric was read from. Of several keys in a row the preferred one counts; a step is a
    whole number. `reward_key` takes the place of the keys of the reward.
    """
    known = KEYS | ({"reward": [reward_key]} if reward_key else {})
    found = {m: numbers.reindex(columns=keys).dropna(how="all") for m, keys in known.items()}
    found = {metric: part for metric, part in found.items() if len(part)}
    steps = numbers.reindex(columns=_PRESET["steps"])
    steps = steps.where((steps % 1 == 0) & (steps.abs() < 2**53))
    columns = {"step": steps} | found
    table = pd.DataFrame({name: each.bfill(axis=1).iloc[:, 0] for name, each in columns.items()})
    keys = {metric: str(part.iloc[-1].first_valid_index()) for metric, part in found.items()}
    return table.dropna(how="all", subset=[*keys]), keys


def has_metric(row: Any) -> bool:
    """Whether something has a key of a metric, as a logged row of training has."""
    return isinstance(row, Mapping) and not _OF_METRICS.isdisjoint(row)


def of_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a logged row says that it is none of training."""
    return any(str(row.get(kind)).lower() in _EVALUATIONS for kind in _KINDS)


def framework_of(keys: Collection[str]) -> str:
    """The framework that uses most of the keys read; plain words, as anybody's, tell of none."""
    telling, votes = {*keys} - {*_PRESET["plain"]}, Counter[str]()
    for of in _BY_FRAMEWORK.values():
        for name, its_keys in of.items():
            votes.update([name] * len(telling.intersection(its_keys)))
    return votes.most_common(1)[0][0] if votes else "unknown origin"


def how_to_log(metric: str, framework: str) -> str:
    """What to set, or to log, for a metric that a log lacks."""
    known: dict[str, str] = _PRESET["how"][metric]
    return known.get(framework, known["any"])


def read_rows(path: Path, format: str, notes: list[str]) -> Rows:
    """Rows of the log `path`, in the order written; what is left out is added to `notes`."""
    if format not in FORMATS:
        raise ConfigError(f'unknown format "{format}": {did_you_mean(format, FORMATS)}')
    if not path.exists():
        raise DataError(f"{path} does not exist: name a training log or the folder of a run")
    try:
        whole = format in ("tensorboard", "rollouts")
        file = _log_inside(path) if path.is_dir() and not whole else path
        for row in READERS[_guess(file) if format == "auto" else format](file, notes):
            # Trackers of transformers write `train/` before each key.
            bare = {k[6:]: row[k] for k in row if k.startswith("train/") and k not in _KNOWN}
            yield bare | row
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}): name a training log") from error


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that transformers, verl or SkyRL wrote into `folder`."""
    found = (_CHECKPOINT.fullmatch(path.name) for path in folder.glob("*") if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def _log_inside(folder: Path) -> Path:
    """The log in a folder of a run."""
    if (folder / "metrics.jsonl").is_file():
        return folder / "metrics.jsonl"
    saved = [f"checkpoint-{step}/trainer_state.json" for step in reversed(saved_steps(folder))]
    states = [folder / name for name in ("trainer_state.json", *saved) if (folder / name).is_file()]
    if states:  # the newest checkpoint's may be newer than the one written at an earlier end
        return max(states[:2], key=_last_step)
    if any(folder.glob("*tfevents*")):
        return folder
    if (console := folder / "files/output.log").is_file():  # of Weights & Biases
        return console
    if dump_files(folder):
        return folder
    endings = (".jsonl", ".csv", ".csv.gz", ".log", ".txt")
    # `latest_checkpointed_iteration.txt` is verl's.
    files = (file for file in folder.iterdir() if not file.name.startswith("latest_"))
    found = sorted(file for file in files if file.name.endswith(endings))
    if len(found) == 1:
        return found[0]
    found = found or sorted(folder.glob("*/metrics.jsonl"))
    names = ", ".join(str(file.relative_to(folder)) for file in found[:4])
    names = names or "no metrics.jsonl, trainer_state.json"
    raise DataError(f"{folder} is no folder of one run ({names}): name the file")


def _last_step(state: Path) -> float:
    with _open(state) as text:
        found = re.search(r'"global_step":\s*(\d+)', text.read())
    return float(found[1]) if found else -1.0


def _guess(file: Path) -> str:
    if dump_files(file):
        return "rollouts"
    if file.is_dir() or "tfevents" in file.name:
        return "tensorboard"
    by_ending = {".json": "state", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv"}
    if found := by_ending.get(Path(file.name.removesuffix(".gz")).suffix):
        return found
    first = next((line for line in _lines(file, []) if line.strip()), "")
    return "jsonl" if re.match(r'\s*\{\s*"', first) else "console"


def _open(file: Path) -> io.TextIOWrapper:
    """A text file, unpacked where it is packed; the bytes of a binary one are refused."""
    if not file.is_file():  # a pipe cannot be read twice
        raise DataError(f"{file} is no file: name a training log or the folder of a run")
    with file.open("rb") as packed:
        opened = gzip.open if packed.read(2) == b"\x1f\x8b" else open
    with opened(file, "rb") as start:
        first = start.read(4096)
    # PowerShell's `>` writes UTF-16.
    encoding = "utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if b"\0" in first and encoding != "utf-16":
        raise DataError(
            f"{file} is binary: name a log in text, JSON, CSV or TensorBoard's; of Weights & "
            "Biases export the history of the run as CSV"
        )
    return io.TextIOWrapper(opened(file, "rb"), encoding, errors="replace")


def _lines(file: Path, notes: list[str]) -> Iterator[str]:
    """Lines without colours; of a last one without an end, the values that are surely whole."""
    with _open(file) as text:
        for line in map(partial(_ANSI.sub, ""), text):
            if line.endswith("\n") or line.rstrip().endswith("}"):
                yield line
            else:
                notes.append("the last line has no end: what may be cut off of it is left out")
                yield "" if line.lstrip().startswith("{") else "".join(_BETWEEN.split(line)[:-1])


def _read_jsonl(file: Path, notes: list[str]) -> Rows:
    good, broken = 0, 0
    for line in filter(str.strip, _lines(file, notes)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        good, broken = good + isinstance(row, dict), broken + (not isinstance(row, dict))
        if isinstance(row, dict):
            for key in [key for key in row if isinstance(row[key], dict)]:
                under = "" if key == "data" else f"{key}/"  # the former of verl's file logger
                row = {f"{under}{name}": value for name, value in row.pop(key).items()} | row
            yield row
    if broken > good:
        raise DataError(f"{file} has {broken} lines that are no JSON: give another --format")
    if broken:
        notes.append(f"{broken} damaged lines are left out")


def _read_state(file: Path, notes: list[str]) -> Rows:
    with _open(file) as opened:
        text = opened.read().strip()
    try:
        state, end = json.JSONDecoder().raw_decode(text)
        row = isinstance(state, dict) and not any(isinstance(x, list) for x in state.values())
        if text[end:] and row:  # JSON lines under another name
            yield from _read_jsonl(file, notes)
            return
        if text[end:]:
            raise ValueError(f"more text after {end} characters")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is no whole JSON file ({error}): name trainer_state.json of an earlier "
            "checkpoint, or give --format jsonl where each line is a row"
        ) from error
    rows = state
    if isinstance(state, dict) and (rows := state.get("log_history")) is None:
        lists = {
            key: value
            for key, value in state.items()
            if isinstance(value, list) and key.lower() not in _EVALUATIONS
        }
        rows_in = {key: sum(map(has_metric, each)) for key, each in lists.items()}
        key = max(rows_in, key=lambda name: rows_in[name], default="")
        if rows_in.get(key):  # of a training loop of one's own
            notes.append(f'rows are those of "{key}"')
            rows = lists[key]
    if not isinstance(rows, list):
        raise DataError(f"{file} has no log_history: name trainer_state.json of a checkpoint")
    yield from (row for row in rows if isinstance(row, dict))


def _read_console(file: Path, notes: list[str]) -> Rows:
    rollout: list[dict[str, Any]] = []  # of slime: a rollout's lines, then its updates'
    open_: dict[str, str] = {}  # dictionaries that go on in the next line, by worker
    broken_off = 0
    for written in _lines(file, notes):
        line = _RAY.sub("", written)
        worker = written[: len(written) - len(line)]
        if "step:" in line and " - " in line:
            yield dict(_VERL_PAIR.findall(line[line.index("step:") :]))
            continue
        opens = line.rpartition("\r")[2].startswith(("{'", '{"'))
        begun = open_.pop(worker, "")
        broken_off += bool(begun) and (opens or not line.strip())
        begun = "" if opens or not line.strip() else begun
        line, broken = begun + line, opens or bool(begun)
        start = max(line.find("{'"), line.find('{"'))
        if start < 0 or "}" not in line:
            if broken and len(line) < _LONGEST:
                open_[worker] = line.rstrip("\r\n")
            continue
        row = dict(_DICT_PAIR.findall(line[start:]))
        kind = _SLIME.search(line)
        if kind and kind[1] == "rollout":
            if rollout and rollout[0]["step"] != kind[2]:
                yield _averaged(rollout)
                rollout = []
            rollout.append(row | {"step": kind[2]})
        elif kind and rollout:
            rollout.append(row)
        else:
            yield row | {"step": kind[2]} if kind else row
    if rollout:
        yield _averaged(rollout)
    if broken_off:
        notes.append(f"{broken_off} dictionaries without an end are left out")


def _averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row, of the first one's step, with means of numbers; one that is not finite stays so."""
    return {**numbers_of(rows, []).mean(), "step": rows[0]["step"]}


def _read_csv(file: Path, notes: list[str]) -> Rows:
    lines = filter(str.strip, _lines(file, notes))
    first = next(lines, "")
    delimiter = max("\t;,", key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    # Weights & Biases writes `<run> - <key>`, and bounds beside.
    runs = sorted({name.rpartition(" - ")[0] for name in header} - {""})
    if len(runs) > 1:
        raise DataError(f"{file} holds {len(runs)} runs ({', '.join(runs[:3])}): export one")
    names = [FLAT.get(key, key) for key in (name.rpartition(" - ")[2] for name in header)]
    run: list[str] = []
    short = 0
    for row in csv.DictReader(lines, names, delimiter=delimiter):
        if None in row.values() or any(row.pop(None, ())):  # fewer cells, or more
            short += 1
            continue
        told = [row[name] for name in names if name in _RUN_COLUMNS]
        run = run or told
        if told != run:
            raise DataError(f"{file} holds several runs ({run} and {told}): filter one")
        # With `;` between them numbers may have decimal commas.
        yield {k: row[k].replace(",", ".") for k in names} if delimiter == ";" else row
    if short:
        notes.append(f"{short} rows of another length are left out")


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
            row[key] = event.value
    yield from (rows[step] for step in sorted(rows))


def _read_rollouts(path: Path, notes: list[str]) -> Rows:
    if not (files := dump_files(path)):
        raise DataError(
            f"{path} is no dump of rollouts: each line needs input, output, score, step"
        )
    responses = (row for file in files for row in _read_jsonl(file, notes))
    yield from rows_of_dump(responses, notes)


READERS: dict[str, Callable[[Path, list[str]], Rows]] = {
    "jsonl": _read_jsonl,
    "state": _read_state,
    "console": _read_console,
    "csv": _read_csv,
    "tensorboard": _read_tensorboard,
    "rollouts": _read_rollouts,
}
FORMATS = ("auto", *READERS)
