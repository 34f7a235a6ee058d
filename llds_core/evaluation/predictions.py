"""Predictions on disk: one JSON line per answer, written as batches finish.

A killed process loses at most the batch it was working on. The next one keeps every whole line,
cuts off a torn end, and goes on with the questions that have no answer. A folder holds one
evaluation: `manifest.json` says which, and any other is refused.

    manifest.json                          what is evaluated, and by which code
    predictions.jsonl                      one line per answer
    predictions-<i>-of-<n>.jsonl           the lines of a shard
    summary.json                           scores, once every line is there
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import disk_errors, locked, write_json

Key = tuple[str, str, str, int]
"""Benchmark, question id, mode and sample: what a line is the answer to."""
Row = Mapping[str, Any]
Shard = tuple[int, int]
"""Number, counted from 1, and how many shards there are."""
KEYS = ("benchmark", "id", "mode", "sample")
POLICY = "policy"  # the agent that is trained; every other is a baseline


def parse_shard(shard: str) -> Shard:
    """Read a part and how many there are, `i/n`."""
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f'--shard is "{shard}": give a part and how many there are, e.g. 1/4')
    return int(number), int(count)


class Predictions:
    """Lines of an evaluation; this process writes those of `shard`, or what no other has."""

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        part = f"-{shard[0]}-of-{shard[1]}" if shard else ""
        self.folder = folder
        self.path = folder / f"predictions{part}.jsonl"

    def claim(self, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Take the folder for the evaluation named by `identity`, or check that it holds this one.

        `identity` has everything that changes an answer; `about` is written beside it.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            write_json(path, {"identity": identity, **about})
            return
        try:
            before = json.loads(path.read_text("utf-8"))["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a manifest ({error}): delete the folder") from None
        for key in (*identity, *before):
            old, new = before.get(key), identity.get(key)
            if old != new:
                raise RunError(
                    f"{self.folder} holds an evaluation with {key}={old!r}, now {new!r}: choose "
                    "another folder with --out, or delete it"
                )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the file for writing, and cut off what a killed process left torn."""
        path = self.path
        busy = f"{path} is being written by another process: wait for it"
        with locked(path.with_name(f".{path.stem}.lock"), busy):
            if path.exists():
                with disk_errors(path):
                    os.truncate(path, len(_whole_lines(path)))
            yield

    def read(self) -> dict[Key, Row]:
        """The answers so far, of all shards; torn ends are left out."""
        rows: dict[Key, Row] = {}
        for path in sorted(self.folder.glob("predictions*.jsonl")):
            for number, line in enumerate(_whole_lines(path).splitlines(), start=1):
                try:
                    row = json.loads(line)
                    key: Key = tuple(row[name] for name in KEYS)
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{path}:{number} is not a prediction ({line[:60]!r}): delete the line"
                    ) from None
                rows[key] = row
        return rows


def _whole_lines(path: Path) -> bytes:
    """All but a torn last line."""
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1]
