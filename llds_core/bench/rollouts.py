"""Rollouts that `bench` measures beside our own: of a sampler that computes the whole context again
every turn, as Search-R1's does, and lock-step against a loop in which nobody waits.

For the latter decoding is simulated, so that no GPU is needed: a pass writes a token of every open
trajectory and takes about as long as one of a 3B policy on an H100. Actions have the limit of the
paper's (arXiv 2512.04220, appendix B.2.1) and a geometric length below it. All else is real.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llds_core.config import load_experiment
from llds_core.config.seeding import numpy_generator
from llds_core.retrieval.base import Hit
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_plain
from llds_core.rollout.protocol import STOP_TAGS
from llds_core.rollout.samplers import Generation, evaluation_mode
from llds_core.worlds.records import Question

Tasks = Sequence[tuple[Question, int]]
PASS_SECONDS = 0.01
LATENCIES = (0.0, 0.05, 0.5)  # seconds of a search, of any number of queries
_MEAN_TOKENS = 45  # of an action


@dataclass
class ReencodingSampler:
    """Sampler and session in one: text in, text out, and the whole context again every turn.

    Every turn tokenises what followed the prompt of all running contexts, pads them on the left,
    and calls `generate`, which keeps a cache within the turn and drops it after. A group's common
    prompt is computed once per trajectory.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    temperature: float

    def session(self, prompts: Sequence[Sequence[int]]) -> "ReencodingSampler":
        """Start one context per prompt."""
        self._prompts, self._texts = prompts, [""] * len(prompts)
        return self

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        """Insert observation tokens after what `row` holds."""
        self._texts[row] += str(self.tokenizer.decode([*token_ids]))

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        """Sample one action for each of `rows`, at most `budgets` tokens each."""
        # Text from data is text, here too: only the template's own control tokens are control.
        later = encode_plain([self._texts[row] for row in rows], self.tokenizer)
        contexts = [[*self._prompts[row], *ids] for row, ids in zip(rows, later, strict=True)]
        batch = self.tokenizer.pad(
            {"input_ids": contexts}, padding_side="left", return_tensors="pt"
        )
        ends = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        generation = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            max_new_tokens=max(budgets),
            stop_strings=list(STOP_TAGS),
            pad_token_id=ends[1],
            eos_token_id=ends[0],
        )
        # `generate` samples from the global stream; a measurement must not move it.
        with evaluation_mode(self.model), torch.random.fork_rng():
            output = self.model.generate(
                **batch.to(self.model.device),
                generation_config=generation,
                tokenizer=self.tokenizer,
            )
        new = output[:, batch["input_ids"].shape[1] :].tolist()
        made = []
        for row, ids, budget in zip(rows, new, budgets, strict=True):
            length = next((i for i, token in enumerate(ids) if token in ends), budget)
            kept = ids[: min(length, budget)]
            self.append(row, kept)
            made.append(Generation(kept, [0.0] * len(kept)))
        return made


def measure_waiting(loop: RolloutLoop, tasks: Tasks) -> Iterator[tuple[float, ...]]:
    """Latency; trajectories / s without lock-step, with it, and if all end with the longest."""
    limits = replace(load_experiment("paper-3b/grpo").rollout, prompt="short")
    for latency in LATENCIES:

        def search(queries: Sequence[str], k: int, seconds: float = latency) -> list[list[Hit]]:
            time.sleep(seconds)
            return loop.retriever.retriever.search(queries, k)

        late = replace(loop.retriever, retriever=cast(Any, SimpleNamespace(search=search)))
        free = replace(loop, config=limits, retriever=late)
        decoding = _Decoding(loop.tokenizer, tasks, limits.max_searches)
        made = [each.run(tasks, decoding) for each in (free, replace(free, lock_step=True))]
        of_each = ((sum(t.response_mask), t.searches) for t in made[0].trajectories)
        longest = max(PASS_SECONDS * passes + latency * searches for passes, searches in of_each)
        yield latency, *(len(tasks) / took for took in (made[0].seconds, made[1].seconds, longest))


@dataclass
class _Decoding:
    """Sampler and session in one: at most `searches` searches for the question, and an answer."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks
    searches: int
    _open: dict[int, tuple[list[int], int]] = field(default_factory=dict)  # ids, tokens left

    def session(self, prompts: Sequence[Sequence[int]]) -> "_Decoding":
        stream, turns = numpy_generator(0, "waiting"), self.searches + 1
        self._searches = stream.integers(turns, size=len(prompts)).tolist()  # left, by row
        self._lengths = stream.geometric(1 / _MEAN_TOKENS, size=(len(prompts), turns)).tolist()
        return self

    def add(self, row: int, budget: int) -> None:
        left = self._searches[row]
        self._searches[row] -= 1
        tag = "search" if left else "answer"
        text = f"<{tag}>{self.tasks[row][0].question}</{tag}>"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        thought = self.tokenizer.encode(" so", add_special_tokens=False)[:1]
        ids = (thought * max(0, self._lengths[row][left] - len(ids)) + ids)[-budget:]
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
