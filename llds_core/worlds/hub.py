"""Files of the model hub: what a repository holds, and getting one file, continued and verified.

`huggingface_hub` does the transfer, with its own retries, login and progress bar. It drops a part
of a file when the process ends, which for an index of 43 GB is a day lost on a slow line; so the
part is kept here, beside the target, and the library is asked for the rest.
"""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from llds_core.errors import DownloadError, LLDSError, RunError

Kind = Literal["dataset", "model"]
_CHUNK = 1 << 23
_TIMEOUT = 30.0  # seconds for the list of files
AGAIN = "the same command goes on where it stopped"


@dataclass(frozen=True)
class HubFile:
    """A file as the hub announces it.

    Attributes:
        repo: `owner/name`.
        kind: `dataset` or `model`.
        revision: full commit.
        path: in the repository.
        size: bytes.
        sha256: of the content, for large files; else None.
        blob: git's name of the content, for small files.
    """

    repo: str
    kind: Kind
    revision: str
    path: str
    size: int
    sha256: str | None
    blob: str | None


def list_files(
    repo: str, kind: Kind, revision: str | None, patterns: Iterable[str]
) -> list[HubFile]:
    """Ask the hub for the files of a repository that match `patterns`, in the order of these.

    Args:
        repo: `owner/name`.
        kind: `dataset` or `model`.
        revision: a commit or branch; None for the newest.
        patterns: paths with wildcards, which do not reach into subfolders.

    Raises:
        DownloadError: when the hub does not answer, or a pattern matches nothing.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, kind, revision):
        info = HfApi().repo_info(
            repo, repo_type=kind, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
        if info.gated:
            # A gated repository shows its files to all; better refused now than after hours.
            HfApi().auth_check(repo, repo_type=kind)
    files: dict[str, HubFile] = {}
    for pattern in patterns:
        matching = [entry for entry in info.siblings or () if matches(entry.rfilename, pattern)]
        if not matching:
            raise DownloadError(
                f"{repo} holds no {pattern} at revision {info.sha}: check its page "
                f"{_page(repo, kind)}"
            )
        for entry in matching:
            files[entry.rfilename] = HubFile(
                repo=repo,
                kind=kind,
                revision=info.sha,
                path=entry.rfilename,
                size=entry.lfs.size if entry.lfs else entry.size,
                sha256=entry.lfs.sha256 if entry.lfs else None,
                blob=None if entry.lfs else entry.blob_id,
            )
    return list(files.values())


def check_access(repo: str, kind: Kind, revision: str | None, *, timeout: float = 10.0) -> None:
    """Check that the hub would give the files of a repository.

    Raises:
        DownloadError: when it does not answer within `timeout` seconds, has no such revision, or
            the repository is gated and not open to us.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, kind, revision):
        info = HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=timeout)
        if info.gated:
            HfApi().auth_check(repo, repo_type=kind)


def is_cached(repo: str, path: str) -> bool:
    """Whether the hub's own cache holds a file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, path), str)


def matches(path: str, pattern: str) -> bool:
    """Whether a file of a repository is meant by a pattern; `*` stays within one folder."""
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def part_path(target: Path) -> Path:
    """Where the part of `target` stands that has arrived so far."""
    return target.with_name(f"{target.name}.part")


def fetch(file: HubFile, target: Path) -> str:
    """Download `file` to `target`, which appears complete and verified or not at all.

    Returns:
        The SHA-256 of the content.

    Raises:
        DownloadError: when the hub does not give it, or the content is not as announced.
        RunError: when the disk is full or cannot be written.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = part_path(target)
    with hub_errors(file.repo, file.kind, file.revision):
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        # Unbuffered: the library writes by the megabyte, and a kill loses nothing that arrived.
        with part.open("ab", buffering=0) as stream:
            http_get(
                hf_hub_url(file.repo, file.path, repo_type=file.kind, revision=file.revision),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.path,
            )
    digest = verify(file, part)
    part.replace(target)
    return digest


def verify(file: HubFile, path: Path) -> str:
    """Return the SHA-256 of `path`; delete it and raise when it is not what the hub announced.

    Raises:
        DownloadError: when size or checksum differ.
    """
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            if file.blob:
                blob.update(chunk)
    found, announced = (
        (sha256.hexdigest(), file.sha256) if file.sha256 else (blob.hexdigest(), file.blob)
    )
    if size != file.size or (announced and found != announced):
        path.unlink()
        raise DownloadError(
            f"{file.repo}: {file.path} arrived with checksum {found[:12]} and {size} bytes, not "
            f"{(announced or '')[:12]} and {file.size}: it was deleted, run the same command again"
        )
    return sha256.hexdigest()


def cached_file(repo: str, path: str, revision: str, kind: Kind = "dataset") -> Path:
    """Return a file of the hub from the hub's own cache, fetched when it is not there.

    Raises:
        DownloadError: when the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(repo, kind, revision):
        return Path(hf_hub_download(repo, path, repo_type=kind, revision=revision))


@contextmanager
def hub_errors(repo: str, kind: Kind, revision: str | None) -> Iterator[None]:
    """Turn what goes wrong between us and the hub into one line that says what to do."""
    import httpx
    from huggingface_hub import errors

    page = _page(repo, kind)
    try:
        yield
    except LLDSError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f'{repo} is gated: accept its licence at {page}, log in with "hf auth login", '
            "and run the same command again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f'{repo} is not on the hub, or not for you: check {page}, or log in with "hf auth '
            'login"'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision {revision}: check {page}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise DownloadError(f"{repo} lacks a file at revision {revision}: check {page}") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            f"the hub may not be asked for {repo} (HF_HUB_OFFLINE is set): unset it"
        ) from error
    except (httpx.HTTPError, errors.LocalEntryNotFoundError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise DownloadError(
            f"the hub did not give {repo} ({reason}): check the network; {AGAIN}"
        ) from error
    except OSError as error:
        if error.errno is None:  # the library's own complaint about a transfer that broke off
            raise DownloadError(f"the transfer of {repo} broke off: {AGAIN}") from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"{error.filename or 'the data folder'} cannot be written ({error.strerror}): "
            f"{'free space' if full else 'check its permissions'} or choose another --folder; "
            f"{AGAIN}"
        ) from error


def _page(repo: str, kind: Kind) -> str:
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
