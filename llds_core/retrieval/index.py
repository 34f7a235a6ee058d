"""The index of a corpus: passages as vectors, arranged by FAISS for searching.

    manifest.json            what the index was made from
    vectors-00000.npy        vectors in the order of the corpus; a killed build loses one such shard
    index.faiss              of `hnsw`; a `flat` index is the vectors themselves

    flat      every vector is compared: exact
    hnsw      a graph of neighbours over full vectors: fast and nearly exact, larger in memory

With `dense.vectors` a flat FAISS index that somebody else published takes the place of the shards
and is opened where it lies. The file says nothing of its corpus and encoder, so some of its vectors
are compared with what the encoder at hand makes of the same passages.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tqdm.auto import tqdm

from llds_core.config import DenseConfig
from llds_core.config.seeding import numpy_generator
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import file_sha256, locked, replacing, write_json
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.passage_file import passages_hash
from llds_core.worlds.records import Passage, shown

if TYPE_CHECKING:
    import faiss

SHARD = 5_000
"""Passages per shard."""

_VERSION = 2
_CHECKED = 32  # published vectors that are compared
_READ_AT_LOAD = 2**31  # bytes of a file that is checked when it is opened; `index` checks any
_APART = 0.1  # largest distance of two encodings of a passage; 16 bits against 32 give under 0.05
# What vectors depend on, as messages name it. An encoder is its hash, because a folder may move.
_SOURCES = {
    "passages": "passages",
    "corpus_hash": "corpus",
    "encoder_hash": "dense.encoder",
    "passage_prefix": "dense.passage_prefix",
    "max_tokens": "dense.max_tokens",
    "half": "dense.half",
    "vectors": "dense.vectors",
}


def index_path(settings: DenseConfig, world: str, corpus: str) -> Path:
    """Where the index over the corpus of hash `corpus` is, or will be: `dense.path`, or a folder of
    corpus and encoder, because indexes belong to these and not to runs.
    """
    if settings.path:
        return Path(settings.path)
    encoder = re.sub(r"[^A-Za-z0-9.-]+", "-", settings.encoder).strip("-.").lower()
    return Path("results/indexes") / f"{world}-{corpus[:12]}-{encoder[-60:]}"


def build_index(
    passages: Sequence[Passage], settings: DenseConfig, folder: Path, encoder: Encoder | None = None
) -> dict[str, Any]:
    """Build the index of `settings` in `folder` and return its manifest.

    What a killed build left is continued, a build in another process is waited for, and nothing is
    done when the index is there. Another kind over the same vectors costs no second encoding.

    Raises:
        ConfigError: when a value does not fit the corpus or the encoder, or a package or the file
            of `dense.vectors` is missing.
        RunError: when the folder holds an index of something else or cannot be written.
        DataError: when the manifest is damaged, or `dense.vectors` is of another corpus or encoder.
    """
    if not len(passages):
        raise ConfigError("a corpus of 0 passages: give the index something to find")
    faiss, encoder = import_faiss(), encoder or Encoder(settings)
    source, kind = index_source(passages, encoder, settings), index_kind(settings)
    file = folder / "index.faiss"
    with locked(folder / "lock"):
        unfinished = {"schema_version": _VERSION, **source, "index": None}
        manifest = read_index_manifest(folder) or unfinished
        check_manifest(folder, manifest, source)
        damaged = _damaged(folder, manifest)
        if not damaged and manifest["index"] == kind and "sha256" in manifest:
            return manifest
        for each in [*damaged, *folder.glob(".*.partial")]:  # what a killed build left
            each.unlink(missing_ok=True)
        write_json(folder / "manifest.json", unfinished)
        if settings.vectors is None:
            _encode(passages, encoder, settings, folder)
        elif settings.index == "flat":
            _open_published(Path(settings.vectors), passages, encoder)  # is it of this corpus?
        if settings.index == "flat":
            file.unlink(missing_ok=True)  # of another kind
        else:
            index = _filled(passages, encoder, settings, folder)
            with replacing(file) as target:
                try:
                    faiss.write_index(index, target.name)
                except RuntimeError as error:
                    reason = str(error).strip().split("\n")[-1]
                    raise RunError(f"cannot write to {file} ({reason}): free space") from error
        manifest = unfinished | {"index": kind}
        files = [*folder.glob("vectors-*.npy"), *folder.glob("index.faiss")]
        manifest["sha256"] = {each.name: file_sha256(each) for each in sorted(files)}
        write_json(folder / "manifest.json", manifest)
    return manifest


def open_index(
    passages: Sequence[Passage],
    encoder: Encoder,
    settings: DenseConfig,
    folder: Path,
    *,
    build: bool,
    command: str,
) -> "faiss.Index":
    """Open the index in `folder`, where none is finished only if it may `build` one, and otherwise
    a message names the `command` that does; files of FAISS are mapped into memory, not read.
    """
    manifest, is_new = read_index_manifest(folder), False
    if not manifest or not manifest["index"]:
        if not build:
            raise RunError(
                f"{folder} holds no finished index: {command} builds or continues it; or set "
                "dense.path"
            )
        manifest, is_new = build_index(passages, settings, folder, encoder), True
    check_manifest(
        folder, manifest, index_source(passages, encoder, settings), index_kind(settings)
    )
    if not is_new and (damaged := _damaged(folder, manifest, _READ_AT_LOAD)):
        raise DataError(
            f"{damaged[0]} is missing or damaged (its SHA-256 is not that of the manifest): "
            "build the index again, which makes only that anew"
        )
    if settings.index != "flat":
        advice = "build the index again (the vectors are kept)"
        like = _empty_index(settings, encoder.dimension)
        return _read_faiss(folder / "index.faiss", like, len(passages), advice)
    if settings.vectors is not None:
        return _open_published(Path(settings.vectors), passages, encoder)
    return _filled(passages, encoder, settings, folder)


def read_index_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of an index; None when there is none."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if manifest["schema_version"] != _VERSION:
            raise ValueError(f"schema version {manifest['schema_version']}, not {_VERSION}")
        if missing := {*_SOURCES, "index"} - manifest.keys():
            raise ValueError(f'no "{min(missing)}"')
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} is not a manifest of an index ({error}): delete the folder, or name another "
            "with dense.path"
        ) from error
    return manifest


def check_manifest(
    folder: Path, manifest: dict[str, Any], source: dict[str, Any], kind: str | None = None
) -> None:
    """Refuse an index in `folder` that was not made from `source` or is not of `kind`."""
    for key, name in _SOURCES.items():
        if (found := manifest.get(key)) != source[key]:
            raise RunError(
                f"{folder} was built with {name} {shown(found)}, now {shown(source[key])}: set it "
                "back, or build another index in another folder (dense.path)"
            )
    if kind not in (None, manifest["index"]):
        raise RunError(
            f"{folder} holds the index {manifest['index']}, not {kind}: set dense.index and its "
            "parameters back, or build the index again (the vectors are kept)"
        )


def index_source(
    passages: Sequence[Passage], encoder: Encoder, settings: DenseConfig
) -> dict[str, Any]:
    """What the index of `passages` is made from, as its manifest records it."""
    return {
        "passages": len(passages),
        "corpus_hash": passages_hash(passages),
        "encoder": settings.encoder,
        "encoder_hash": encoder.hash,
        "dimension": encoder.dimension,
        "query_prefix": settings.query_prefix,
        "passage_prefix": settings.passage_prefix,
        "max_tokens": settings.max_tokens,
        "half": settings.half,
        "vectors": Path(settings.vectors).name if settings.vectors else None,
    }


def index_kind(settings: DenseConfig) -> str:
    """What the manifest of an index calls it: its kind, and what it is built with."""
    if settings.index == "hnsw":
        return f"HNSW{settings.hnsw_neighbours} depth {settings.hnsw_build_depth}"
    return "Flat"


def import_faiss() -> Any:
    """Return the module `faiss`; a `ConfigError` where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "faiss is not installed: pip install faiss-cpu, or set retrieval.backend=bm25"
        ) from None
    return faiss


def _empty_index(settings: DenseConfig, dimension: int) -> "faiss.Index":
    """The FAISS index of `settings` for inner products."""
    faiss = import_faiss()
    if settings.index == "flat":
        return faiss.IndexFlatIP(dimension)
    graph = faiss.IndexHNSWFlat(dimension, settings.hnsw_neighbours, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = settings.hnsw_build_depth
    return graph


def _encode(
    passages: Sequence[Passage], encoder: Encoder, settings: DenseConfig, folder: Path
) -> None:
    """Write the shards that are missing or damaged, in the encoder's own precision."""
    dtype = np.float16 if settings.half else np.float32
    shards = _shards(folder, len(passages), encoder.dimension)
    count = math.ceil(len(passages) / SHARD)
    for path, part, shard in tqdm(shards, "encoding", count, unit=" shards"):
        if shard is None:
            with replacing(path) as file:
                np.save(file, encoder.encode_passages(passages[part]).astype(dtype))


def _shards(
    folder: Path, passages: int, dimension: int
) -> Iterator[tuple[Path, slice, np.ndarray | None]]:
    """The file of each shard, the places of its passages, and its vectors, mapped into memory: None
    when it is missing, truncated or of another shape. One at a time: each holds a file open, and
    millions of passages have more shards than a process may have files.
    """
    for start in range(0, passages, SHARD):
        path, stop = folder / f"vectors-{start // SHARD:05d}.npy", min(start + SHARD, passages)
        try:
            shard = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            shard = None
        whole = shard is not None and shard.shape == (stop - start, dimension)
        yield path, slice(start, stop), shard if whole else None


def _blocks(
    passages: Sequence[Passage], encoder: Encoder, settings: DenseConfig, folder: Path
) -> Iterator[np.ndarray]:
    """All vectors of a corpus in order, as blocks (at most `SHARD`, dimension)."""
    if settings.vectors is not None:
        published = _open_published(Path(settings.vectors), passages, encoder)
        for start in range(0, len(passages), SHARD):
            yield published.reconstruct_n(start, min(SHARD, len(passages) - start))
        return
    for path, _, shard in _shards(folder, len(passages), encoder.dimension):
        if shard is None:
            raise DataError(
                f"{path} is missing or damaged: build the index again, which encodes only that"
            )
        yield shard


def _filled(
    passages: Sequence[Passage], encoder: Encoder, settings: DenseConfig, folder: Path
) -> "faiss.Index":
    """The index of `settings` with all vectors of a corpus."""
    index = _empty_index(settings, encoder.dimension)
    if settings.index == "flat":
        # Reserved: growing while vectors are added would take twice the memory.
        flat = cast("faiss.IndexFlat", index)
        flat.codes.resize(len(passages) * flat.code_size)
        flat.codes.clear()
    blocks = _blocks(passages, encoder, settings, folder)
    for block in tqdm(blocks, f"filling {settings.index}", unit=" shards"):
        index.add(np.asarray(block, np.float32))
    return index


def _open_published(path: Path, passages: Sequence[Passage], encoder: Encoder) -> "faiss.Index":
    """Map somebody else's flat index into memory and compare some of its vectors with our own."""
    advice = "fetch that of this corpus (make data), or set dense.vectors=null to encode it"
    if not path.is_file():
        raise ConfigError(f"dense.vectors is {path}, which does not exist: {advice}")
    flat = import_faiss().IndexFlatIP(encoder.dimension)
    index = _read_faiss(path, flat, len(passages), advice)
    drawn = numpy_generator(0, "dense", "published").integers(len(passages), size=_CHECKED)
    places = sorted({0, len(passages) - 1, *drawn.tolist()})
    theirs = np.stack([index.reconstruct(place) for place in places])
    ours = encoder.encode_passages([passages[place] for place in places])
    wrong = ~(np.linalg.norm(theirs - ours, axis=1) < _APART)  # numbers that are not finite, too
    if wrong.any():
        first = places[int(wrong.argmax())]
        raise DataError(
            f"{path}: vector {first} is not that of passage {passages[first].id!r} ({wrong.sum()} "
            f"of {len(places)} differ), so it is of another corpus, encoder or prefix: {advice}"
        )
    return index


def _read_faiss(path: Path, like: "faiss.Index", passages: int, advice: str) -> "faiss.Index":
    """Map the file of an index of the kind and dimension of `like` with `passages` vectors."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DataError(f"{path} is missing, damaged or not an index of FAISS: {advice}") from error
    fits = (index.ntotal, index.d, index.metric_type) == (passages, like.d, like.metric_type)
    if not fits or type(index) is not type(like):
        raise DataError(
            f"{path} holds {index.ntotal} vectors of {index.d} numbers ({type(index).__name__}), "
            f"not {passages} of {like.d} ({type(like).__name__}): {advice}"
        )
    return index


def _damaged(folder: Path, manifest: Mapping[str, Any], most: float = math.inf) -> list[Path]:
    """Files of at most `most` bytes that are not what the manifest says was written."""
    digests = {folder / name: digest for name, digest in manifest.get("sha256", {}).items()}
    return [
        file
        for file, digest in digests.items()
        if not file.exists() or (file.stat().st_size <= most and file_sha256(file) != digest)
    ]
