"""`make data`: fetch corpus, index, encoder, questions, training mix and policy of a profile.

Sizes and checksums are asked from the hub each time, never kept here. Every file is verified before
it takes its place, and `manifest.json` in the data folder then records where it came from. Whatever
stops a call, the next one goes on: what the manifest records is left alone, and what has arrived of
a file waits in `.incoming`.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llds_core.errors import DataError, RunError
from llds_core.worlds.assembly import join_parts, unpack
from llds_core.worlds.hub import AGAIN, HubFile, fetch, hub_errors, list_files, matches
from llds_core.worlds.records import write_lines
from llds_core.worlds.sources import SOURCES, Source

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Item:
    """One source that is not complete yet.

    Attributes:
        name: key of `SOURCES`.
        files: what the hub announces.
        load: bytes still to transfer.
        final: bytes that it adds to the data folder for good.
        peak: bytes that it adds while it is put together.
    """

    name: str
    files: tuple[HubFile, ...]
    load: int
    final: int
    peak: int


def plan(names: Sequence[str], folder: Path) -> list[Item]:
    """Ask the hub what is still missing in `folder` of the sources `names`.

    Raises:
        DataError: when the manifest is damaged.
        DownloadError: when the hub does not answer.
    """
    manifest = read_manifest(folder)
    return [
        _item(name, folder, manifest)
        for name in names
        if not _is_complete(manifest.get(name), SOURCES[name], folder)
    ]


def _item(name: str, folder: Path, manifest: dict[str, Any]) -> Item:
    source = SOURCES[name]
    files = list_files(source.repo, source.kind, source.revision, source.files)
    files = [f for f in files if not _has(manifest.get(name), source, folder, f.path)]
    sizes = [file.size for file in files]
    total = sum(sizes)
    here = _staged(folder, source)
    if source.make == "join":
        final, peak = total, total + max(sizes[1:], default=0)
    elif source.make == "unpack":
        final, peak = source.unpacked, source.unpacked + total
    else:
        final, peak = total, total
    return Item(name, tuple(files), max(0, total - here), final, max(0, peak - here))


def room(items: Sequence[Item]) -> int:
    """Bytes of disk that fetching `items` one after the other takes at its worst moment."""
    settled = worst = 0
    for item in items:
        worst = max(worst, settled + item.peak)
        settled += item.final
    return worst


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def describe(items: Sequence[Item], folder: Path) -> str:
    """What would be fetched, line by line, and the disk it takes."""
    lines = [
        f"{item.name:<20} {SOURCES[item.name].repo:<30} {gigabytes(item.load):>9} to load, "
        f"{gigabytes(item.final):>9} in {folder / SOURCES[item.name].folder}"
        for item in items
    ]
    load = sum(item.load for item in items)
    lines.append(
        f"together {gigabytes(load)} to load; takes up to {gigabytes(room(items))} of the "
        f"{gigabytes(free_bytes(folder))} free at {folder}"
    )
    return "\n".join(lines)


def gigabytes(size: int) -> str:
    """A size in decimal units, as the hub shows it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def check_room(items: Sequence[Item], folder: Path) -> None:
    """Refuse when the disk is too small.

    Raises:
        RunError: with both sizes.
    """
    needed, free = room(items), free_bytes(folder)
    if needed > free:
        raise RunError(
            f"{folder} has {gigabytes(free)} free and {gigabytes(needed)} are needed: free space, "
            "choose another --folder, or fetch a part with --only"
        )


def download(items: Sequence[Item], folder: Path, say: Callable[[str], None] = print) -> None:
    """Fetch, verify and put together `items`; the manifest tells what is complete.

    Raises:
        DownloadError: when the hub does not give a file, or not the announced one.
        DataError: when an archive is damaged.
        RunError: when the disk is too small, full or not writable, or another call is at work.
    """
    check_room(items, folder)
    with _alone(folder):
        for item in items:
            source = SOURCES[item.name]
            say(f"{item.name}: {gigabytes(item.load)} from {source.repo}")
            with hub_errors(source.repo, source.kind, source.revision):
                _get(item, source, folder)
                shutil.rmtree(_staging(folder, source), ignore_errors=True)
            _record(folder, item.name, {}, complete=True)
            say(f"{item.name}: complete")


def _get(item: Item, source: Source, folder: Path) -> None:
    staging, target = _staging(folder, source), folder / source.folder
    if source.make == "keep":
        for file in item.files:
            digest = fetch(file, staging / file.path)
            (target / file.path).parent.mkdir(parents=True, exist_ok=True)
            (staging / file.path).replace(target / file.path)
            _record(folder, item.name, {file.path: (digest, file.size)})
        return
    result = target / source.result
    if source.make == "join":
        digest = join_parts(item.files, staging, result)
    else:
        (archive,) = item.files
        if not (staging / archive.path).exists():
            fetch(archive, staging / archive.path)
        digest = unpack(staging / archive.path, result)
    _record(folder, item.name, {source.result: (digest, result.stat().st_size)}, item.files)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `folder` holds, by source; empty when nothing was fetched yet.

    Raises:
        DataError: when the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        sources = json.loads(path.read_text("utf-8"))["sources"]
        if not all(isinstance(entry["files"], dict) for entry in sources.values()):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: delete it, and the files are fetched anew") from error
    return sources


def _record(
    folder: Path,
    name: str,
    files: dict[str, tuple[str, int]],
    parts: Sequence[HubFile] = (),
    *,
    complete: bool = False,
) -> None:
    source, sources = SOURCES[name], read_manifest(folder)
    entry = sources.get(name)
    if entry is None or entry.get("revision") != source.revision:
        entry = {"files": {}}
    entry |= {
        "repo": source.repo,
        "revision": source.revision,
        "folder": source.folder,
        "complete": complete,
    }
    entry["files"] |= {
        path: {"sha256": digest, "size": size} for path, (digest, size) in files.items()
    }
    if parts:
        entry["made_from"] = {f.path: {"sha256": f.sha256, "size": f.size} for f in parts}
    sources[name] = entry
    text = json.dumps({"schema_version": 1, "sources": sources}, indent=1, sort_keys=True)
    write_lines(folder / MANIFEST, [text])


def _is_complete(entry: dict[str, Any] | None, source: Source, folder: Path) -> bool:
    return bool(
        entry
        and entry.get("complete")
        and entry.get("revision") == source.revision
        # Of a list of files that has grown since, some are missing.
        and (source.make != "keep" or all(_among(entry["files"], p) for p in source.files))
        and all(_has(entry, source, folder, path) for path in entry["files"])
    )


def _among(files: Iterable[str], pattern: str) -> bool:
    return any(matches(file, pattern) for file in files)


def _has(entry: dict[str, Any] | None, source: Source, folder: Path, path: str) -> bool:
    """Whether the manifest records `path` at this revision and it still has its size."""
    if not entry or entry.get("revision") != source.revision or path not in entry["files"]:
        return False
    file = folder / source.folder / path
    return file.is_file() and file.stat().st_size == entry["files"][path]["size"]


def _staging(folder: Path, source: Source) -> Path:
    return folder / ".incoming" / source.repo.replace("/", "--") / source.revision[:12]


def _staged(folder: Path, source: Source) -> int:
    return sum(p.stat().st_size for p in _staging(folder, source).rglob("*") if p.is_file())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second call out; the lock is the kernel's, so that a kill releases it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}): choose another --folder; {AGAIN}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another download is at work in {folder}: wait for it, or stop it"
            ) from error
        yield
