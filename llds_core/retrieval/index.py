"""Building an index: encode a corpus, then arrange its vectors for searching.

    flat      the stored vectors themselves, compared one by one: exact, no file of its own
    hnsw      a graph of neighbours over full vectors: fast and nearly exact, the largest in memory
    ivf-pq    vectors as a few bytes in cells: the smallest, its candidates are compared again
              with the stored vectors

One folder holds one index; another kind over the same vectors costs no second encoding. Memory is
bounded by the index itself, plus a block of vectors, plus for `ivf-pq` the sample it is trained on.
The step after encoding is not divided: killed, it starts over.
"""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.faiss_files import import_faiss, write_faiss
from llds_core.retrieval.files import building
from llds_core.retrieval.vectors import StoredVectors, encode_corpus, write_index_manifest
from llds_core.seeding import numpy_generator
from llds_core.worlds.records import Passage

if TYPE_CHECKING:
    import faiss

INDEX_ROOT = Path("results/indexes")

PQ_CENTROIDS = 256
"""Values of one byte of a product-quantised vector: also the fewest passages `ivf-pq` takes."""

_BLOCK = 16_384  # vectors added at a time
_POINTS = 40  # training vectors a cell; k-means gains little from more
_INDEX_FILE = "index.faiss"


def index_path(settings: DenseConfig, world: str, corpus: str) -> Path:
    """Where the index over the corpus of hash `corpus` is when `dense.path` does not say: a folder
    of corpus and encoder, because indexes belong to these and not to runs.
    """
    encoder = re.sub(r"[^A-Za-z0-9.-]+", "-", settings.encoder).strip("-.").lower()
    return INDEX_ROOT / f"{world}-{corpus[:12]}-{encoder[-60:]}"


def build_index(
    passages: Sequence[Passage],
    settings: DenseConfig,
    folder: Path,
    *,
    encoder: Encoder | None = None,
    wait: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Build the index of `settings` in `folder`, continuing what a killed build left there.

    Finished shards are checked and kept, damaged ones encoded again. Nothing is done when the
    index is there and whole.

    Args:
        passages: the corpus, in memory or a `PassageFile`.
        settings: encoder and index.
        folder: made when missing.
        encoder: the encoder of `settings`, if it is loaded already.
        wait: wait for another process that builds there instead of refusing.
        progress: show progress bars.

    Returns:
        The manifest.

    Raises:
        ConfigError: when there is no passage, a value does not fit the corpus or the encoder, or
            a package is missing.
        RunError: when the folder holds vectors of something else, another process builds there,
            or it cannot be written.
        DataError: when the manifest there is damaged.
    """
    if not len(passages):
        raise ConfigError("a corpus of 0 passages: give the index something to find")
    with building(folder, wait=wait):
        encoder = encoder or Encoder(settings)
        check_index_settings(settings, len(passages), encoder.dimension)
        manifest = encode_corpus(passages, encoder, settings, folder, progress=progress)
        described = describe_index(settings, len(passages))
        old = manifest.get("index")
        if (
            old
            and all(old.get(key) == value for key, value in described.items())
            and _is_there(folder, old)
        ):
            return manifest
        if old:
            manifest["index"] = None
            write_index_manifest(folder, manifest)
        entry = described | {"file": None, "bytes": 0, "faiss": None}
        if settings.index == "flat":
            (folder / _INDEX_FILE).unlink(missing_ok=True)  # of another kind, built before
        else:
            library = import_faiss()
            index = make_index(StoredVectors(folder, manifest), settings, progress=progress)
            write_faiss(index, folder / _INDEX_FILE)
            size = (folder / _INDEX_FILE).stat().st_size
            entry |= {"file": _INDEX_FILE, "bytes": size, "faiss": library.__version__}
        manifest["index"] = entry
        manifest["built"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_index_manifest(folder, manifest)
    return manifest


def describe_index(settings: DenseConfig, passages: int) -> dict[str, Any]:
    """The kind of the index with every parameter it is built with."""
    described: dict[str, Any] = {"index": settings.index}
    if settings.index == "hnsw":
        described["hnsw_neighbours"] = settings.hnsw_neighbours
        described["hnsw_build_depth"] = settings.hnsw_build_depth
    elif settings.index == "ivf-pq":
        described["ivf_lists"] = cells(settings, passages)
        described["pq_bytes"] = settings.pq_bytes
    return described


def cells(settings: DenseConfig, passages: int) -> int:
    """Cells of the coarse quantiser: as set, or about 4 √n with at least 40 passages each."""
    if settings.ivf_lists is not None:
        return settings.ivf_lists
    return max(1, min(round(4 * math.sqrt(passages)), passages // _POINTS))


def check_index_settings(settings: DenseConfig, passages: int, dimension: int) -> None:
    """Raise a `ConfigError` for settings that do not fit the corpus, the encoder or each other."""
    if settings.engine == "torch" and settings.index != "flat":
        raise ConfigError(
            f'dense.engine is "torch" with dense.index={settings.index}: set dense.index=flat, or '
            "dense.engine=faiss"
        )
    if settings.index != "ivf-pq":
        return
    if passages < PQ_CENTROIDS:
        raise ConfigError(
            f"dense.index=ivf-pq needs {PQ_CENTROIDS} passages to learn from and the corpus has "
            f"{passages}: set dense.index=flat"
        )
    if dimension % settings.pq_bytes:
        fitting = [n for n in range(1, dimension + 1) if dimension % n == 0 and n <= 128]
        raise ConfigError(
            f"dense.pq_bytes={settings.pq_bytes} does not divide vectors of {dimension} numbers: "
            f"choose one of {', '.join(map(str, fitting))}"
        )
    if cells(settings, passages) > passages:
        raise ConfigError(
            f"dense.ivf_lists={settings.ivf_lists} with {passages} passages: set it to null, or to "
            f"{passages} or less"
        )


def make_index(
    vectors: StoredVectors, settings: DenseConfig, *, progress: bool = False
) -> "faiss.Index":
    """Return the FAISS index of `settings` over `vectors`, for inner products.

    Raises:
        ConfigError: when faiss is not installed.
    """
    faiss = import_faiss()
    if settings.index == "flat":
        return _flat(faiss, vectors)
    if settings.index == "hnsw":
        index = faiss.IndexHNSWFlat(
            vectors.dimension, settings.hnsw_neighbours, faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = settings.hnsw_build_depth
    else:
        index = _trained(faiss, vectors, settings)
    with tqdm(
        total=len(vectors), desc=f"building {settings.index}", unit="passage", disable=not progress
    ) as bar:
        for block in vectors.blocks(_BLOCK):
            index.add(block)
            bar.update(len(block))
    return index


def _flat(faiss: Any, vectors: StoredVectors) -> "faiss.IndexFlatIP":
    """A flat index filled in place: adding block by block would reserve up to twice the memory."""
    index = faiss.IndexFlatIP(vectors.dimension)
    size = len(vectors) * vectors.dimension * 4
    index.codes.resize(size)
    index.ntotal = len(vectors)
    stored = faiss.rev_swig_ptr(index.codes.data(), size).view(np.float32)
    stored = stored.reshape(len(vectors), vectors.dimension)
    start = 0
    for block in vectors.blocks(_BLOCK):
        stored[start : start + len(block)] = block
        start += len(block)
    return index


def _trained(faiss: Any, vectors: StoredVectors, settings: DenseConfig) -> "faiss.IndexIVFPQ":
    """An empty `ivf-pq` index, trained on a sample drawn from a stream of its own."""
    count = cells(settings, len(vectors))
    quantizer = faiss.IndexFlatIP(vectors.dimension)
    index = faiss.IndexIVFPQ(
        quantizer, vectors.dimension, count, settings.pq_bytes, 8, faiss.METRIC_INNER_PRODUCT
    )
    # faiss prints a warning for small samples; the manifest says how many passages there are.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    wanted = min(len(vectors), max(count, PQ_CENTROIDS) * _POINTS)
    random = numpy_generator(0, "dense", "train")
    sample = random.choice(len(vectors), wanted, replace=False, shuffle=False)
    index.train(vectors.rows(np.sort(sample)))
    return index


def _is_there(folder: Path, entry: dict[str, Any]) -> bool:
    if entry["file"] is None:
        return True
    file = folder / entry["file"]
    return file.exists() and file.stat().st_size == entry["bytes"]
