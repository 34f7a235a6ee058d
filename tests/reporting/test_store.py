"""Stored runs as tables."""

import json
import shutil

import pytest

from llds_core.errors import ConfigError, DataError, TrainingDivergedError
from llds_core.reporting.store import load_run, load_runs
from llds_core.runs import read_metrics
from llds_core.study.runner import ensure_runs


def copied(smoke_runs, tmp_path):
    shutil.copytree(smoke_runs / "smoke" / "grpo", tmp_path / "smoke" / "grpo")
    return tmp_path / "smoke" / "grpo" / "seed0"


def test_a_run_holds_what_its_files_say(smoke_runs):
    path = smoke_runs / "smoke" / "grpo" / "seed0"
    run = load_run(path)
    rows = read_metrics(path)
    assert (run.profile, run.method, run.seed, run.status) == ("smoke", "grpo", 0, "complete")
    assert run.metrics["step"].tolist() == [row["step"] for row in rows]
    assert run.metrics["entropy"].tolist() == [row["entropy"] for row in rows]
    nulls = [row["loglik_correct"] is None for row in rows]
    assert run.metrics["loglik_correct"].isna().tolist() == nulls


def test_the_fingerprint_depends_on_seed_and_configuration(smoke_runs, tmp_path):
    path = copied(smoke_runs, tmp_path)
    before = load_run(path).fingerprint
    assert before == load_run(path).fingerprint and len(before) == 12
    manifest = json.loads((path / "manifest.json").read_text())
    for key, value in (("seed", 7), ("config_hash", "other")):
        (path / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        assert load_run(path).fingerprint != before


def test_runs_come_by_method_then_seed(smoke_runs):
    runs = load_runs(smoke_runs, "smoke", ["llds-action", "grpo"], [0])
    assert [run.name for run in runs] == ["smoke/llds-action/seed0", "smoke/grpo/seed0"]


def test_a_missing_run_names_the_command_that_makes_it(smoke_runs):
    with pytest.raises(DataError, match=r"train smoke/grpo loss\.kl_weight=0\.1 --seed 5"):
        load_runs(smoke_runs, "smoke", ["grpo"], [5], ["loss.kl_weight=0.1"])


def test_damaged_metrics_name_file_and_line(smoke_runs, tmp_path):
    path = copied(smoke_runs, tmp_path)
    metrics = path / "metrics.jsonl"
    metrics.write_text("garbage\n" + metrics.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl:1"):
        load_run(path)


def test_a_run_without_steps_is_an_empty_table(smoke_runs, tmp_path):
    path = copied(smoke_runs, tmp_path)
    (path / "metrics.jsonl").unlink()
    run = load_run(path)
    assert len(run.metrics) == 0 and "reward" in run.metrics


def test_an_incomplete_manifest_is_refused(smoke_runs, tmp_path):
    path = copied(smoke_runs, tmp_path)
    (path / "manifest.json").write_text('{"profile": "smoke"}')
    with pytest.raises(DataError, match='no "status"'):
        load_run(path)


def test_complete_runs_are_read_not_trained(smoke_runs):
    metrics = smoke_runs / "smoke" / "grpo" / "seed0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    [run] = ensure_runs("smoke", ["grpo"], [0], smoke_runs)
    assert metrics.stat().st_mtime_ns == before and run.status == "complete"


def test_complete_runs_need_no_checkpoint(smoke_runs, tmp_path, monkeypatch):
    shutil.rmtree(copied(smoke_runs, tmp_path) / "checkpoint")
    monkeypatch.setattr("llds_core.training.experiment.train", None)
    assert len(ensure_runs("smoke", ["grpo"], [0], tmp_path)) == 1


def test_missing_runs_are_trained_and_diverged_ones_read(smoke_runs, tmp_path, monkeypatch):
    asked = []

    def fake_train(run):
        asked.append((run.config.method, run.seed))
        shutil.copytree(smoke_runs / "smoke" / run.config.method / "seed0", run.path)
        if run.config.method == "grpo":
            raise TrainingDivergedError("loss is not a number")

    monkeypatch.setattr("llds_core.training.experiment.train", fake_train)
    runs = ensure_runs("smoke", ["grpo", "llds-action"], [0], tmp_path)
    assert asked == [("grpo", 0), ("llds-action", 0)]
    assert [run.method for run in runs] == ["grpo", "llds-action"]


def test_an_unknown_method_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="unknown method"):
        ensure_runs("smoke", ["grpo", "grrpo"], [0], tmp_path)
    assert not any(tmp_path.iterdir())
