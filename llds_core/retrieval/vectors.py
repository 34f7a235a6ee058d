"""Vectors of a corpus on disk, in shards: what encoding costs hours for, so that a kill costs one.

    manifest.json          what the vectors were made from, and the hash of every finished shard
    vectors-00000.npy      (passages of the shard, dimension), in the order of the corpus

A shard counts once the manifest names it, which happens after its file is whole. Numbers are
float32, as the encoder gives them; with `dense.half` they are float16, the encoder's own precision
then, which halves 65 GB for Wikipedia.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llds_core.config import DenseConfig
from llds_core.errors import DataError, RunError
from llds_core.files import replacing, write_text
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.files import file_hash
from llds_core.retrieval.passage_file import passages_hash
from llds_core.retrieval.published_vectors import PublishedVectors
from llds_core.worlds.records import Passage

SCHEMA_VERSION = 1

_LAYOUT = {"passages", "dimension", "dtype", "shard_passages", "shards"}
# What vectors depend on. The encoder is known by its hash: a folder may have moved. The shard size
# is the folder's own.
_SOURCES = ("passages", "corpus_hash", "encoder_hash", "passage_prefix", "max_tokens", "half")
_logger = logging.getLogger("llds_core")


class StoredVectors:
    """Vectors of a folder, memory-mapped.

    Args:
        folder: a folder of vectors.
        manifest: its manifest.

    Raises:
        RunError: when not all shards are finished.
        DataError: when a shard is missing, truncated or of another shape.

    Attributes:
        dimension: length of a vector.
        dtype: of the numbers on disk.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.dimension = manifest["dimension"]
        self.dtype = np.dtype(manifest["dtype"])
        self._size = manifest["passages"]
        self._shard = manifest["shard_passages"]
        self._shards = [
            _open_shard(folder / shard["file"], (shard["rows"], self.dimension), self.dtype)
            for shard in manifest["shards"]
        ]
        if sum(map(len, self._shards)) != self._size:
            raise RunError(f"{folder} holds no whole index: build it again, which continues it")

    def __len__(self) -> int:
        return self._size

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the float32 vectors of `indices` (n,) as (n, dimension)."""
        result = np.empty((len(indices), self.dimension), np.float32)
        shards = indices // self._shard
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            result[chosen] = self._shards[shard][indices[chosen] - shard * self._shard]
        return result

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield all vectors in order as float32 blocks of at most `size` rows."""
        for shard in self._shards:
            for start in range(0, len(shard), size):
                yield np.asarray(shard[start : start + size], np.float32)


def read_index_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a folder of vectors; None when there is none.

    Raises:
        DataError: when it is damaged or of another version.
    """
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
        version = manifest["schema_version"]
        missing = _LAYOUT - manifest.keys() if version == SCHEMA_VERSION else set()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} is no manifest of an index ({type(error).__name__}): delete the folder, or "
            "name another with dense.path"
        ) from error
    if missing:
        raise DataError(
            f'{file} is no manifest of an index (no "{min(missing)}"): delete the folder, or name '
            "another with dense.path"
        )
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema version {version}, this code reads {SCHEMA_VERSION}: build the "
            "index in another folder (dense.path)"
        )
    return manifest


def write_index_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest; a reader sees the old or the new one, never a part.

    Raises:
        RunError: when it cannot be written.
    """
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_text(folder / "manifest.json", f"{text}\n")


def vector_source(
    passages: Sequence[Passage], encoder: Encoder, settings: DenseConfig
) -> dict[str, Any]:
    """What the vectors of `passages` are made from, as a manifest records it."""
    return {
        "passages": len(passages),
        "corpus_hash": passages_hash(passages),
        "encoder": settings.encoder,
        "encoder_hash": encoder.hash,
        "revision": encoder.revision,
        "query_prefix": settings.query_prefix,
        "passage_prefix": settings.passage_prefix,
        "max_tokens": settings.max_tokens,
        "half": settings.half,
    }


def check_source(folder: Path, manifest: dict[str, Any], source: dict[str, Any]) -> None:
    """Raise a `RunError` that names what differs between a folder's vectors and `source`."""
    for key in _SOURCES:
        if manifest.get(key) != source[key]:
            found, now = (_shown(key, of) for of in (manifest, source))
            raise RunError(
                f"{folder} was built with {found}, now {now}: set it back, or build another index "
                "in another folder (dense.path)"
            )


def encode_corpus(
    passages: Sequence[Passage],
    encoder: Encoder,
    settings: DenseConfig,
    folder: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode `passages` into shards in `folder`; finished ones are kept and damaged ones redone.

    With `settings.vectors` the vectors are taken from that file instead. The caller holds the
    folder, see `llds_core.retrieval.files.building`.

    Returns:
        The manifest, of which all shards are finished.

    Raises:
        ConfigError: when the file of `settings.vectors` is needed and missing.
        RunError: when the folder holds vectors of something else, or cannot be written.
        DataError: when the manifest there is damaged, the encoder gives no finite numbers, or the
            file of `settings.vectors` is of another corpus or encoder.
    """
    source = vector_source(passages, encoder, settings)
    manifest = read_index_manifest(folder)
    if manifest is not None:
        check_source(folder, manifest, source)
    else:
        manifest = {
            "schema_version": SCHEMA_VERSION,
            **source,
            "dimension": encoder.dimension,
            "dtype": "float16" if settings.half else "float32",
            "shard_passages": settings.shard_passages,
            "shards": [],
            "index": None,
        }

    def encode(start: int, stop: int) -> np.ndarray:
        return encoder.encode_passages(passages[start:stop])

    rows, origin = encode, ""
    if settings.vectors:
        published = Path(settings.vectors)
        rows, origin = PublishedVectors(published, passages, encoder), published.name
    step = settings.batch_size * 16
    write_shards(manifest, folder, rows, step=step, progress=progress, origin=origin)
    return manifest


def write_shards(
    manifest: dict[str, Any],
    folder: Path,
    rows: Callable[[int, int], np.ndarray],
    *,
    step: int,
    progress: bool,
    origin: str = "",
) -> None:
    """Write the shards of `manifest` that are missing or damaged; `manifest` is kept up to date.

    Args:
        manifest: with `passages`, `dimension`, `dtype`, `shard_passages` and finished `shards`.
        folder: where they go.
        rows: float32 vectors from one index to another.
        step: vectors asked for at a time, between two updates of the progress bar.
        progress: show one.
        origin: file that the vectors are copied from, which the manifest notes of each shard.
    """
    size, length = manifest["shard_passages"], manifest["passages"]
    finished = {shard["file"]: shard for shard in manifest["shards"]}
    with tqdm(
        total=length, desc="copying" if origin else "encoding", unit="passage", disable=not progress
    ) as bar:
        for number, first in enumerate(range(0, length, size)):
            last = min(first + size, length)
            name = f"vectors-{number:05d}.npy"
            if name in finished and _is_whole(folder / name, finished[name]["sha256"]):
                bar.update(last - first)
                continue
            # An index that was made from other bytes than these is none.
            manifest["index"] = None
            vectors = np.empty((last - first, manifest["dimension"]), manifest["dtype"])
            for start in range(first, last, step):
                stop = min(start + step, last)
                vectors[start - first : stop - first] = rows(start, stop)
                bar.update(stop - start)
            with replacing(folder / name) as file:
                np.save(file, vectors)
            digest = file_hash(folder / name)
            finished[name] = {"file": name, "rows": last - first, "sha256": digest}
            if origin:
                finished[name]["from"] = origin
            manifest["shards"] = [finished[key] for key in sorted(finished)]
            write_index_manifest(folder, manifest)


def _shown(key: str, source: dict[str, Any]) -> str:
    """One of `_SOURCES` for a message; hashes are shortened."""
    value = source.get(key)
    if key == "passages":
        return f"{value} passages"
    if key == "corpus_hash":
        return f"the corpus {str(value)[:12]}"
    if key == "encoder_hash":
        return f"dense.encoder={source.get('encoder')} ({str(value)[:12]})"
    return f"dense.{key}={value!r}"


def _is_whole(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    if file_hash(path) == digest:
        return True
    _logger.warning("%s is damaged: its vectors are made again", path)
    return False


def _open_shard(path: Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    try:
        # Copy on write: torch warns of memory that it may not write to.
        shard = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "damaged or truncated"
        raise DataError(
            f"{path} is {reason}: build the index again, which encodes only that shard"
        ) from error
    if shard.shape != shape or shard.dtype != dtype:
        raise DataError(
            f"{path} holds {shard.dtype} {shard.shape}, the manifest says {dtype} {shape}: build "
            "the index again, which encodes only that shard"
        )
    return shard
