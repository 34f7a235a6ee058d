"""Evaluations where the sampler is vLLM, over a stand-in for its engine that transformers decodes.

Answers of a real vLLM are compared in tests/optional.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_worlds import TOKENIZER, environment, lines, policy
from transformers import PreTrainedModel

from llds_core.evaluation import evaluate
from llds_core.evaluation.evaluate import EvaluationPlan, evaluate_questions
from llds_core.evaluation.models import Model
from llds_core.rollout.protocol import TAGS
from llds_core.rollout.samplers import Generation, StopAtTag, TransformersSampler
from llds_core.rollout.vllm_sampler import Request, VLLMSampler

PLAN = EvaluationPlan(limit=14, modes=("greedy", "greedy_with_failures", "sampled"))
VLLM = "sampler.backend=vllm"


@cache
def searching() -> PreTrainedModel:
    """The policy of the other tests, that likes to search more."""
    made = copy.deepcopy(policy())
    with torch.no_grad():
        made.get_input_embeddings().weight[TOKENIZER.convert_tokens_to_ids(list(TAGS[2:4]))] *= 2
    return made


def model() -> Model:
    return Model("tiny", "0123456789abcdef", lambda: (searching(), TOKENIZER))


@dataclass
class Engine:
    """`ColocatedEngine`, as far as a sampler uses it; one request is finished a step."""

    is_continuous = True
    open: dict[int, Request] = field(default_factory=dict)
    temperatures: set[float] = field(default_factory=set)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        (temperature,) = {request.options["temperature"] for request in requests}
        self.temperatures.add(temperature)
        streams = [np.random.default_rng(request.seed) for request in requests]
        drawn = {"temperature": temperature, "streams": streams}
        sampler = TransformersSampler(searching(), TOKENIZER, None, **drawn)
        session = sampler.session([request.token_ids for request in requests])
        budgets = [request.budget for request in requests]
        made = session.generate(range(len(requests)), budgets)
        for action, budget in zip(made, budgets, strict=True):
            if len(action.token_ids) < budget and not sampler.ends(action.token_ids):
                # vLLM keeps the end of text that the session has dropped.
                action.token_ids.append(TOKENIZER.eos_token_id)
                action.logprobs.append(0.0)
        return made

    def add(self, row: int, request: Request) -> None:
        self.open[row] = request

    def step(self) -> list[tuple[int, Generation]]:
        row = next(iter(self.open))
        return [(row, made) for made in self.generate([self.open.pop(row)])]

    def drop(self, rows: Sequence[int]) -> None:
        self.open.clear()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The engines that were opened, each with its options and `closed` when it was."""
    opened: list[Any] = []

    @contextmanager
    def own_sampler(folder: Path, **options: Any) -> Iterator[Any]:
        opened.append([folder, options, Engine()])
        stop, ends = StopAtTag(TOKENIZER), {TOKENIZER.eos_token_id}
        try:
            yield VLLMSampler(opened[-1][2], stop, ends, lambda *_: 0, temperature=0.0), TOKENIZER
        finally:
            opened[-1].append("closed")

    monkeypatch.setattr(evaluate, "own_sampler", own_sampler)
    return opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose weights only the engine may load."""
    folder = tmp_path_factory.mktemp("policy")
    searching().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return Model("tiny", model().digest, lambda: pytest.fail("loaded"), folder)


def answer(out: Path, asked: Model, *overrides: str, plan: EvaluationPlan = PLAN) -> list[dict]:
    return lines(evaluate_questions(environment(*overrides), asked, plan, out=out))


def test_greedy_answers_are_those_of_transformers(engines, served, tmp_path) -> None:
    made = answer(tmp_path / "vllm", served, VLLM, "retrieval.failure_rate=0.5")
    known = answer(tmp_path / "ours", model(), "retrieval.failure_rate=0.5")
    for mode in PLAN.modes[:2]:
        assert [r for r in made if r["mode"] == mode] == [r for r in known if r["mode"] == mode]
    assert len(made) == 42 and any(row["searches"] for row in made)
    ((folder, options, engine, closed),) = engines
    assert (folder, closed, engine.temperatures) == (served.folder, "closed", {0.0, 1.0})
    assert options == {"dtype": "float32", "tensor_parallel_size": 1, "max_num_seqs": 16}
    summaries = (tmp_path / name / "summary.json" for name in ("vllm", "ours"))
    identity, other = (json.loads(file.read_text())["identity"] for file in summaries)
    assert identity.pop("sampler") == "vllm" and identity == other


def test_sampled_answers_depend_on_no_batch_and_go_on_after_an_error(
    engines, served, tmp_path, monkeypatch
) -> None:
    plan = EvaluationPlan(limit=14, modes=("sampled",), samples=2, draws="batch")
    whole = answer(tmp_path / "whole", served, VLLM, plan=plan)
    original, count = Engine.step, iter(range(1000))

    def step(self: Engine) -> list[Any]:
        if next(count) == 20:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Engine, "step", step)
    options = (VLLM, "evaluation.batch_size=4")
    # The size of batches would matter to transformers.
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path / "parts", served, *options, plan=plan)
    kept = lines(tmp_path / "parts")
    assert 0 < len(kept) < 28 and kept == whole[: len(kept)]
    assert answer(tmp_path / "parts", served, *options, plan=plan) == whole
    assert [engine[-1] for engine in engines] == ["closed"] * 3
