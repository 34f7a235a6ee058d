"""Scripted search traces: noisy demonstrations from which a random policy learns the protocol.

Tags and text are set apart by spaces, so that a byte-pair tokenizer spells a name alike wherever it
stands: copying it is then one skill, not one per name. A trace asks the real search engine the
queries that lead to an answer, in varying words, and is imperfect on purpose: some searches fail
and are retried or not, some two-hop traces stop after one search and guess, some end in a wrong
answer of the right kind. What remains to be learned is what reinforcement learning is given to
learn. Only training questions are used.
"""

from collections.abc import Sequence

from llds_core.config import WarmstartConfig
from llds_core.config.seeding import numpy_generator
from llds_core.retrieval.base import FailingRetriever, Hit, SearchKey
from llds_core.rollout.protocol import search_observation
from llds_core.worlds.atlas import World
from llds_core.worlds.records import Question

_FIRST_THOUGHTS = (
    "I need to find out about {name}.",
    "Let me look up {name}.",
    "First I should search for {name}.",
    "I do not know {name} well, so I search.",
)
_NEXT_THOUGHTS = (
    "{name} belongs to {answer}. Now I look up {answer}.",
    "So {name} is in {answer}. Next, {answer}.",
    "The country is {answer}. I search for it.",
)
_RETRY_THOUGHTS = (
    "That does not help. I search again for {name}.",
    "Nothing about {name} here, so I try again.",
    "These passages are about something else.",
)
_LAST_THOUGHTS = (
    "The answer is {answer}.",
    "It is {answer}.",
    "I found it: {answer}.",
    "So it must be {answer}.",
)
_QUERIES = (
    "{query}",
    "{query} {topic}",
    "{topic} of {query}",
    "where is {query}",
    "facts about {query}",
)


def make_traces(
    world: World, retriever: FailingRetriever, config: WarmstartConfig, *, top_k: int, count: int
) -> list["Trace"]:
    """Return `count` traces over training questions, every question before any is repeated.

    Deterministic in `config.seed`; searches are run in batches, one per turn.
    """
    random = numpy_generator(config.seed, "warmstart", "traces")
    order: list[int] = []
    while len(order) < count:
        order += reversed(random.permutation(len(world.train)).tolist())
    # Hops are scripted per trace, but searched together: trace by trace would cost a call each.
    traces = [Trace(i, world.train[order[i]], config, world) for i in range(count)]
    active, turn = traces, 0
    while active:
        keys = [SearchKey(trace.index, trace.question.id, 0, turn) for trace in active]
        found, failed = retriever.search_keyed([trace.query for trace in active], top_k, keys)
        for trace, hits, failure in zip(active, found, failed, strict=True):
            trace.observe(hits, failure)
        active = [trace for trace in active if trace.query]
        turn += 1
    return traces


class Trace:
    """One demonstration, written turn by turn.

    Attributes:
        segments: (text, whether the policy wrote it), policy and observation texts in turn.
        correct: whether its answer is right.
        query: the next search, empty when the trace has ended.
    """

    def __init__(
        self, index: int, question: Question, config: WarmstartConfig, world: World
    ) -> None:
        self.index = index
        self.question = question
        self.segments: list[tuple[str, bool]] = []
        self.correct = False
        self.query = ""
        self._config = config
        self._random = numpy_generator(config.seed, "warmstart", "trace", index)
        self._world = world
        self._hops = question.metadata["steps"]
        self._hop = 0
        self._search(_FIRST_THOUGHTS)

    def observe(self, hits: Sequence[Hit], failed: bool) -> None:
        """Take the passages of the pending search and write the next action."""
        self.segments.append((search_observation(hits), False))
        hop, random, config = self._hops[self._hop], self._random, self._config
        self.query = ""
        if failed:
            if random.random() < config.retry_rate:
                self._search(_RETRY_THOUGHTS)
            else:
                self._answer(self._wrong_answer())
        elif self._hop + 1 < len(self._hops):
            if random.random() < config.early_answer_rate:
                self._answer(self._wrong_answer())
            else:
                self._hop += 1
                self._search(_NEXT_THOUGHTS, answer=hop["answer"])
        elif random.random() < config.wrong_answer_rate:
            self._answer(self._wrong_answer())
        else:
            self._answer(hop["answer"])

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self._random.integers(len(options)))]

    def _search(self, thoughts: Sequence[str], **fields: str) -> None:
        hop = self._hops[self._hop]
        name = self._hops[self._hop - 1]["query"] if fields else hop["query"]
        last = self._hop + 1 == len(self._hops)
        topic = self.question.metadata["kind"].rpartition("-")[2] if last else "country"
        thought = self._pick(thoughts).format(name=name, **fields)
        self.query = self._pick(_QUERIES).format(query=hop["query"], topic=topic)
        self.segments.append((f"<think> {thought} </think>\n<search> {self.query} </search>", True))

    def _answer(self, answer: str) -> None:
        thought = self._pick(_LAST_THOUGHTS).format(answer=answer)
        self.segments.append((f"<think> {thought} </think>\n<answer> {answer} </answer>", True))
        self.correct = answer in self.question.golden_answers

    def _wrong_answer(self) -> str:
        options = self._world.answers_by_kind[self.question.metadata["kind"]]
        wrong = [option for option in options if option not in self.question.golden_answers]
        return self._pick(wrong)
