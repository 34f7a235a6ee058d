"""Rollouts in which nobody waits against lock-step, over decoding and searches of stated speed.

Decoding is simulated, so that no GPU is needed: a pass writes a token of every open trajectory and
takes as long as one of a 3B policy on an H100, about. Lengths of actions have the mean and the
limit of the paper's (arXiv 2512.04220, appendix B.2.1), and a geometric tail between them. Loop,
tokens, threads and search engine are the real ones.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from llds_core.config import load_experiment
from llds_core.retrieval import Hit, Retriever
from llds_core.rollout.environment import Environment
from llds_core.rollout.samplers import Generation
from llds_core.seeding import numpy_generator
from llds_core.worlds.records import Question

PASS_SECONDS = 0.01
LATENCIES = (0.0, 0.05, 0.5)  # seconds of a search, of any number of queries
_MEAN_TOKENS = 45  # of an action

Tasks = Sequence[tuple[Question, int]]


@dataclass
class _Decoding:
    """Sampler and continuous session in one. A trajectory searches for its question up to
    `searches` times and answers.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks
    searches: int
    _turns: dict[int, int] = field(default_factory=dict)
    _open: dict[int, tuple[list[int], int]] = field(default_factory=dict)

    def session(self, prompts: Sequence[Sequence[int]]) -> "_Decoding":
        self._turns.clear()
        return self

    @property
    def is_busy(self) -> bool:
        return bool(self._open)

    def add(self, row: int, budget: int) -> None:
        turn = self._turns[row] = self._turns.get(row, -1) + 1
        wanted = numpy_generator(0, "waiting", row).integers(self.searches + 1)
        length = int(numpy_generator(0, "waiting", row, turn).geometric(1 / _MEAN_TOKENS))
        asked = self.tasks[row][0].question
        text = f"<search>{asked}</search>" if turn < wanted else f"<answer>{asked}</answer>"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        thought = self.tokenizer.encode(" so", add_special_tokens=False)[:1]
        ids = (thought * max(0, length - len(ids)) + ids)[-budget:]
        self._open[row] = ids, len(ids)

    def step(self) -> list[tuple[int, Generation]]:
        if not self._open:
            return []
        time.sleep(PASS_SECONDS)
        self._open = {row: (ids, left - 1) for row, (ids, left) in self._open.items()}
        ended = [row for row, (_, left) in self._open.items() if left == 0]
        written = {row: self._open.pop(row)[0] for row in ended}
        return [(row, Generation(ids, [0.0] * len(ids))) for row, ids in written.items()]

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        for row, budget in zip(rows, budgets, strict=True):
            self.add(row, budget)
        made: dict[int, Generation] = {}
        while self.is_busy:
            made |= self.step()
        return [made[row] for row in rows]

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Nothing depends on what was found."""

    def close(self) -> None:
        self._open.clear()


@dataclass(frozen=True)
class _Late:
    """A search engine that answers `latency` seconds later."""

    engine: Retriever
    latency: float

    @property
    def identity(self) -> str:
        return self.engine.identity

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        time.sleep(self.latency)
        return self.engine.search(queries, k)


def measure_waiting(
    environment: Environment, tokenizer: PreTrainedTokenizerBase, tasks: Tasks
) -> Iterator[tuple[float, float, float]]:
    """Latency, and trajectories per second without and with lock-step at it."""
    limits = replace(load_experiment("paper-3b/grpo").rollout, prompt="short")
    for latency in LATENCIES:
        late = replace(environment, retriever=_Late(environment.retriever, latency))
        free = late.rollout_loop(tokenizer, limits, seed=0, failure_rate=0.0)
        loops = free, replace(free, lock_step=True)
        decoding = _Decoding(tokenizer, tasks, limits.max_searches)
        seconds = [loop.run(tasks, decoding).seconds for loop in loops]
        yield latency, len(tasks) / seconds[0], len(tasks) / seconds[1]
