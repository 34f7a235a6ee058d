"""Dense search: the passages whose vectors are nearest to that of a query."""

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError
from llds_core.retrieval.base import Hit
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.index import DenseIndex, import_faiss, index_kind
from llds_core.worlds.records import Passage

if TYPE_CHECKING:
    import faiss


class DenseRetriever:
    """Ranks passages by the inner product of their vectors with that of the query.

    Args:
        folder: where the index of `passages` by `settings` is.
        encoder: that of `settings`, if it is loaded already.
        command: what builds it, for the message where none is finished; None builds it here, which
            takes hours on millions of passages.

    Raises:
        ConfigError: when the encoder or the GPU is missing; for the index see `DenseIndex`.

    Attributes:
        identity: sixteen hex digits that change with corpus, encoder, index and search settings.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        settings: DenseConfig,
        folder: Path,
        encoder: Encoder | None = None,
        command: str | None = None,
    ) -> None:
        self._passages = passages
        self._encoder = encoder or Encoder(settings)
        stored = DenseIndex(passages, settings, folder, self._encoder)
        self._index = stored.open(command)
        self._graph_depth = settings.hnsw_search_depth if settings.index == "hnsw" else None
        if self._graph_depth is None:
            self._index = _on_gpus(self._index, settings)
        self._lock = threading.Lock()  # an index on a GPU answers one thread at a time
        named = stored.source | {"index": index_kind(settings), "depth": self._graph_depth}
        del named["encoder"]  # a path, which may change; its hash is named too
        self.identity = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` hits per query, best first."""
        if not queries:
            return []
        vectors, most = self._encoder.encode_queries(queries), min(k, len(self._passages))
        with self._lock:
            if self._graph_depth is not None:  # a graph returns no more than it looks at
                graph = cast("faiss.IndexHNSW", self._index).hnsw
                graph.efSearch = max(self._graph_depth, most)
            found = self._index.search(vectors, most)
        return [
            [
                Hit(**vars(self._passages[index]), score=score)
                for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
                if index >= 0  # an approximate index may find fewer
            ]
            for scores, indices in zip(*found, strict=True)
        ]


def _on_gpus(index: "faiss.Index", settings: DenseConfig) -> "faiss.Index":
    """Divide `index` among all GPUs, where `dense.device` asks for them and FAISS can use them."""
    faiss = import_faiss()
    if settings.device == "cpu" or (settings.device == "auto" and not faiss.get_num_gpus()):
        return index
    if not faiss.get_num_gpus():
        raise ConfigError(
            'dense.device is "cuda" and this faiss uses no GPU: pip install faiss-gpu, or set '
            "dense.device=auto"
        )
    options = faiss.GpuMultipleClonerOptions()
    options.shard, options.useFloat16 = True, settings.half
    return faiss.index_cpu_to_all_gpus(index, options)
