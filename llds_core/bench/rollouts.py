"""Rollouts that `bench` measures beside our own: Search-R1's loop, written out for anyone to read,
and lock-step against a loop in which nobody waits.

For the latter decoding is simulated, so that no GPU is needed: a pass writes a token of every open
trajectory and takes about as long as one of a 3B policy on an H100. Actions have the limit of the
paper's (arXiv 2512.04220, appendix B.2.1) and a geometric length below it. All else is real.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import load_experiment
from llds_core.config.seeding import numpy_generator
from llds_core.retrieval.base import Hit, SearchKey
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.prompts import encode_plain
from llds_core.rollout.protocol import STOP_TAGS, parse_action, search_observation
from llds_core.rollout.samplers import Generation, evaluation_mode
from llds_core.worlds.records import Question

Tasks = Sequence[tuple[Question, int]]
PASS_SECONDS = 0.01
LATENCIES = (0.0, 0.05, 0.5)  # seconds of a search, of any number of queries
_MEAN_TOKENS = 45  # of an action


def reencoding_rollout(loop: RolloutLoop, model: PreTrainedModel, tasks: Tasks) -> list[str]:
    """Text of every trajectory: text in, text out, and the whole context again every turn.

    Every turn tokenises what followed the prompt of all running contexts, pads them on the left,
    and calls `generate`, which keeps a cache within the turn and drops it after. A group's common
    prompt is computed once per trajectory. Tokenizer, search engine and limits are those of `loop`,
    our own; `tasks` are questions, each with the number of its sample.
    """
    limits, tokenizer = loop.config, loop.tokenizer
    prompts = loop.prompts([question for question, _ in tasks])
    texts = [""] * len(tasks)
    active = list(range(len(tasks)))

    def contexts() -> list[list[int]]:
        # Text from data is text, here too: only the template's own control tokens are control.
        encoded = encode_plain([texts[row] for row in active], tokenizer)
        return [prompts[row] + ids for row, ids in zip(active, encoded, strict=True)]

    for turn in range(limits.max_searches + 1):
        replies = _generate(loop, model, contexts())
        actions = {row: parse_action(reply) for row, reply in zip(active, replies, strict=True)}
        for row, reply in zip(active, replies, strict=True):
            texts[row] += reply
        if turn == limits.max_searches:
            break
        queries = {row: q for row, (kind, q, _) in actions.items() if kind == "search" and q}
        found = _search(loop, tasks, queries, turn)
        active = [row for row in active if actions[row][0] != "answer"]
        for row in active:
            observation = search_observation(found[row]) if row in found else limits.feedback
            [tokens] = encode_plain([observation], tokenizer)
            [shown] = tokenizer.batch_decode([tokens[: limits.max_observation_tokens]])
            texts[row] += shown
        if active:
            sized = zip(active, contexts(), strict=True)
            active = [row for row, ids in sized if len(ids) < limits.max_total_tokens]
        if not active:
            break
    return [a + b for a, b in zip(tokenizer.batch_decode(prompts), texts, strict=True)]


def _generate(loop: RolloutLoop, model: Any, contexts: list[list[int]]) -> list[str]:
    limits, tokenizer = loop.config, loop.tokenizer
    batch = tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt")
    generation = GenerationConfig(
        do_sample=True,
        temperature=limits.temperature,
        top_k=0,
        max_new_tokens=limits.max_action_tokens,
        stop_strings=list(STOP_TAGS),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # `generate` samples from the global stream; a measurement must not move it.
    with evaluation_mode(model), torch.random.fork_rng():
        output = model.generate(
            **batch.to(model.device), generation_config=generation, tokenizer=tokenizer
        )
    new = output[:, batch["input_ids"].shape[1] :]
    return [_cut_after_tag(t) for t in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _search(
    loop: RolloutLoop, tasks: Tasks, queries: Mapping[int, str], turn: int
) -> dict[int, list[Hit]]:
    if not queries:
        return {}
    keys = [SearchKey(1, tasks[row][0].id, tasks[row][1], turn) for row in queries]
    hits, _ = loop.retriever.search_keyed([*queries.values()], loop.top_k, keys)
    return dict(zip(queries, hits, strict=True))


def _cut_after_tag(text: str) -> str:
    ends = [text.find(tag) + len(tag) for tag in STOP_TAGS if tag in text]
    return text[: min(ends)] if ends else text


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
