"""Rollouts in which nobody waits against lock-step, over decoding and searches of stated speed.

Decoding is simulated, so that no GPU is needed: a pass writes a token of every open trajectory and
takes about as long as one of a 3B policy on an H100. Actions have the limit of the paper's (arXiv
2512.04220, appendix B.2.1) and a geometric length below it. All else is real.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase

from llds_core.bench.search_r1 import Tasks
from llds_core.config import load_experiment
from llds_core.retrieval import Hit
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.samplers import Generation
from llds_core.seeding import numpy_generator

PASS_SECONDS = 0.01
LATENCIES = (0.0, 0.05, 0.5)  # seconds of a search, of any number of queries
_MEAN_TOKENS = 45  # of an action


def measure_waiting(loop: RolloutLoop, tasks: Tasks) -> Iterator[tuple[float, float, float]]:
    """Latency, and trajectories per second without and with lock-step at it."""
    limits = replace(load_experiment("paper-3b/grpo").rollout, prompt="short")
    for latency in LATENCIES:

        def search(queries: Sequence[str], k: int, seconds: float = latency) -> list[list[Hit]]:
            time.sleep(seconds)
            return loop.retriever.retriever.search(queries, k)

        late: Any = SimpleNamespace(search=search)
        free = replace(loop, config=limits, retriever=replace(loop.retriever, retriever=late))
        decoding = _Decoding(loop.tokenizer, tasks, limits.max_searches)
        both = free, replace(free, lock_step=True)
        seconds = [each.run(tasks, decoding).seconds for each in both]
        yield latency, len(tasks) / seconds[0], len(tasks) / seconds[1]


@dataclass
class _Decoding:
    """Sampler and session in one: at most `searches` searches for the question, and an answer."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks
    searches: int
    _open: dict[int, tuple[list[int], int]] = field(default_factory=dict)  # ids, tokens left

    def session(self, prompts: Sequence[Sequence[int]]) -> "_Decoding":
        self._streams = [numpy_generator(0, "waiting", row) for row in range(len(prompts))]
        self._searches = [stream.integers(self.searches + 1) for stream in self._streams]
        return self

    def add(self, row: int, budget: int) -> None:
        tag = "search" if self._searches[row] else "answer"
        self._searches[row] -= 1
        text = f"<{tag}>{self.tasks[row][0].question}</{tag}>"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        thought = self.tokenizer.encode(" so", add_special_tokens=False)[:1]
        length = int(self._streams[row].geometric(1 / _MEAN_TOKENS))
        ids = (thought * max(0, length - len(ids)) + ids)[-budget:]
        self._open[row] = ids, len(ids)

    def step(self) -> list[tuple[int, Generation]]:
        time.sleep(PASS_SECONDS)
        written = {row: (ids, left - 1) for row, (ids, left) in self._open.items()}
        self._open = {row: each for row, each in written.items() if each[1]}
        ended = [(row, ids) for row, (ids, left) in written.items() if not left]
        return [(row, Generation(ids, [0.0] * len(ids))) for row, ids in ended]

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        for row, budget in zip(rows, budgets, strict=True):
            self.add(row, budget)
        made: dict[int, Generation] = {}
        while self._open:
            made |= self.step()
        return [made[row] for row in rows]

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Nothing depends on what was found."""

    def close(self) -> None:
        self._open.clear()
