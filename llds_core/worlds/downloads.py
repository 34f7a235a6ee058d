"""`make data`: fetch corpus, index, encoder, questions, training mix and policy of a profile.

Files arrive in `.incoming` of the data folder, are compared with the hub's checksums, and only then
take their place; `manifest.json` records where they came from. Whatever stops a call, the next one
continues file by file: a file that had not arrived whole is fetched from its beginning.
"""

import fnmatch
import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import IO, Any, Literal, cast

import yaml

from llds_core.config import load_experiment
from llds_core.errors import ConfigError, DataError, DownloadError, RunError, did_you_mean
from llds_core.files import hub_errors, locked, write_json

Kind = Literal["dataset", "model"]
_FILES_WORLD = ("questions", "train", "encoder", "corpus", "index")  # small ones first
_CHUNK = 1 << 23


@dataclass(frozen=True)
class Source:
    """What is taken from one repository of the hub; `sources.yaml` explains and lists them all."""

    repo: str
    kind: Kind
    revision: str
    files: list[str]
    folder: str
    make: Literal["keep", "join", "unpack"] = "keep"
    result: str = ""
    unpacked: int = 0

    def staging(self, folder: Path) -> Path:
        """Where its files arrive."""
        return folder / ".incoming" / self.repo.replace("/", "--") / self.revision[:12]


_LIST = (package_files("llds_core") / "worlds" / "sources.yaml").read_text("utf-8")
SOURCES = {name: Source(**source) for name, source in yaml.safe_load(_LIST).items()}


@dataclass(frozen=True)
class Item:
    """A source that is not complete yet, with its files as the hub announces them; what is still to
    transfer, and the disk that it takes meanwhile on top of what is there. Sizes in bytes.
    """

    name: str
    files: dict[str, int]
    download: int
    room: int


def needs(profile: str, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the sources of `profile`, or of these only the ones in `only` when there are any. A
    policy is among them where the profile looks for it in the folder that a source fills.
    """
    config = load_experiment(f"{profile}/grpo")
    names = list(_FILES_WORLD if config.world.name == "files" else ())
    for name, source in SOURCES.items() if names else ():
        if config.policy.path == f"{config.data.folder}/{source.folder}":
            names.append(name)
    for name in only:
        if name not in names:
            hint = did_you_mean(name, names) if names else "it needs no download"
            raise ConfigError(f'{profile} needs no "{name}": {hint}')
    return tuple(name for name in names if not only or name in only)


def list_files(repo: str, kind: Kind, revision: str | None) -> dict[str, int]:
    """Paths and sizes in bytes of the files of a repository that the hub would give us; refused
    without an answer within ten seconds, or when it is unknown or gated.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, kind, revision):
        info: Any = HfApi().repo_info(
            repo, repo_type=kind, revision=revision, files_metadata=True, timeout=10
        )
        if info.gated:
            # A gated repository shows its files to all; better refused now than after hours.
            HfApi().auth_check(repo, repo_type=kind)
    return {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}


def find_missing(names: Sequence[str], folder: Path) -> list[Item]:
    """Ask the hub what is still missing in `folder` of the sources `names`."""
    manifest, items = read_manifest(folder), []
    for name in names:
        source, entry = SOURCES[name], manifest.get(name, {})
        known = entry.get("source") == asdict(source)
        if known and not _lacking(entry["files"], folder / source.folder):
            continue
        files = _announced(source)
        wanted = _wanted(source, files, folder)
        download = sum(_lacking(wanted, source.staging(folder)).values())
        # On top: the parts that are appended to the first, or what comes out of the archive.
        made = {"keep": 0, "join": sum(list(files.values())[1:]), "unpack": source.unpacked}
        items.append(Item(name, files, download, download + (made[source.make] if wanted else 0)))
    return items


def _announced(source: Source) -> dict[str, int]:
    """The files of a source and their sizes; a wildcard stays within one folder."""
    listed = list_files(source.repo, source.kind, source.revision)
    files: dict[str, int] = {}
    for pattern in source.files:
        depth = pattern.count("/")
        found = [path for path in fnmatch.filter(listed, pattern) if path.count("/") == depth]
        if not found:
            raise DownloadError(
                f"{source.repo} holds no {pattern} at revision {source.revision}: check its page "
                "on huggingface.co"
            )
        files |= {path: listed[path] for path in found}
    return files


def _wanted(source: Source, files: dict[str, int], folder: Path) -> dict[str, int]:
    """Files that have to be in `.incoming`, to be moved or put together."""
    target = folder / source.folder
    if source.make == "keep":
        return _lacking(files, target)
    total = sum(files.values()) if source.make == "join" else source.unpacked
    if not _lacking({source.result: total}, target):
        return {}
    begun = source.make == "join" and (source.staging(folder) / source.result).exists()
    return dict(list(files.items())[begun:])  # the first part has become the result


def _lacking(files: dict[str, int], folder: Path) -> dict[str, int]:
    """Those of `files` that are not in `folder` with their size."""
    return {
        path: size
        for path, size in files.items()
        if not (folder / path).is_file() or (folder / path).stat().st_size != size
    }


def describe(items: Sequence[Item], folder: Path) -> str:
    """What would be fetched, line by line, and the disk it takes; one too small is refused."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    room, free = sum(item.room for item in items), shutil.disk_usage(there).free
    if room > free:
        raise RunError(
            f"{folder} has {_show(free)} free and {_show(room)} are needed: free space, choose "
            "another --folder, or fetch a part with --only"
        )
    lines = [
        f"{item.name:<20} {SOURCES[item.name].repo:<30} {_show(item.download):>9} to download"
        for item in items
    ]
    total = f"together {_show(sum(item.download for item in items))} to download"
    return "\n".join([*lines, f"{total}; takes up to {_show(room)} of the {_show(free)} free"])


def _show(size: int) -> str:
    """A size in decimal units, as the hub shows it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def download(items: Sequence[Item], folder: Path) -> None:
    """Fetch, verify and put together `items`; the manifest tells what is complete."""
    with locked(folder / ".lock", f"another download is at work in {folder}: wait, or stop it"):
        for item in items:
            source = SOURCES[item.name]
            print(f"{item.name}: {_show(item.download)} from {source.repo}")
            with hub_errors(source.repo, source.kind, source.revision):
                if wanted := _wanted(source, item.files, folder):
                    _fetch(source, item.files, list(wanted), folder)
                _record(item, folder)
                shutil.rmtree(source.staging(folder), ignore_errors=True)
            print(f"{item.name}: complete")


def _fetch(source: Source, files: dict[str, int], wanted: list[str], folder: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    staging = source.staging(folder)
    of_repo: Any = {"repo_type": source.kind, "revision": source.revision, "local_dir": staging}
    for stale in staging.rglob("*.incomplete"):  # a kill leaves it, and the hub never continues it
        stale.unlink()
    snapshot_download(source.repo, allow_patterns=wanted, **of_repo)
    damaged = HfApi().verify_repo_checksums(source.repo, **of_repo).mismatches
    for one in damaged:
        (staging / one["path"]).unlink()
    if damaged:
        raise DownloadError(
            f"{source.repo}: {damaged[0]['path']} arrived with another checksum than the hub "
            "announced: it was deleted, run the same command again"
        )
    if source.make == "join":
        _join(files, staging, staging / source.result)
    elif source.make == "unpack":
        _unpack(staging / wanted[0], staging / source.result)
    for path in wanted if source.make == "keep" else [source.result]:
        target = folder / source.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / path).replace(target)


def _join(parts: dict[str, int], staging: Path, joined: Path) -> None:
    """Append the other parts to the first; after a kill they are appended anew."""
    first, *others = parts
    if not joined.exists():
        (staging / first).replace(joined)
    with joined.open("r+b") as file:
        file.truncate(parts[first])
        file.seek(parts[first])
        for path in others:
            with (staging / path).open("rb") as part:
                _copy(part, file)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a gzipped file, or the one in a gzipped tar.

    Search-R1's corpus is a tar in spite of its name `wiki-18.jsonl.gz`: plain gunzip would leave a
    tar header in front of the first passage.
    """
    with target.open("wb") as file:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive, "r|gz") as tar:
                member = next(member for member in tar if member.isfile())
                _copy(cast(IO[bytes], tar.extractfile(member)), file)  # a file's is never None
        else:
            with gzip.open(archive) as stream:
                _copy(stream, file)


def _copy(source: IO[bytes] | gzip.GzipFile, target: IO[bytes]) -> None:
    shutil.copyfileobj(source, target, _CHUNK)
    target.flush()
    os.fsync(target.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Where the files in `folder` come from, by source; empty when nothing was fetched yet."""
    path = folder / "manifest.json"
    try:
        return dict(json.loads(path.read_text("utf-8"))["sources"])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: delete it and run the same command again") from error


def _record(item: Item, folder: Path) -> None:
    source, files = SOURCES[item.name], item.files
    if source.make != "keep":
        files = {source.result: (folder / source.folder / source.result).stat().st_size}
    sources = read_manifest(folder) | {item.name: {"source": asdict(source), "files": files}}
    write_json(folder / "manifest.json", {"schema_version": 2, "sources": sources})
