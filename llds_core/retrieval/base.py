"""What a search engine is to the rest of the package: queries in, ranked hits out.

Also the text a policy sees for a list of hits, and the key by which injected failures are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llds_core.errors import ConfigError
from llds_core.worlds.records import Passage


@dataclass(frozen=True)
class Hit(Passage):
    """One retrieved passage; scores, higher is better, compare within one search only."""

    score: float


@dataclass(frozen=True)
class SearchKey:
    """Names one search of one run, in whatever order searches are run: root seed, rollout step, id
    of the question, index within the question's group, turn of the trajectory, from 0.
    """

    seed: int
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
        """Return up to `k` hits per query, best first; none when nothing matches at all.

        Raises:
            ConfigError: when `k` is not a positive integer.
        """
        ...


def hit_of(passage: Passage, score: float) -> Hit:
    """`passage` as it was found."""
    return Hit(passage.id, passage.title, passage.text, score)


def check_k(k: int) -> None:
    """Raise a `ConfigError` unless `k` is a positive integer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ConfigError(
            f"a search cannot return {k!r} passages: set retrieval.top_k to 1 or more"
        )


def format_hits(hits: Sequence[Hit]) -> str:
    """Return the text a policy sees: `Doc 1(Title: ...) ...` lines as in Search-R1's code."""
    return "".join(
        f"Doc {i}(Title: {hit.title}) {hit.text}\n" for i, hit in enumerate(hits, start=1)
    )
