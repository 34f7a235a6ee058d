"""FAISS and its files; imported only where an index needs it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import replacing

if TYPE_CHECKING:
    import faiss


def import_faiss() -> Any:
    """Return the module `faiss`.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "faiss is not installed: pip install faiss-cpu, or set dense.engine=torch"
        ) from None
    return faiss


def read_faiss(path: Path, advice: str, *, mapped: bool = False) -> "faiss.Index":
    """Read an index from a file.

    Args:
        path: the file.
        advice: what to do about a file that is none.
        mapped: leave its vectors on disk until they are asked for.

    Raises:
        ConfigError: when faiss is not installed.
        DataError: when the file is missing or no index.
    """
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise DataError(f"{path} is no index that faiss reads: {advice}") from error


def write_faiss(index: "faiss.Index", path: Path) -> None:
    """Write an index to a file, whole or not at all.

    Raises:
        RunError: when it cannot be written.
    """
    faiss = import_faiss()
    with replacing(path) as file:
        try:
            faiss.write_index(index, file.name)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[-1]
            raise RunError(
                f"{path}: cannot be written ({reason}): free space or choose a writable folder"
            ) from error
