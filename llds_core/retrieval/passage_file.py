"""A corpus file of any size as a sequence of passages.

The file stays on disk; memory holds a map of where its lines begin. The map is built once, while
every line is checked, and is kept beside the file:

    corpus.jsonl                one passage a line, see `llds_core.worlds.records`
    corpus.jsonl.offsets.npy    int64: eight numbers that say what the map belongs to, the first
                                byte of each passage, the size of the file

It belongs to a file of the same size and time of change; another one is mapped anew.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from tqdm.auto import tqdm

from llds_core.errors import DataError
from llds_core.files import replacing
from llds_core.worlds.records import Passage, parse_passage

HEADER = 8
"""Leading numbers of a map: version, size, time of change, passages, and the hash in four."""

_VERSION = 1
_REPORT = 1000  # lines between two updates of the progress bar


class PassageFile(Sequence[Passage]):
    """A JSON-lines corpus with random access, of which no more than is asked for is in memory.

    Args:
        path: the corpus.
        offsets: where its map is kept; None for beside it.
        progress: show a progress bar while the map is built.

    Raises:
        DataError: when the file is missing or unreadable, a line is no passage, an id occurs
            twice, or there is no passage at all.
        RunError: when the map cannot be written.

    Attributes:
        hash: SHA-256 of ids, titles and texts in their order; see `passages_hash`.
    """

    def __init__(
        self, path: str | Path, *, offsets: Path | None = None, progress: bool = False
    ) -> None:
        self.path = Path(path)
        self.offsets_path = offsets or _map_path(self.path)
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from error
        # Not locked: who builds the same map at the same time writes the same bytes.
        stored = _read_map(self.offsets_path, os.fstat(self._file.fileno()))
        if stored is None:
            with replacing(self.offsets_path) as file:
                np.save(file, _scan(self.path, progress))
            stored = _read_map(self.offsets_path, os.fstat(self._file.fileno()))
        if stored is None:
            raise DataError(f"{self.path} changed while it was read: start again when it is whole")
        self._offsets = stored[HEADER:]
        self.hash = _map_hash(stored)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Passage: ...

    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...

    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._read(start, max(start, stop))
            return [self[i] for i in range(start, stop, step)]
        place = range(len(self))[index]
        return self._read(place, place + 1)[0]

    def __iter__(self) -> Iterator[Passage]:
        for start in range(0, len(self), _REPORT):
            yield from self._read(start, min(start + _REPORT, len(self)))

    def _read(self, start: int, stop: int) -> list[Passage]:
        """Passages `start` to `stop`, in one read; safe from several threads and processes."""
        bounds = self._offsets[start : stop + 1].tolist()
        first, last = bounds[0], bounds[-1]
        try:
            # One read returns at most 2 GiB.
            block = b"".join(_pieces(self._file.fileno(), first, last))
        except OSError as error:
            raise _unreadable(self.path, error) from error
        where = f"{self.path} at byte"
        return [
            parse_passage(block[a - first : b - first], f"{where} {a}") for a, b in pairwise(bounds)
        ]


@dataclass(frozen=True)
class StoredMap:
    """What the map of a corpus file says about it.

    Attributes:
        passages: how many there are.
        hash: as `PassageFile.hash`.
    """

    passages: int
    hash: str


def stored_map(path: Path) -> StoredMap | None:
    """What is known of a corpus without reading it; None when it was never read, or has changed."""
    try:
        stored = _read_map(_map_path(path), path.stat())
    except OSError:
        return None
    return None if stored is None else StoredMap(len(stored) - HEADER - 1, _map_hash(stored))


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


def _map_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.offsets.npy")


def _map_hash(stored: np.ndarray) -> str:
    return np.array(stored[4:HEADER]).astype("<i8").tobytes().hex()


def _read_map(path: Path, corpus: os.stat_result) -> np.ndarray | None:
    """The map, memory-mapped; None when it is missing, damaged or of another file."""
    try:
        stored = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if stored.dtype != np.int64 or stored.ndim != 1 or len(stored) < HEADER + 2:
        return None
    expected = [_VERSION, corpus.st_size, corpus.st_mtime_ns, len(stored) - HEADER - 1]
    whole = stored[:4].tolist() == expected and stored[-1] == corpus.st_size
    return stored if whole else None


def _scan(path: Path, progress: bool) -> np.ndarray:
    """Check every line of a corpus; return its map."""
    starts, ids = array("q"), array("q")  # eight bytes a number, a list would take five times that
    digest = hashlib.sha256()
    try:
        with (
            path.open("rb") as file,
            tqdm(
                total=path.stat().st_size,
                desc=f"reading {path.name}",
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            corpus = os.fstat(file.fileno())
            position = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    passage = parse_passage(line, f"{path}:{number}")
                    starts.append(position)
                    ids.append(hash(passage.id))
                    digest.update(_canonical(passage))
                position += len(line)
                if number % _REPORT == 0:
                    bar.update(position - bar.n)
            bar.update(position - bar.n)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not len(starts):
        raise DataError(f"{path}: holds no passage: give a file with one JSON object a line")
    _check_ids(path, np.frombuffer(starts, np.int64), np.frombuffer(ids, np.int64))
    header = [_VERSION, corpus.st_size, corpus.st_mtime_ns, len(starts)]
    words = np.frombuffer(digest.digest(), "<i8")
    return np.concatenate([header, words, starts, [corpus.st_size]], dtype=np.int64)


def _check_ids(path: Path, starts: np.ndarray, hashes: np.ndarray) -> None:
    """Raise for an id that occurs twice: eight bytes an id, and a look into the file for doubts."""
    order = np.argsort(hashes, kind="stable")
    doubtful = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    with path.open("rb") as file:

        def parsed(place: int) -> Passage:
            file.seek(int(starts[place]))
            return parse_passage(file.readline(), str(path))

        for index in doubtful.tolist():
            first, second = order[index], order[index + 1]
            id_ = parsed(first).id
            if id_ == parsed(second).id:
                raise DataError(
                    f"{path}:{_line(path, starts[second])}: the id {id_!r} is taken by line "
                    f"{_line(path, starts[first])}: give every passage its own id"
                )


def _line(path: Path, position: int) -> int:
    """Number of the line that begins at byte `position`."""
    number = 1
    with path.open("rb") as file:
        while position > 0 and (block := file.read(min(1 << 20, int(position)))):
            number += block.count(b"\n")
            position -= len(block)
    return number


def _pieces(descriptor: int, first: int, last: int) -> Iterator[bytes]:
    while first < last:
        piece = os.pread(descriptor, min(last - first, 1 << 30), first)
        if not piece:
            raise OSError(0, "it became shorter since it was opened")
        yield piece
        first += len(piece)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read ({error.strerror or error}): check the path and permissions"
    )
