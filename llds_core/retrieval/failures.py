"""Searches that fail on purpose: a given share returns passages about something else.

At small scale a policy soon answers every question of a group alike, and nothing is left to learn
or to lose. Failed searches keep groups mixed, and put correct first actions into incorrect
responses. Whether a search fails depends on its key alone, so that paired and resumed runs meet
the same failures in any order of execution.
"""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from llds_core.errors import ConfigError
from llds_core.retrieval.base import Hit, Retriever, SearchKey, check_k, hit_of
from llds_core.seeding import numpy_generator
from llds_core.worlds.records import Passage

_ROUNDS = 100  # draws before a corpus counts as too small to hold enough unrelated titles


class FailingRetriever:
    """A retriever of which `failure_rate` of the keyed searches return unrelated passages.

    Args:
        retriever: the engine that is asked first, always.
        failure_rate: probability of a failure, in [0, 1]; 0 passes everything through.
        passages: where unrelated passages are drawn from.
        seed: root of the failure stream, beside the seed inside each key.

    Raises:
        ConfigError: when the rate is outside [0, 1], or above 0 without passages.
    """

    def __init__(
        self, retriever: Retriever, *, failure_rate: float, passages: Sequence[Passage], seed: int
    ) -> None:
        if not 0 <= failure_rate <= 1:
            raise ConfigError(f"retrieval.failure_rate is {failure_rate}: set it between 0 and 1")
        if failure_rate and not passages:
            raise ConfigError(
                "no passages to show when a search fails: pass the corpus or set the rate to 0"
            )
        self._retriever = retriever
        self._failure_rate = failure_rate
        self._passages = passages
        self._seed = seed

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search without failures."""
        return self._retriever.search(queries, k)

    def search_keyed(
        self, queries: Sequence[str], k: int, keys: Sequence[SearchKey]
    ) -> tuple[list[list[Hit]], list[bool]]:
        """Search, failing by key.

        Returns:
            Hits per query, and whether they were replaced. A failed search shows as many
            passages as it had hits, all under other titles (fewer if the corpus has no more);
            a search without hits cannot fail.

        Raises:
            ConfigError: when there is not one key per query, or `k` is not a positive integer.
        """
        check_k(k)
        if len(queries) != len(keys):
            raise ConfigError(
                f"{len(queries)} queries with {len(keys)} keys: pass one key per query"
            )
        found = list(self._retriever.search(queries, k))
        failed = [False] * len(found)
        for place, key in enumerate(keys if self._failure_rate else ()):
            random = numpy_generator(self._seed, "search-failure", *astuple(key))
            if random.random() < self._failure_rate and found[place]:
                found[place], failed[place] = self._unrelated(found[place], random), True
        return found, failed

    def _unrelated(self, hits: list[Hit], random: np.random.Generator) -> list[Hit]:
        taken = {hit.title for hit in hits}
        chosen: list[Hit] = []
        for _ in range(_ROUNDS):
            for index in random.integers(len(self._passages), size=len(hits)).tolist():
                passage = self._passages[index]
                if len(chosen) < len(hits) and passage.title not in taken:
                    taken.add(passage.title)
                    chosen.append(hit_of(passage, 0.0))
            if len(chosen) == len(hits):
                break
        return chosen
