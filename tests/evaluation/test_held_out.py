"""Evaluation with more searches than training allows, and of models made elsewhere."""

import json

import pytest
from evaluation_worlds import TOKENIZER, Script, environment, model, policy
from given_policies import save_llama

from llds_core.config import load_experiment
from llds_core.evaluation import evaluate, evaluate_run, held_out
from llds_core.evaluation.evaluate import Plan, evaluate_benchmarks
from llds_core.runs import Run

_SEARCH = "<search> Homs </search>"
_ROOM = "rollout.max_total_tokens=900"


@pytest.mark.parametrize(("allowed", "searches"), [("null", 2), ("4", 4), ("1", 1)])
def test_held_out_questions_get_the_searches_of_evaluation(monkeypatch, allowed, searches):
    world = environment(_ROOM, f"evaluation.max_searches={allowed}")
    monkeypatch.setattr(
        held_out, "TransformersSampler", lambda *args, **options: Script(*[_SEARCH] * 5)
    )
    (made,) = held_out.run_questions(
        world, policy(), TOKENIZER, world.world.test[:1], temperature=0.0
    )
    assert (made.searches, made.stop_reason) == (searches, "turns")
    assert world.config.rollout.max_searches == 2  # training is as it was


@pytest.mark.parametrize(("allowed", "searches"), [("null", 2), ("4", 4)])
def test_benchmarks_get_the_searches_of_evaluation(tmp_path, monkeypatch, allowed, searches):
    world = environment(_ROOM, "evaluation.batch_size=1", f"evaluation.max_searches={allowed}")
    monkeypatch.setattr(
        evaluate, "TransformersSampler", lambda *args, **options: Script(*[_SEARCH] * 5)
    )
    plan = Plan(limit=7)
    folder = evaluate_benchmarks(world, model(), plan, out=tmp_path, progress=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["identity"]["rollout.max_searches"] == searches
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["searches"] for row in rows} == {searches}


def test_a_checkpoint_of_another_architecture_is_evaluated_as_what_it_is(tmp_path):
    llama = save_llama(tmp_path / "llama")
    config = load_experiment(
        "smoke/grpo",
        ["evaluation.questions=2", "evaluation.samples=0", "rollout.max_action_tokens=4"],
    )
    path = evaluate_run(Run(config, 0, tmp_path / "runs"), str(llama), "dev")
    found = json.loads(path.read_text())
    assert found["checkpoint"] == "llama" and found["max_searches"] == 2
    assert found["results"]["greedy"]["all"]["n"] == 2
