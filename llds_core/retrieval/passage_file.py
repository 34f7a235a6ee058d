"""A corpus file of any size as a sequence of passages.

The file stays on disk; memory holds a map of where its lines begin. The map is built once, while
every line is checked, and is kept beside the file:

    corpus.jsonl                one passage per line, see `llds_core.worlds.records`
    corpus.jsonl.offsets.npy    int64: eight numbers that say what the map belongs to, the first
                                byte of each passage, the size of the file

Where the folder of the corpus cannot be written, the map goes to a cache folder. It belongs to a
file of the same size and time of change; another one is mapped anew.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from llds_core.config.sections import DataConfig
from llds_core.errors import DataError, RunError
from llds_core.files import replacing
from llds_core.worlds.records import Passage, parse_passage, reading

HEADER = 8
"""Leading numbers of a map: version, size, time of change, passages, and the hash in four."""

_VERSION = 2  # 1 hashed titles without their quotes


class PassageFile(Sequence[Passage]):
    """A JSON-lines corpus with random access, of which no more than is asked for is in memory.

    Raises:
        DataError: when the file is missing or unreadable, a line is no passage, an id occurs
            twice, or there is no passage at all.
        RunError: when the map can be written neither beside it nor in the folder `cache`.

    Attributes:
        hash: SHA-256 of ids, titles and texts in their order; see `passages_hash`.
    """

    def __init__(self, path: str | Path, cache: str | Path = DataConfig.cache) -> None:
        self.path = Path(path)
        with reading(self.path):
            self._file = self.path.open("rb")
        # Not locked: who builds the same map at the same time writes the same bytes.
        stored = _read_map(self.path, os.fstat(self._file.fileno()), cache)
        if stored is None:
            made = _scan(self.path)
            beside, elsewhere = _map_paths(self.path, cache)
            try:
                _write_map(beside, made)
            except RunError:
                _write_map(elsewhere, made)
            stored = _read_map(self.path, os.fstat(self._file.fileno()), cache)
        if stored is None:
            raise DataError(f"{self.path} changed while it was read: start again when it is whole")
        self._offsets, self.hash = stored.offsets, stored.hash

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        """A passage, or a list of them for a slice; safe from several threads and processes."""
        places = range(len(self))[index]
        if isinstance(places, int):
            return self._read(places, places + 1)[0]
        if places.step == 1:
            return self._read(places.start, max(places.start, places.stop))
        return [self[place] for place in places]

    def _read(self, start: int, stop: int) -> list[Passage]:
        bounds = self._offsets[start : stop + 1].tolist()
        first, last = bounds[0], bounds[-1]
        with reading(self.path):
            block = os.pread(self._file.fileno(), last - first, first)
            if len(block) < last - first:
                raise OSError(0, "it became shorter since it was opened")
        return [
            parse_passage(block[a - first : b - first], f"{self.path} at byte {a}")
            for a, b in pairwise(bounds)
        ]


class StoredMap(NamedTuple):
    """What is known of a corpus file without reading it: how many passages, `PassageFile.hash`, the
    first byte of each passage and the size of the file.
    """

    passages: int
    hash: str
    offsets: np.ndarray


def stored_map(path: Path, cache: str | Path = DataConfig.cache) -> StoredMap | None:
    """The map of a corpus file; None when it was never read, or has changed."""
    try:
        return _read_map(path, path.stat(), cache)
    except OSError:
        return None


def passages_hash(passages: Iterable[Passage]) -> str:
    """Return the SHA-256 of ids, titles and texts in their order, however they are stored."""
    if isinstance(passages, PassageFile):
        return passages.hash
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(_canonical(passage))
    return digest.hexdigest()


def _canonical(passage: Passage) -> bytes:
    """Bytes that no other passage has: each part after its length."""
    parts = [part.encode("utf-8") for part in (passage.id, passage.title, passage.text)]
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _map_paths(path: Path, cache: str | Path) -> tuple[Path, Path]:
    """Where the map of a corpus may lie: beside it, or in the cache."""
    name = f"{path.name}.offsets.npy"
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return path.with_name(name), Path(cache).expanduser() / f"{place}-{name}"


def _write_map(path: Path, numbers: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, numbers)


def _read_map(path: Path, corpus: os.stat_result, cache: str | Path) -> StoredMap | None:
    """The map of the corpus at `path`, memory-mapped; None when missing, damaged or of another."""
    for file in _map_paths(path, cache):
        try:
            stored = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            continue
        if stored.dtype != np.int64 or stored.ndim != 1 or len(stored) < HEADER + 2:
            continue
        count = len(stored) - HEADER - 1
        expected = [_VERSION, corpus.st_size, corpus.st_mtime_ns, count]
        if stored[:4].tolist() == expected and stored[-1] == corpus.st_size:
            digest = stored[4:HEADER].astype("<i8").tobytes().hex()
            return StoredMap(count, digest, stored[HEADER:])
    return None


def _scan(path: Path) -> np.ndarray:
    """Check every line of a corpus; return its map."""
    # Eight bytes per number; a list would take five times that.
    starts, lines, ids = array("q"), array("q"), array("q")
    digest = hashlib.sha256()
    position = 0
    with reading(path), path.open("rb") as file:
        corpus = os.fstat(file.fileno())
        for number, line in enumerate(tqdm(file, f"reading {path.name}", unit=" lines"), 1):
            if line.strip():
                passage = parse_passage(line, f"{path}:{number}")
                starts.append(position)
                lines.append(number)
                ids.append(hash(passage.id))
                digest.update(_canonical(passage))
            position += len(line)
        if not starts:
            raise DataError(f"{path}: holds no passage: give a file with one JSON object per line")
        # Ids of one hash are looked up in the file.
        hashes = np.frombuffer(ids, np.int64)
        order = np.argsort(hashes, kind="stable")
        doubtful = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        for pair in zip(order[doubtful], order[doubtful + 1], strict=True):
            names = []
            for place in pair:
                file.seek(starts[place])
                names.append(parse_passage(file.readline(), str(path)).id)
            if names[0] == names[1]:
                raise DataError(
                    f"{path}:{lines[pair[1]]}: the id {names[0]!r} is taken by line "
                    f"{lines[pair[0]]}: give every passage its own id"
                )
    header = [_VERSION, corpus.st_size, corpus.st_mtime_ns, len(starts)]
    words = np.frombuffer(digest.digest(), "<i8")
    return np.concatenate([header, words, starts, [corpus.st_size]], dtype=np.int64)
