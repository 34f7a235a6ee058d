"""Files that appear whole or not at all, and what a disk or a model hub that refuses says."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import AcquireReturnProxy, FileLock, Timeout

from llds_core.errors import DownloadError, LLDSError, RunError

if TYPE_CHECKING:
    import pandas as pd

# What a file system says that has no locks, or whose lock server does not answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NOTEBOOKS = Path("notebooks")
_MARKER = NOTEBOOKS / "00_meet_the_agent.ipynb"


def project_path(path: str | Path) -> Path:
    """Resolve `path` against the root of the project, from there as well as from `notebooks/`.

    Absolute paths stay. Outside of a project, relative ones count from the working directory.
    """
    here = Path.cwd()
    folders = (here, *here.parents)
    root = next((folder for folder in folders if (folder / _MARKER).exists()), here)
    return root / Path(path).expanduser()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing under `path` into a `RunError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_LOCKS:
            mount = next(place for place in (path.resolve() / "-").parents if place.is_mount())
            raise RunError(
                f"{path} is on a file system without locks ({error.strerror}, mounted at {mount}): "
                "choose a folder on a local disk (for runs: --run-root)"
            ) from error
        raise RunError(
            f"cannot write to {path} ({error.strerror or error}): free space, make it writable, or "
            "choose another folder (for runs: --run-root)"
        ) from error


def locked(file: Path, busy: str | None = None) -> AcquireReturnProxy:
    """Take the lock that `file` stands for, freed by `with` or by `.lock.release()`, and by the
    kernel when the process is killed.

    Where another process has it, wait, or raise a `RunError` that says `busy`.
    """
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(file).acquire(blocking=busy is None)
        except Timeout:
            raise RunError(busy) from None


@contextmanager
def hub_errors(repo: str, kind: str, revision: str | None) -> Iterator[None]:
    """Turn what goes wrong between us and the model hub into one line that says what to do.

    `repo` is `owner/name`, `kind` is `dataset` or `model`; no `revision` means the newest.
    """
    import httpx
    from huggingface_hub import errors

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    again = "the same command continues where it stopped"
    login = 'log in with "hf auth login"'
    known = {
        errors.GatedRepoError: f"is gated: accept its licence at {page}, and {login}",
        errors.RepositoryNotFoundError: f"is not on the hub, or not for you: see {page} or {login}",
        errors.RevisionNotFoundError: f"has no revision {revision}: see {page}",
        errors.RemoteEntryNotFoundError: f"lacks a file at revision {revision}: see {page}",
        errors.OfflineModeIsEnabled: "is on the hub and HF_HUB_OFFLINE is set: unset it",
    }
    try:
        yield
    except LLDSError:
        raise
    except (OSError, httpx.HTTPError, RuntimeError) as error:  # the last one by hf_xet
        for kind_of_error, advice in known.items():
            if isinstance(error, kind_of_error):
                raise DownloadError(f"{repo} {advice}") from error
        # Of these errors only those of a disk have a number.
        if isinstance(error, OSError) and error.errno:
            raise RunError(
                f"{error.filename or 'the data folder'} cannot be written ({error.strerror}): free "
                f"space, make it writable, or choose another folder; {again}"
            ) from error
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise DownloadError(
            f"the hub did not give {repo} ({reason}): check the network; {again}"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` once it is whole and on disk.

    Its folder is made when missing.
    """
    # In the target's folder: a rename is atomic only within one file system. Named by process:
    # shards of an evaluation write the same manifest at the same time.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def append_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append `rows` as JSON lines, on disk when this returns; see `finite`."""
    with disk_errors(path), path.open("ab") as file:
        file.write(json_lines(rows))
        file.flush()
        os.fsync(file.fileno())


def json_lines(rows: Iterable[Any]) -> bytes:
    """`rows` as JSON lines in UTF-8; numbers that are not finite become null."""
    return "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows).encode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(path: Path, table: "pd.DataFrame", float_format: str | None = "%.6g") -> None:
    """Replace a CSV file by `table`, without its index."""
    write_text(path, table.to_csv(index=False, float_format=float_format))


def bounded(estimate: float, low: float, high: float, form: str) -> str:
    """An estimate with its bounds, if it has any, each in the format `form`."""
    bounds = "" if isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{estimate:{form}}{bounds}"


def number(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """As in prose: with the typographic minus, and no negative zero."""
    text = f"{value:{'+' if plus else ''}.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def span(values: Iterable[float], digits: int = 2, to: str = " to ") -> str:
    """Smallest and largest value, or the one that both are as printed."""
    found = sorted(values)
    return to.join(dict.fromkeys(number(value, digits) for value in (found[0], found[-1])))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file by `value`; numbers that are not finite become null."""
    with replacing(path) as file:
        file.write(json.dumps(finite(value), indent=1, ensure_ascii=False).encode() + b"\n")


def finite(value: Any) -> Any:
    """`value` with None in place of every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
