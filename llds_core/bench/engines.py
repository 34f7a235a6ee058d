"""What `llds_core.bench.retrieval` compares: search engines, and a large corpus of made vectors."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llds_core.config import DenseConfig
from llds_core.errors import RunError
from llds_core.machine.sizing import index_size
from llds_core.retrieval.bm25 import BM25Retriever
from llds_core.retrieval.encoder import Encoder, unit_length
from llds_core.retrieval.faiss_files import import_faiss
from llds_core.retrieval.files import building
from llds_core.retrieval.index import PQ_CENTROIDS, make_index
from llds_core.retrieval.vector_search import VectorSearch
from llds_core.retrieval.vectors import (
    SCHEMA_VERSION,
    StoredVectors,
    read_index_manifest,
    write_shards,
)
from llds_core.seeding import numpy_generator
from llds_core.worlds.atlas import World

K = 3
SPREAD = 0.25
"""Expected length of the perturbation of a made vector."""

Answer = Callable[[slice], np.ndarray]
"""Part of the queries to indices of the found passages (queries, at most 3), -1 for none."""


@dataclass(frozen=True)
class Engine:
    """Something that answers queries, and what making it took; None where it means nothing.

    Attributes:
        ranks: by the vectors, so that its recall can be told.
    """

    name: str
    answer: Answer
    ranks: bool = True
    build_seconds: float | None = None
    index_mb: float | None = None
    build_peak_mb: float | None = None


def made_vectors(
    real: StoredVectors, source: dict[str, Any], size: int, folder: Path, *, progress: bool = False
) -> StoredVectors:
    """Return `size` vectors made of `real` ones, from `folder` if they are there.

    Args:
        real: vectors of real passages.
        source: their manifest.
        size: how many to make.
        folder: where they are kept.
        progress: show a progress bar.

    Raises:
        RunError: when the folder cannot be written, or holds vectors made of others.
    """
    everything = np.concatenate(list(real.blocks(1 << 16)))

    def rows(start: int, stop: int) -> np.ndarray:
        # A stream a block: blocks can be made in any order, as after a kill.
        random = numpy_generator(0, "bench", "made", start)
        x, y = (everything[random.integers(len(real), size=stop - start)] for _ in range(2))
        weight = random.random((stop - start, 1), np.float32)
        noise = random.standard_normal((stop - start, real.dimension), np.float32)
        mixed = weight * x + (1 - weight) * y + noise * (SPREAD / real.dimension**0.5)
        return unit_length(mixed)

    of = {"made_of": [shard["sha256"] for shard in source["shards"]], "passages": size}
    with building(folder):
        manifest = read_index_manifest(folder) or of | {
            "schema_version": SCHEMA_VERSION,
            "dimension": real.dimension,
            "dtype": "float32",
            "shard_passages": 100_000,
            "shards": [],
        }
        if any(manifest.get(key) != value for key, value in of.items()):
            raise RunError(f"{folder} holds vectors made of others: delete it")
        write_shards(manifest, folder, rows, step=10_000, progress=progress)
    return StoredVectors(folder, manifest)


def vector_engines(
    vectors: StoredVectors, asked: np.ndarray, settings: DenseConfig, progress: bool
) -> list[Engine]:
    """Plain FAISS flat first: what the others are compared with."""
    faiss = import_faiss()

    def plain() -> tuple[Answer, float]:
        index = faiss.IndexFlatIP(vectors.dimension)
        for block in vectors.blocks(1 << 16):
            index.add(block)
        return lambda part: index.search(asked[part], K)[1], index.codes.size() / 1e6

    def ours(**values: Any) -> Callable[[], tuple[Answer, float]]:
        chosen = replace(settings, **values)

        def build() -> tuple[Answer, float]:
            index = (
                None if chosen.engine == "torch" else make_index(vectors, chosen, progress=progress)
            )
            search = VectorSearch(vectors, chosen, index)
            size = index_size(chosen, len(vectors), vectors.dimension)
            return lambda part: search.search(asked[part], K)[1], size.memory / 1e6

        return build

    makers: dict[str, Callable[[], tuple[Answer, float]]] = {
        "plain FAISS flat": plain,
        "flat": ours(index="flat", engine="faiss"),
        "flat, torch": ours(index="flat", engine="torch"),
        "hnsw": ours(index="hnsw", engine="faiss"),
    }
    if len(vectors) >= PQ_CENTROIDS:
        makers["ivf-pq"] = ours(index="ivf-pq", engine="faiss")
    return [_made(name, make) for name, make in makers.items()]


def text_engines(
    world: World,
    encoder: Encoder,
    texts: Sequence[str],
    vectors: StoredVectors,
    settings: DenseConfig,
) -> list[Engine]:
    """Engines that are given the question itself."""
    place = {passage.id: index for index, passage in enumerate(world.passages)}
    search = VectorSearch(vectors, replace(settings, index="flat", engine="faiss"))

    def bm25() -> tuple[Answer, None]:
        retriever = BM25Retriever(world.passages)

        def answer(part: slice) -> np.ndarray:
            found = np.full((len(texts[part]), K), -1)
            for row, hits in zip(found, retriever.search(texts[part], K), strict=True):
                row[: len(hits)] = [place[hit.id] for hit in hits]
            return found

        return answer, None

    return [
        Engine(
            "flat, with encoding",
            lambda part: search.search(encoder.encode_queries(texts[part]), K)[1],
        ),
        replace(_made("bm25s", bm25), ranks=False),
    ]


def _made(name: str, make: Callable[[], tuple[Answer, float | None]]) -> Engine:
    """Make an engine, with the time and the peak of memory that it takes."""
    resident = _memory("VmRSS")
    if resident is not None:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak starts anew
    started = time.perf_counter()
    answer, size = make()
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM")
    grown = None if resident is None or peak is None else peak - resident
    return Engine(name, answer, True, seconds, size, grown)


def _memory(name: str) -> float | None:
    """A value of this process in MB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(name)), None)
