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
from dataclasses import dataclass
from functools import cached_property
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
_OF_SETTINGS = ("passage_prefix", "max_tokens", "half", "vectors")
_SOURCES = {"passages": "passages", "corpus_hash": "corpus", "encoder_hash": "dense.encoder"}
_SOURCES |= {name: f"dense.{name}" for name in _OF_SETTINGS}


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
    """Build the index of `settings` in `folder` and return its manifest; see `DenseIndex`."""
    return DenseIndex(passages, settings, folder, encoder or Encoder(settings)).build()


@dataclass(frozen=True)
class DenseIndex:
    """The index of `passages` by `settings` in `folder`.

    Raises:
        ConfigError: when a value does not fit the corpus or the encoder, or a package or the file
            of `dense.vectors` is missing.
        RunError: when the folder holds an index of something else, none that is finished, or cannot
            be written.
        DataError: when the manifest or a file is missing or damaged, or `dense.vectors` is of
            another corpus or encoder.
    """

    passages: Sequence[Passage]
    settings: DenseConfig
    folder: Path
    encoder: Encoder

    @cached_property
    def source(self) -> dict[str, Any]:
        """What it is made from, as its manifest records it."""
        settings = self.settings
        return {
            "passages": len(self.passages),
            "corpus_hash": passages_hash(self.passages),
            "encoder": settings.encoder,
            "encoder_hash": self.encoder.hash,
            "dimension": self.encoder.dimension,
            "query_prefix": settings.query_prefix,
            "passage_prefix": settings.passage_prefix,
            "max_tokens": settings.max_tokens,
            "half": settings.half,
            "vectors": Path(settings.vectors).name if settings.vectors else None,
        }

    def build(self) -> dict[str, Any]:
        """Build it and return its manifest.

        What a killed build left is continued, a build in another process is waited for, and nothing
        is done when the index is there. Another kind over the same vectors costs no second
        encoding.
        """
        faiss, kind = import_faiss(), index_kind(self.settings)
        file = self.folder / "index.faiss"
        with locked(self.folder / "lock"):
            unfinished = {"schema_version": _VERSION, **self.source, "index": None}
            manifest = read_index_manifest(self.folder) or unfinished
            check_manifest(self.folder, manifest, self.source)
            damaged = _damaged(self.folder, manifest)
            if manifest["index"] == kind and "sha256" in manifest and not damaged:
                return manifest
            for each in [*damaged, *self.folder.glob(".*.partial")]:  # what a killed build left
                each.unlink(missing_ok=True)
            write_json(self.folder / "manifest.json", unfinished)
            if self.settings.vectors is None:
                self._encode()
            elif self.settings.index == "flat":
                self._published()  # is it of this corpus?
            if self.settings.index == "flat":
                file.unlink(missing_ok=True)  # of another kind
            else:
                index = self._filled()
                with replacing(file) as target:
                    faiss.write_index(index, faiss.PyCallbackIOWriter(target.write))
            manifest = unfinished | {"index": kind}
            files = [*self.folder.glob("vectors-*.npy"), *self.folder.glob("index.faiss")]
            manifest["sha256"] = {each.name: file_sha256(each) for each in sorted(files)}
            write_json(self.folder / "manifest.json", manifest)
        return manifest

    def open(self, command: str | None) -> "faiss.Index":
        """Open it; where none is finished a message names the `command` that builds it, or None
        builds it first. Files of FAISS are mapped into memory, not read.
        """
        manifest = read_index_manifest(self.folder)
        if not manifest or not manifest["index"]:
            if command:
                raise RunError(
                    f"{self.folder} holds no finished index: {command} builds or continues it; or "
                    "set dense.path"
                )
            manifest = self.build()
        check_manifest(self.folder, manifest, self.source, index_kind(self.settings))
        if damaged := _damaged(self.folder, manifest, _READ_AT_LOAD):
            raise DataError(
                f"{damaged[0]} is missing or damaged (its SHA-256 is not that of the manifest): "
                "build the index again, which makes only that anew"
            )
        if self.settings.index == "flat":
            return self._published() if self.settings.vectors else self._filled()
        advice = "build the index again (the vectors are kept)"
        return self._read(self.folder / "index.faiss", self._empty(), advice)

    @property
    def _shards(self) -> list[tuple[Path, slice]]:
        """The file of each shard, and the places of its passages."""
        return [
            (self.folder / f"vectors-{start // SHARD:05d}.npy", slice(start, start + SHARD))
            for start in range(0, len(self.passages), SHARD)
        ]

    def _encode(self) -> None:
        """Write the shards that are missing, in the encoder's own precision."""
        dtype = np.float16 if self.settings.half else np.float32
        for path, part in tqdm(self._shards, "encoding", unit=" shards"):
            if not path.exists():
                with replacing(path) as file:
                    np.save(file, self.encoder.encode_passages(self.passages[part]).astype(dtype))

    def _blocks(self) -> Iterator[np.ndarray]:
        """All vectors of the corpus in order, as blocks (at most `SHARD`, dimension). One at a
        time: each holds a file open, and there are more shards than a process may have files.
        """
        if self.settings.vectors is None:
            for path, _ in self._shards:
                yield np.load(path, mmap_mode="r")
        else:
            published, count = self._published(), len(self.passages)
            for start in range(0, count, SHARD):
                yield published.reconstruct_n(start, min(SHARD, count - start))

    def _empty(self) -> "faiss.Index":
        """The FAISS index of the settings for inner products."""
        faiss, dimension = import_faiss(), self.encoder.dimension
        if self.settings.index == "flat":
            return faiss.IndexFlatIP(dimension)
        neighbours, metric = self.settings.hnsw_neighbours, faiss.METRIC_INNER_PRODUCT
        graph = faiss.IndexHNSWFlat(dimension, neighbours, metric)
        graph.hnsw.efConstruction = self.settings.hnsw_build_depth
        return graph

    def _filled(self) -> "faiss.Index":
        """The FAISS index of the settings with all vectors of the corpus."""
        index = self._empty()
        if self.settings.index == "flat":
            # Reserved: growing while vectors are added would take twice the memory.
            flat = cast("faiss.IndexFlat", index)
            flat.codes.resize(len(self.passages) * flat.code_size)
            flat.codes.clear()
        for block in tqdm(self._blocks(), f"filling {self.settings.index}", unit=" shards"):
            index.add(np.asarray(block, np.float32))
        return index

    def _published(self) -> "faiss.Index":
        """Map somebody else's flat index into memory and compare some of its vectors with ours."""
        path, passages = Path(str(self.settings.vectors)), self.passages
        advice = "fetch that of this corpus (make data), or set dense.vectors=null to encode it"
        if not path.is_file():
            raise ConfigError(f"dense.vectors is {path}, which does not exist: {advice}")
        index = self._read(path, import_faiss().IndexFlatIP(self.encoder.dimension), advice)
        drawn = numpy_generator(0, "dense", "published").integers(len(passages), size=_CHECKED)
        places = sorted({0, len(passages) - 1, *drawn.tolist()})
        theirs = np.stack([index.reconstruct(place) for place in places])
        ours = self.encoder.encode_passages([passages[place] for place in places])
        wrong = ~(np.linalg.norm(theirs - ours, axis=1) < _APART)  # not finite numbers, too
        if wrong.any():
            first = places[int(wrong.argmax())]
            raise DataError(
                f"{path}: vector {first} is not that of passage {passages[first].id!r} "
                f"({wrong.sum()} of {len(places)} differ), so it is of another corpus, encoder or "
                f"prefix: {advice}"
            )
        return index

    def _read(self, path: Path, like: "faiss.Index", advice: str) -> "faiss.Index":
        """Map the file of an index of the kind and dimension of `like` with a vector a passage."""
        faiss, count = import_faiss(), len(self.passages)
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise DataError(
                f"{path} is missing, damaged or not an index of FAISS: {advice}"
            ) from error
        fits = (index.ntotal, index.d, index.metric_type) == (count, like.d, like.metric_type)
        if not fits or type(index) is not type(like):
            raise DataError(
                f"{path} holds {index.ntotal} vectors of {index.d} numbers "
                f"({type(index).__name__}), not {count} of {like.d} ({type(like).__name__}): "
                f"{advice}"
            )
        return index


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


def _damaged(folder: Path, manifest: Mapping[str, Any], most: float = math.inf) -> list[Path]:
    """Files of at most `most` bytes that are not what the manifest says was written."""
    digests = {folder / name: digest for name, digest in manifest.get("sha256", {}).items()}
    return [
        file
        for file, digest in digests.items()
        if not file.exists() or (file.stat().st_size <= most and file_sha256(file) != digest)
    ]
