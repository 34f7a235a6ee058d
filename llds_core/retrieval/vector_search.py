"""Which stored vectors are nearest to that of a query.

An engine (FAISS, or matrix products in torch) proposes candidates; their scores are then computed
again, alike for every engine, from the stored vectors. So flat search is exact, its equal scores
rank in corpus order, and both engines return the same; and the coarse codes of `ivf-pq` only decide
what is looked at.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.encoder import compute_device
from llds_core.retrieval.faiss_files import import_faiss
from llds_core.retrieval.index import make_index
from llds_core.retrieval.vectors import StoredVectors

if TYPE_CHECKING:
    import faiss

_MARGIN = 8  # candidates beyond the k asked for
_QUERIES = 256  # searched at a time: bounds memory
_GPU_LIMIT = 2048  # candidates that FAISS returns from a GPU at most
_PRODUCT_QUERIES = 3  # fewest that FAISS compares by a matrix product
_TORCH_BLOCK = 65_536  # vectors multiplied at a time
# Bound of an engine's error in the inner product of two unit vectors, in 32 and in 16 bits.
_ERROR, _HALF_ERROR = 1e-5, 2e-3

Engine = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries, width) to scores and indices (queries, width), best first; index -1 for none."""


class VectorSearch:
    """Nearest stored vectors by inner product.

    Args:
        vectors: what is searched.
        settings: engine, device and how far an approximate index looks.
        index: a built index over `vectors`; None for a flat one.

    Raises:
        ConfigError: when a package or the GPU asked for is missing.
    """

    def __init__(
        self, vectors: StoredVectors, settings: DenseConfig, index: "faiss.Index | None" = None
    ) -> None:
        self._vectors = vectors
        self._lock = threading.Lock()  # an index on a GPU answers one thread at a time
        self._exact = settings.index == "flat"
        self._limit = len(vectors)
        self._rescore = settings.pq_rescore if settings.index == "ivf-pq" else 1
        on_gpu = compute_device(settings) == "cuda"
        self._error = _HALF_ERROR if on_gpu and settings.half else _ERROR
        if settings.engine == "torch":
            self._engine = _torch_engine(vectors, "cuda" if on_gpu else "cpu", settings.half)
            return
        if index is None:
            index = make_index(vectors, settings)
        if settings.index == "hnsw":
            self._engine = _hnsw_engine(index, settings.hnsw_search_depth)
            return
        if settings.index == "ivf-pq":
            index.nprobe = settings.ivf_probes
        if on_gpu and _faiss_uses_gpu(settings):
            index = _to_gpus(index, half=settings.half)
            self._limit = min(self._limit, _GPU_LIMIT)
        self._engine = _faiss_engine(index)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and indices of the best vectors, best first, equal scores by index.

        Args:
            queries: float32 (queries, dimension), of length 1.
            k: how many; all of them when there are fewer.

        Returns:
            Two arrays (queries, min(k, vectors)); where an approximate index found fewer, the
            score is -inf and the index -1.
        """
        k = min(k, len(self._vectors))
        with self._lock:
            parts = [
                self._search(queries[start : start + _QUERIES], k)
                for start in range(0, len(queries), _QUERIES)
            ]
        if not parts:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        return np.concatenate([s for s, _ in parts]), np.concatenate([i for _, i in parts])

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        limit = max(k, self._limit)
        width = min(k * self._rescore + _MARGIN, limit)
        scores = np.empty((len(queries), k), np.float32)
        indices = np.empty((len(queries), k), np.int64)
        pending = np.arange(len(queries))
        while len(pending):
            proposed, candidates = self._engine(queries[pending], width)
            best, where = self._ranked(queries[pending], candidates)
            scores[pending], indices[pending] = best[:, :k], where[:, :k]
            if not self._exact or width == limit:
                break
            # Nothing outside the candidates can score more than the last of them, give or take the
            # engine's error. Where that may reach the k-th place, as among equals, look further.
            pending = pending[proposed[:, -1] + self._error >= best[:, k - 1]]
            width = min(4 * width, limit)
        return scores, indices

    def _ranked(self, queries: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates with scores from the stored vectors, best first, then in corpus order."""
        rows = self._vectors.rows(np.maximum(found, 0).ravel()).reshape(*found.shape, -1)
        # Summed in 64 bits, then rounded: equal vectors get equal scores.
        scores = np.einsum("qd,qcd->qc", queries, rows, dtype=np.float64).astype(np.float32)
        scores[found < 0] = -np.inf
        order = np.lexsort((found, -scores), axis=-1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)


def _faiss_engine(index: "faiss.Index") -> Engine:
    """Search `index`, with matrix products from three queries on.

    FAISS itself compares pairs one by one up to some hundred queries; on one core, 64 queries of
    384 numbers take a sixth of the time as a product. Its bound, on queries × numbers, is a global.
    """
    bounds = import_faiss().cvar

    def search(queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        before = bounds.distance_compute_blas_threshold
        bounds.distance_compute_blas_threshold = _PRODUCT_QUERIES * index.d
        try:
            return index.search(queries, width)
        finally:
            bounds.distance_compute_blas_threshold = before

    return search


def _hnsw_engine(index: "faiss.IndexHNSW", depth: int) -> Engine:
    """Search `index`, at least as deep as the candidates wanted: FAISS finds no more than that."""

    def search(queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        index.hnsw.efSearch = max(depth, width)
        return index.search(queries, width)

    return search


def _torch_engine(vectors: StoredVectors, device: str, half: bool) -> Engine:
    """Matrix products, block by block: from the disk's cache on a CPU, from memory on a GPU."""
    import torch

    resident: list[torch.Tensor] = []
    if device == "cuda":
        kind = torch.float16 if half else torch.float32
        try:
            resident = [
                torch.from_numpy(block).to(device, kind) for block in vectors.blocks(_TORCH_BLOCK)
            ]
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{len(vectors)} vectors do not fit the GPU's memory: set dense.half=true, "
                "dense.device=cpu, or dense.engine=faiss, which uses all GPUs"
            ) from error

    @torch.inference_mode()
    def search(queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        asked = torch.from_numpy(queries).to(device)
        scores = torch.empty((len(queries), 0), device=device)
        indices = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
        start = 0
        for block in resident or map(torch.from_numpy, vectors.blocks(_TORCH_BLOCK)):
            products = (asked.to(block.dtype) @ block.T).float()
            best, where = products.topk(min(width, len(block)), dim=1)
            scores = torch.cat([scores, best], dim=1)
            indices = torch.cat([indices, where + start], dim=1)
            scores, order = scores.topk(min(width, scores.shape[1]), dim=1)
            indices = indices.gather(1, order)
            start += len(block)
        return scores.cpu().numpy(), indices.cpu().numpy()

    return search


def _faiss_uses_gpu(settings: DenseConfig) -> bool:
    """Whether faiss can; where it must and cannot, a `ConfigError`."""
    if import_faiss().get_num_gpus():
        return True
    if settings.device == "auto":
        return False
    raise ConfigError(
        'dense.device is "cuda" and this faiss uses no GPU: pip install faiss-gpu, or set '
        "dense.engine=torch or dense.device=auto"
    )


def _to_gpus(index: "faiss.Index", *, half: bool) -> "faiss.Index":
    """Divide `index` among all GPUs."""
    import faiss

    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    options.useFloat16 = half
    # Tables of 32 bits for 64 codes do not fit every GPU; candidates are scored again anyway.
    options.useFloat16LookupTables = True
    return faiss.index_cpu_to_all_gpus(index, options)
