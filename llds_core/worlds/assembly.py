"""What the corpus and the index need after they arrived: unpacking, and joining parts.

Both go on after a kill and never hold the same bytes twice: the first part becomes the joined file
by being renamed, and every further part is deleted once it is appended.
"""

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from llds_core.errors import DataError
from llds_core.worlds.hub import HubFile, fetch

_CHUNK = 1 << 23


def join_parts(files: Sequence[HubFile], staging: Path, target: Path) -> str:
    """Fetch `files` and make them one file, in their order; return its SHA-256.

    Args:
        files: the parts.
        staging: folder for what is not complete, on the same file system as `target`.
        target: the joined file; appears complete and verified.

    Raises:
        DownloadError: when a part cannot be had, or the result is not the sum of its parts.
        RunError: when the disk is full or cannot be written.
    """
    joined = staging / "joined"
    # Put in place by a call that was killed before it was recorded, perhaps.
    if target.exists() and target.stat().st_size == sum(file.size for file in files):
        digest, damaged = _digest_of(files, target)
        if not damaged:
            return digest
    start = 0
    for file in files:
        part, end = staging / file.path, start + file.size
        done = joined.stat().st_size if joined.exists() else 0
        if done < end:
            if not part.exists():
                fetch(file, part)
            if start == 0:
                part.replace(joined)
            else:
                _append(joined, start, part)
        part.unlink(missing_ok=True)
        start = end
    digest, damaged = _digest_of(files, joined)
    if damaged:
        joined.unlink()
        raise DataError(
            f"{joined}: the stretch of {damaged} is damaged: it was deleted, run the same command "
            "again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    joined.replace(target)
    return digest


def _append(joined: Path, start: int, part: Path) -> None:
    with joined.open("r+b") as target, part.open("rb") as source:
        target.truncate(start)  # what a killed call had appended
        target.seek(start)
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())


def _digest_of(files: Sequence[HubFile], joined: Path) -> tuple[str, str]:
    """SHA-256 of the whole, and the first part whose stretch is damaged; empty for none."""
    whole, damaged = hashlib.sha256(), ""
    with joined.open("rb") as stream:
        for file in files:
            stretch, left = hashlib.sha256(), file.size
            while left and (chunk := stream.read(min(_CHUNK, left))):
                stretch.update(chunk)
                whole.update(chunk)
                left -= len(chunk)
            if left or (file.sha256 and stretch.hexdigest() != file.sha256):
                damaged = damaged or file.path
    return whole.hexdigest(), damaged


def unpack(archive: Path, target: Path) -> str:
    """Unpack a gzipped JSON-lines file, or the only one in a gzipped tar; return its SHA-256.

    The corpus that Search-R1 published is a tar in spite of its name `wiki-18.jsonl.gz`: plain
    gunzip would leave a tar header in front of the first passage.

    Raises:
        DataError: when the archive is damaged, or does not hold one corpus.
    """
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(archive) as stream:
            is_tar = stream.read(512)[257:262] == b"ustar"
        if is_tar:
            with tarfile.open(archive, "r|gz") as tar:
                digest = _unpack_member(tar, archive, partial)
        else:
            with gzip.open(archive) as stream:
                digest = _copy(stream, partial)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(
            f"{archive} cannot be unpacked ({error}): delete it and run the same command again"
        ) from error
    _check_first_line(partial, archive)
    partial.replace(target)
    return digest


def _unpack_member(tar: tarfile.TarFile, archive: Path, partial: Path) -> str:
    digest = None
    for member in tar:
        if not member.isfile():
            continue
        if digest is not None:
            raise DataError(f"{archive} holds {member.name} beside the corpus: unpack it by hand")
        digest = _copy(tar.extractfile(member), partial)
    if digest is None:
        raise DataError(f"{archive} holds no file: delete it and run the same command again")
    return digest


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check_first_line(corpus: Path, archive: Path) -> None:
    with corpus.open("rb") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"id", "contents"} <= row.keys():
        raise DataError(
            f"{archive}: its first line is no passage ({line[:40]!r}): the hub's file has changed, "
            "unpack it by hand"
        )
