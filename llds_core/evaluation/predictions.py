"""Predictions on disk: one JSON line an answer, written as batches finish.

A process that is killed loses at most the batch it was at. The next one keeps every whole line,
cuts off a torn end, and goes on with the questions that have none. A folder holds one evaluation:
`manifest.json` says which, and another one is refused.

    manifest.json                          what is evaluated, from which code
    predictions.jsonl                      one line an answer
    predictions-<i>-of-<n>.jsonl           the same, of a shard, until it is merged
    summary.json                           scores, once every line is there
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import disk_errors, write_json, write_text

Key = tuple[str, str, str, int]
Shard = tuple[int, int]
MAIN = "predictions.jsonl"
_KEYS = ("benchmark", "id", "mode", "sample")


def key_of(row: Mapping[str, Any]) -> Key:
    """Benchmark, question, mode and sample: what a line is the answer of."""
    return tuple(row[name] for name in _KEYS)


def parse_shard(shard: str) -> Shard:
    """Read a part and how many there are, `i/n`."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ConfigError(f'--shard is "{shard}": give a part and how many there are, e.g. 1/4')
    return int(number), int(count)


def predictions_file(folder: Path, shard: Shard | None = None) -> Path:
    """File of a shard (counted from 1, and how many), or of everything."""
    return folder / (f"predictions-{shard[0]}-of-{shard[1]}.jsonl" if shard else MAIN)


def shard_files(folder: Path) -> list[Path]:
    """Files of shards that wait to be merged."""
    return sorted(folder.glob("predictions-*-of-*.jsonl"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a predictions file; the kernel frees that of a killed process.

    Raises:
        RunError: when another process holds it.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.stem}.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path} is being written by another process: wait for it") from None
        yield


def open_evaluation(folder: Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Claim `folder` for an evaluation, or check that it holds this one.

    Args:
        folder: made when missing.
        identity: everything that changes an answer, flat.
        about: further entries of the manifest.

    Raises:
        RunError: when it holds another evaluation.
        DataError: when its manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.exists():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"identity": dict(identity), **about})
        return
    try:
        before = json.loads(path.read_text("utf-8"))["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no manifest ({error}): delete the folder") from None
    now = json.loads(json.dumps(dict(identity)))
    for key in (*now, *before):
        if before.get(key) != now.get(key):
            raise RunError(
                f"{folder} holds an evaluation with {key}={before.get(key)!r}, now "
                f"{now.get(key)!r}: choose another folder with --out, or delete it"
            )


def read_predictions(path: Path, expected: Iterable[Key]) -> dict[Key, dict[str, Any]]:
    """Read the whole lines of a file; a torn end is left out.

    Raises:
        DataError: naming the line that is no prediction, repeats one, or answers a question that
            was not asked.
    """
    rows: dict[Key, dict[str, Any]] = {}
    if not path.exists():
        return rows
    asked = set(expected)
    lines = path.read_bytes()[: _whole(path)].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key = key_of(row)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number} is no prediction ({line[:60]!r}): delete the line"
            ) from None
        if key not in asked or key in rows:
            wrong = "is there twice" if key in rows else "was not asked"
            raise DataError(f"{path}:{number}: {'/'.join(map(str, key))} {wrong}: delete the line")
        rows[key] = row
    return rows


class PredictionWriter:
    """Appends lines to a file, after cutting off what a killed process left torn.

    Raises:
        RunError: when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            self._file = path.open("ab")
            self._file.truncate(_whole(path))

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write lines; they are on disk when this returns."""
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        with disk_errors(self._path):
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())


def merge(folder: Path, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """Put the lines of all shards into the main file, in the order of `keys`; shards are deleted.

    The caller holds the lock of the main file.

    Raises:
        RunError: when a shard is still being written.
        DataError: when a file is damaged.
    """
    rows = read_predictions(folder / MAIN, keys)
    shards = shard_files(folder)
    if not shards:
        return rows
    with ExitStack() as locks:
        for shard in shards:
            locks.enter_context(locked(shard))
            rows |= read_predictions(shard, keys)
        lines = (json.dumps(rows[key], ensure_ascii=False) for key in keys if key in rows)
        write_text(folder / MAIN, "".join(f"{line}\n" for line in lines))
        with disk_errors(folder):
            for shard in shards:
                shard.unlink()
    return rows


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
