"""A sampler and an engine that do as they are told, and tokenizers with and without tag tokens."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from llds_core.config import RolloutConfig
from llds_core.retrieval import FailingRetriever, Hit, Retriever
from llds_core.rollout.loop import RolloutLoop
from llds_core.rollout.protocol import TAGS, Trajectory
from llds_core.rollout.samplers import Generation, StopAtTag
from llds_core.runs.policies import build_tokenizer
from llds_core.worlds.records import Passage, Question

TEXTS = ["<search>where is it</search>. then</answer>. so it is where it was"] * 20
TAGGED = build_tokenizer(TEXTS, 400, TAGS)
# Tags are spelled with several tokens here, and one token reads ">.".
SPELLED = build_tokenizer(TEXTS, 400, ())
stop_of = cache(StopAtTag)
BOTH = pytest.mark.parametrize("tokenizer", [TAGGED, SPELLED], ids=["tag-tokens", "spelled-tags"])
QUESTION = Question("q0", "where is it", ("Paris",))
HIT = Hit("p0", "Paris", "a city", 1.0)
SEARCH, ANSWER = "<search>where</search>", "<answer>Paris</answer>"

Script = Sequence[str | Sequence[int]]


def encode(text: str, tokenizer=TAGGED) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@dataclass
class ScriptedSampler:
    """Sampler and session in one, with a script per row; remembers what it was asked."""

    tokenizer: object
    scripts: Sequence[Script]
    prompts: list[str] = field(default_factory=list)
    calls: list[tuple[list[int], list[int]]] = field(default_factory=list)
    appended: list[tuple[int, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.emitted: list[list[Generation]] = [[] for _ in self.scripts]

    def session(self, prompts: Sequence[Sequence[int]]) -> "ScriptedSampler":
        self.prompts += map(self.tokenizer.decode, prompts)
        return self

    def generate(self, rows: Sequence[int], budgets: Sequence[int]) -> list[Generation]:
        self.calls.append((list(rows), list(budgets)))
        return [self._one(row, budget) for row, budget in zip(rows, budgets, strict=True)]

    def append(self, row: int, token_ids: Sequence[int]) -> None:
        self.appended.append((row, list(token_ids)))

    def _one(self, row: int, budget: int) -> Generation:
        turn = self.scripts[row][len(self.emitted[row])]
        ids = encode(turn, self.tokenizer) if isinstance(turn, str) else turn
        made = Generation()
        for token in ids[:budget]:
            made.token_ids.append(token)
            made.logprobs.append(-0.01 * (1 + token))
            if token == self.tokenizer.eos_token_id or stop_of(self.tokenizer)(made.token_ids):
                break
        self.emitted[row].append(made)
        return made


@dataclass
class FreeSampler(ScriptedSampler):
    """The same as a continuous session that writes a token of every open row a step."""

    open: dict[int, tuple[Generation, int]] = field(default_factory=dict)
    most: int = 0  # rows that were open at a time

    def add(self, row: int, budget: int) -> None:
        assert row not in self.open
        made = self._one(row, budget)
        self.open[row] = made, len(made.token_ids)
        self.most = max(self.most, len(self.open))

    def step(self) -> list[tuple[int, Generation]]:
        assert self.open
        self.open = {row: (made, left - 1) for row, (made, left) in self.open.items()}
        done = [(row, made) for row, (made, left) in self.open.items() if left == 0]
        for row, _ in done:
            del self.open[row]
        return done

    def close(self) -> None:
        self.open.clear()


@dataclass
class StubRetriever:
    """Finds the same passages for every query, and remembers the queries."""

    hits: Sequence[Hit] = (HIT,)
    identity = "engine"
    queries: list[str] = field(default_factory=list)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.queries += queries
        return [list(self.hits[:k]) for _ in queries]


@dataclass
class Late:
    """Finds what was asked for, the first calls last."""

    latency: float = 0.0
    identity = "late"
    calls: list[list[str]] = field(default_factory=list)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append(list(queries))
        time.sleep(self.latency * (1 + -len(self.calls) % 3))
        return [[Hit(query, query, f"is {query}", 1.0)] for query in queries]


def limits(**values: int) -> RolloutConfig:
    return RolloutConfig(**{"max_searches": 2, "max_total_tokens": 2000} | values)


def run(
    scripts: Sequence[Script],
    config: RolloutConfig | None = None,
    *,
    tokenizer=TAGGED,
    hits: Sequence[Hit] = (HIT,),
    questions: Sequence[Question] = (QUESTION,),
    failure_rate: float = 0.0,
    passages: Sequence[Passage] = (),
    step: int = 0,
    sampler_type: type[ScriptedSampler] = ScriptedSampler,
    engine: Retriever | None = None,
) -> tuple[list[Trajectory], ScriptedSampler, Any]:
    """One trajectory per script; questions are used in turn, samples counted per question."""
    sampler, engine = sampler_type(tokenizer, scripts), engine or StubRetriever(hits)
    retriever = FailingRetriever(engine, failure_rate=failure_rate, passages=passages, seed=0)
    loop = RolloutLoop(tokenizer, retriever, config or limits(), top_k=3)
    tasks = [(questions[i % len(questions)], i // len(questions)) for i in range(len(scripts))]
    return loop.run(tasks, sampler, step=step).trajectories, sampler, engine


def one(script: Script, config: RolloutConfig | None = None, **options) -> Trajectory:
    return run([script], config, **options)[0][0]


def action_tokens(trajectory: Trajectory) -> list[list[int]]:
    return [trajectory.completion_ids[a.start : a.end] for a in trajectory.actions]
