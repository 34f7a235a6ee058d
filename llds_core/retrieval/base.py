"""What a search engine is to the rest of the package, queries in and ranked hits out, the text a
policy sees for them, and searches that fail on purpose.

At small scale a policy soon answers every question of a group alike, and nothing is left to learn
or to lose. Failed searches keep groups mixed, and put correct first actions into incorrect
responses. Whether a search fails depends on its key alone, so that paired and resumed runs meet
the same failures in any order of execution.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np

from llds_core.config.seeding import numpy_generator
from llds_core.worlds.records import Passage

_ROUNDS = 100  # draws before a corpus counts as too small to hold enough unrelated titles


@dataclass(frozen=True)
class Hit(Passage):
    """One retrieved passage; scores, higher is better, compare within one search only."""

    score: float


@dataclass(frozen=True)
class SearchKey:
    """Names one search of one run, in whatever order searches are run: rollout step, id of the
    question, index within the question's group, turn of the trajectory, from 0.
    """

    step: int
    question: str
    sample: int
    turn: int


class Retriever(Protocol):
    """Anything that ranks passages for a batch of queries."""

    @property
    def identity(self) -> str:
        """Changes with the corpus or anything that changes what is found."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return up to `k` >= 1 hits per query, best first; none when nothing matches at all."""
        ...


def format_hits(hits: Sequence[Hit]) -> str:
    """Return the text a policy sees: `Doc 1(Title: ...) ...` lines as in Search-R1's code,
    where the title of a Wikipedia passage stands in double quotes.
    """
    return "".join(
        f"Doc {i}(Title: {hit.title}) {hit.text}\n" for i, hit in enumerate(hits, start=1)
    )


@dataclass(frozen=True)
class FailingRetriever:
    """A retriever, always asked, of whose keyed searches a share of `failure_rate` in [0, 1] return
    unrelated ones of `passages`; `seed` is the root of failures.
    """

    retriever: Retriever
    failure_rate: float
    passages: Sequence[Passage]
    seed: int

    def search_keyed(
        self, queries: Sequence[str], k: int, keys: Sequence[SearchKey]
    ) -> tuple[list[list[Hit]], list[bool]]:
        """Hits per query, and whether they were replaced. A failed search shows as many passages as
        it had hits, all under other titles (fewer if the corpus has no more); a search without hits
        cannot fail.
        """
        shown, failed = [], []
        for hits, key in zip(self.retriever.search(queries, k), keys, strict=True):
            # The seed twice: the streams of runs that are stored.
            random = numpy_generator(self.seed, "search-failure", self.seed, *astuple(key))
            failed.append(bool(hits) and random.random() < self.failure_rate)
            shown.append(self._unrelated(hits, random) if failed[-1] else hits)
        return shown, failed

    def _unrelated(self, hits: list[Hit], random: np.random.Generator) -> list[Hit]:
        taken = {hit.title for hit in hits}
        chosen: list[Hit] = []
        for _ in range(_ROUNDS):
            for index in random.integers(len(self.passages), size=len(hits)).tolist():
                passage = self.passages[index]
                if len(chosen) < len(hits) and passage.title not in taken:
                    taken.add(passage.title)
                    chosen.append(Hit(**vars(passage), score=0.0))
            if len(chosen) == len(hits):
                break
        return chosen
