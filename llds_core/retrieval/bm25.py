"""Lexical search over a corpus in memory: BM25 (Lucene variant) from `bm25s`.

Scores come from `bm25s`; ranking is ours, because its top-k leaves the order of equal scores open.
One process, one thread, no progress bars.
"""

import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from llds_core.errors import ConfigError
from llds_core.retrieval.base import Hit
from llds_core.worlds.records import Passage
from llds_core.worlds.text import search_words


def _import_bm25s() -> Any:
    """Import bm25s without JAX: it asks JAX for a top-k on import, and JAX then holds most of the
    memory of a GPU as long as the process lives. Ranking is ours.
    """
    if "jax" in sys.modules:
        return importlib.import_module("bm25s")
    sys.modules["jax"] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        return importlib.import_module("bm25s")
    finally:
        del sys.modules["jax"]


bm25s = _import_bm25s()
# bm25s sets its logger to DEBUG on import, which would write into any log that a caller configures.
logging.getLogger("bm25s").setLevel(logging.WARNING)

_K1, _B = 1.5, 0.75
_PASSAGE_BYTES = 9_400  # of memory, for a passage of 100 words; measured on 30,000


class BM25Retriever:
    """Ranks passages by BM25 over lower-case, accent-free words.

    Args:
        passages: the corpus; equal scores rank in this order.
        title_weight: how often the words of a title count, at least 1.

    Raises:
        ConfigError: when the corpus is empty, without a single word or too large for this
            machine's memory.
    """

    def __init__(self, passages: Sequence[Passage], *, title_weight: int = 2) -> None:
        needed = len(passages) * _PASSAGE_BYTES
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > here:
            raise ConfigError(
                f"BM25 over {len(passages)} passages takes about {needed / 1e9:.0f} GB of memory "
                f"and this machine has {here / 1e9:.0f}: use the dense backend"
            )
        self._passages = tuple(passages)
        self._title_weight = title_weight
        # Ids in order of first use: bm25s would number a set, in another order in each process.
        self._vocabulary: dict[str, int] = {}
        ids = []
        for passage in self._passages:
            said = search_words(passage.title) * title_weight + search_words(passage.text)
            ids.append([self._vocabulary.setdefault(w, len(self._vocabulary)) for w in said])
        if not self._vocabulary:
            raise ConfigError(
                f"a corpus of {len(self._passages)} passages without a word: give it text"
            )
        self._index = bm25s.BM25(k1=_K1, b=_B, method="lucene", backend="numpy")
        self._index.index((ids, dict(self._vocabulary)), show_progress=False)

    @property
    def identity(self) -> str:
        """Sixteen hex digits that change with the corpus, its order or any setting."""
        digest = hashlib.sha256(
            f"bm25s {bm25s.__version__} lucene {_K1} {_B} title {self._title_weight}".encode()
        )
        for passage in self._passages:
            digest.update(repr((passage.id, passage.title, passage.text)).encode())
        return digest.hexdigest()[:16]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` hits per query, best first, all of which share a word with the query."""
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[Hit]:
        ids = [self._vocabulary[word] for word in search_words(query) if word in self._vocabulary]
        if not ids:
            return []
        scores = self._index.get_scores_from_ids(ids)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:
            threshold = np.partition(scores[found], -k)[-k]
            found = found[scores[found] >= threshold]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [Hit(**vars(self._passages[i]), score=float(scores[i])) for i in best.tolist()]
