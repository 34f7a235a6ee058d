"""Evaluations end to end with a tiny policy: batches, shards, kills and mistakes change nothing."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_worlds import LIMITS, TOKENIZER, environment, lines, model, policy
from run_helpers import refused
from shared_trainers import command, spawn

from llds_core.__main__ import main
from llds_core.errors import ConfigError, RunError
from llds_core.evaluation import evaluate as module
from llds_core.evaluation.evaluate import EvaluationPlan, evaluate_questions
from llds_core.evaluation.models import Model

PLAN = EvaluationPlan(limit=14, modes=("greedy", "sampled"), samples=2)
ROOT = Path(__file__).parents[2]


def evaluate(out, plan=PLAN, *, batch=16, **options):
    world = environment(f"evaluation.batch_size={batch}")
    return evaluate_questions(world, model(), plan, out=out, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("whole"))


def test_every_question_has_its_lines_and_the_summary_counts_them(whole):
    rows = lines(whole)
    assert len(rows) == 14 + 2 * 14
    for row in rows:
        kinds = [part["kind"] for part in row["segments"]]
        assert kinds[:2] == ["prompt", "policy"] and row["question"] in row["segments"][0]["text"]
        assert kinds.count("observation") == row["searches"]
    statuses = {row["status"] for row in rows}
    assert "answer" in statuses and statuses <= {"answer", "turns", "length"}
    assert any(row["searches"] for row in rows)
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["questions"], summary["answers"]) == (14, 42)
    for mode in ("greedy", "sampled"):
        for name, scores in summary["modes"][mode]["benchmarks"].items():
            mine = [r for r in rows if (r["mode"], r["benchmark"]) == (mode, name)]
            assert scores["n"] == len({row["id"] for row in mine}) == 2
            valid = sum(row["status"] == "answer" for row in mine) / len(mine)
            assert scores["valid_answers"] == pytest.approx(valid)
    assert summary["identity"]["rollout.max_searches"] == 2 and summary["packages"]["torch"]


def test_the_batch_size_changes_no_answer(whole, tmp_path):
    evaluate(tmp_path, batch=5)
    assert lines(tmp_path) == lines(whole)


def test_shards_and_a_call_for_the_rest_give_what_one_process_gives(whole, tmp_path):
    for number in (3, 1):
        evaluate(tmp_path, shard=(number, 3))
    assert not (tmp_path / "summary.json").exists()
    rest = shutil.copytree(tmp_path, tmp_path / "rest")
    evaluate(rest)
    evaluate(tmp_path, shard=(2, 3))
    evaluate(tmp_path)
    other = json.loads((whole / "summary.json").read_text())
    for folder in (rest, tmp_path):
        assert sorted(lines(folder), key=str) == sorted(lines(whole), key=str)
        summary = json.loads((folder / "summary.json").read_text())
        assert strip(summary["modes"]) == strip(other["modes"])


def strip(value):
    """Scores without the time they took."""
    if not isinstance(value, dict):
        return value
    return {key: strip(item) for key, item in value.items() if key != "seconds"}


def test_a_finished_evaluation_loads_no_model_and_another_is_refused(whole):
    before = (whole / "predictions.jsonl").read_bytes()
    world = environment("evaluation.batch_size=16")
    unloadable = Model("tiny", model().digest, lambda: pytest.fail("loaded"))
    evaluate_questions(world, unloadable, PLAN, out=whole)
    assert (whole / "predictions.jsonl").read_bytes() == before
    more = environment("rollout.max_searches=4")
    for asked, words in (
        ((world, model(), replace(PLAN, limit=13)), "limit=14, now 13"),
        ((world, model(), replace(PLAN, samples=3)), "samples=2, now 3"),
        ((world, model(), replace(PLAN, seed=1)), "seed=0, now 1"),
        ((world, model("f" * 16), PLAN), "model='0123456789abcdef', now 'ffffffff"),
        ((more, model(), PLAN), r"rollout\.max_searches=2, now 4"),
    ):
        refused(RunError, words, evaluate_questions, *asked, out=whole)


def test_a_search_that_may_be_lost_is_refused(tmp_path):
    world = environment("service.on_failure=empty")
    served = replace(world.config, retrieval=replace(world.config.retrieval, backend="server"))
    asked = replace(world, config=served), model(), PLAN
    refused(ConfigError, "set it to raise", evaluate_questions, *asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_baselines_write_one_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = environment("evaluation.batch_size=16", "rollout.max_total_tokens=1500")
    names = ["direct", "rag", "search-o1", "search-r1"]
    table = module.run_baselines(world, model(), EvaluationPlan(limit=7), names, tmp_path / "t")
    rows = table.read_text().splitlines()
    assert rows[0] == ",".join(module.BASELINE_COLUMNS) and len(rows) == 1 + 4 * (7 + 3)
    manifest = json.loads((tmp_path / "t" / "baselines.json").read_text())
    assert list(manifest["baselines"]) == names
    for about in manifest["baselines"].values():
        assert about["questions"] == 7 and "git_commit" in about


def test_a_killed_evaluation_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "policy"
    policy().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    words = ["evaluate", "smoke", "--checkpoint", str(folder), "--limit", "7"]
    words += ["--mode", "greedy,sampled", *LIMITS, "evaluation.batch_size=1", "--out"]
    out = tmp_path / "out"
    (process,) = spawn(1, command, [*words, str(out)], tmp_path / "errors")
    file, deadline = out / "predictions.jsonl", time.monotonic() + 600
    while not file.exists() or file.read_bytes().count(b"\n") < 3:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    kept = file.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert kept.count(b"\n") < 14 and not (out / "summary.json").exists()
    with file.open("ab") as end:
        end.write(b'{"benchmark": "city-cap')
    assert main([*words, str(out), "--quiet"]) == 0
    assert file.read_bytes().startswith(kept) and len(lines(out)) == 14
    assert main([*words, str(tmp_path / "again"), "--quiet"]) == 0
    assert lines(out) == lines(tmp_path / "again")


@pytest.mark.parametrize("agent", ["policy", "rag"])
def test_questions_that_do_not_fit_score_as_unanswered(tmp_path, agent):
    usual = environment()
    questions = [*usual.world.test]
    questions[::7] = [replace(q, question=q.question + " x" * 400) for q in questions[::7]]
    odd = replace(usual, world=replace(usual.world, test=tuple(questions)))
    plan = EvaluationPlan(agent, modes=("greedy", "sampled"), samples=2)
    evaluate_questions(odd, model(), plan, out=tmp_path)
    long = {q.id for q in questions[::7]}
    rows = lines(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["too_long"] == len({r["id"] for r in rows if r["status"] == "too_long"})
    assert summary["too_long"] >= len(long) > 0
    for row in rows:
        assert row["id"] not in long or row["status"] == "too_long"
        if row["status"] == "too_long":
            assert (row["prediction"], row["em"]) == (None, 0.0)
            assert [part["kind"] for part in row["segments"]] == ["prompt"]
