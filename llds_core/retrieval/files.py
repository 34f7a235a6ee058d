"""Files of an index: what is in them, and who may write there."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llds_core.errors import RunError

_BLOCK = 1 << 20


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def building(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder`, made when missing, as the only process that builds in it.

    The lock is the kernel's, so that a killed process holds none.

    Args:
        folder: the folder of an index.
        wait: wait for another builder instead of refusing.

    Raises:
        RunError: when another process builds there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}): choose a writable folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            raise RunError(
                f"{folder} is being built by process {lock.read().strip()}: wait for it, or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
