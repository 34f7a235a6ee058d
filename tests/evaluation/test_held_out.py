"""Held-out scores of runs: what is drawn, what is written, and what may not be lost."""

import json
import shutil

import pytest
from evaluation_worlds import TOKENIZER, environment, lines, model, policy
from run_helpers import refused
from scripted_rollouts import ScriptedSampler

from llds_core.config import load_experiment
from llds_core.config.seeding import torch_generator
from llds_core.errors import RetrieverError
from llds_core.evaluation import evaluate
from llds_core.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate_questions
from llds_core.evaluation.held_out import evaluate_run
from llds_core.rollout.samplers import TransformersSampler
from llds_core.runs import Run


@pytest.mark.parametrize(("allowed", "searches"), [("null", 2), ("4", 4), ("1", 1)])
def test_questions_get_the_searches_of_evaluation(tmp_path, monkeypatch, allowed, searches):
    room = ("rollout.max_total_tokens=900", "evaluation.batch_size=1")
    world = environment(*room, f"evaluation.max_searches={allowed}")
    script = ["<search> Homs </search>"] * 5
    monkeypatch.setattr(
        evaluate, "TransformersSampler", lambda *_, **__: ScriptedSampler(TOKENIZER, [script])
    )
    folder = evaluate_questions(world, model(), EvaluationPlan(limit=7), out=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["identity"]["rollout.max_searches"] == searches
    assert {(row["searches"], row["status"]) for row in lines(folder)} == {(searches, "turns")}
    assert world.config.rollout.max_searches == 2  # training is as it was


def test_sampled_answers_draw_batch_by_batch_from_the_streams_of_published_scores(tmp_path):
    world = environment("evaluation.batch_size=5", "rollout.top_p=0.5")
    plan = EvaluationPlan(modes=("greedy", "sampled"), samples=2, seed=3, draws="batch")
    questions = world.world.test[:12]
    evaluation = Evaluation(world, model(), plan, questions)
    loop = world.rollout_loop(TOKENIZER, seed=0, failure_rate=0.0)
    expected = []
    for sample in (1, 2):
        for start in (0, 5, 10):
            stream = torch_generator(3, "evaluation", "sampling", sample, start)
            sampler = TransformersSampler(policy(), TOKENIZER, stream, temperature=1.0)
            tasks = [(question, sample) for question in questions[start : start + 5]]
            expected += [t.completion_ids for t in loop.run(tasks, sampler).trajectories]
    file = tmp_path / "predictions.jsonl"
    for killed in (None, 17, 33):
        if killed:
            whole = file.read_text().splitlines(keepends=True)
            file.write_text("".join(whole[:killed]) + whole[killed][:9])
        evaluation.answer(tmp_path)
        made = ["".join(part["text"] for part in row["segments"][1:]) for row in lines(tmp_path)]
        assert made[12:] == [TOKENIZER.decode(ids) for ids in expected]


def test_failing_searches_are_an_evaluation_of_their_own(tmp_path):
    world = environment("retrieval.failure_rate=1")
    plan = EvaluationPlan(modes=("greedy", "greedy_with_failures"))
    rows = Evaluation(world, model(), plan, world.world.test).answer(tmp_path)
    true, failed = (
        [row for row in rows if row["mode"] == mode and row["searches"]] for mode in plan.modes
    )
    assert "Doc 1" in str(true)
    for one, other in zip(true, failed, strict=True):
        shown, changed = (
            next(part["text"] for part in row["segments"] if part["kind"] == "observation")
            for row in (one, other)
        )
        # A search that finds nothing cannot fail.
        assert one["id"] == other["id"] and (shown != changed) == ("Doc 1" in shown)


def test_evaluating_again_gives_the_same_numbers_for_every_mode_and_group(smoke_runs, tmp_path):
    run = Run(load_experiment("smoke/grpo"), 0, shutil.copytree(smoke_runs, tmp_path / "runs"))
    path = evaluate_run(run)
    first = path.read_bytes()
    assert evaluate_run(run).read_bytes() == first
    shutil.rmtree(run.path / "held-out")
    assert evaluate_run(run).read_bytes() == first
    results = json.loads(first)["results"]
    assert list(results) == ["greedy", "greedy_with_failures", "sampled_1"]
    for groups in results.values():
        assert groups["all"]["n"] == groups["1-hop"]["n"] + groups["2-hop"]["n"] == 16
        assert set(groups["all"]) == {"n", "em", "low", "high", "searches"}


def test_scores_need_an_answer_to_every_search(smoke_runs, tmp_path):
    """A run may go on without one, but it would count as a wrong answer."""
    shutil.copytree(smoke_runs, tmp_path / "runs")
    nobody = ["retrieval.backend=server", "service.url=http://127.0.0.1:9", "service.tries=1"]
    config = load_experiment("smoke/grpo", [*nobody, "service.on_failure=empty"])
    run = Run(config, 0, tmp_path / "runs")
    refused(RetrieverError, "gave no valid answer", evaluate_run, run)
