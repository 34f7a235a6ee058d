"""Stored runs as tables."""

import shutil
from unittest.mock import Mock

import pytest
from run_helpers import refused

from llds_core.errors import ConfigError, DataError, TrainingDivergedError
from llds_core.reporting.curves import LiveCurves, curves_figure
from llds_core.reporting.figures import FAINT
from llds_core.reporting.store import load_run, load_runs, published_beside, read_published_run
from llds_core.runs import read_metrics
from llds_core.study.published import publish_run, write_runs_table
from llds_core.study.runner import ensure_runs


@pytest.fixture
def copied(smoke_runs, tmp_path):
    return shutil.copytree(smoke_runs / "smoke/grpo/seed0", tmp_path / "smoke/grpo/seed0")


def test_runs_come_by_method_then_seed_and_hold_what_their_files_say(smoke_runs):
    llds, run = load_runs(smoke_runs, "smoke", ["llds-action", "grpo"], [0])
    assert (llds.name, run.name) == ("smoke/llds-action/seed0", "smoke/grpo/seed0")
    rows = read_metrics(run.path)
    assert (run.profile, run.method, run.seed, run.status) == ("smoke", "grpo", 0, "complete")
    assert run.metrics["step"].tolist() == [row["step"] for row in rows]
    assert run.metrics["entropy"].tolist() == [row["entropy"] for row in rows]
    nulls = [row["loglik_correct"] is None for row in rows]
    assert run.metrics["loglik_correct"].isna().tolist() == nulls


def test_what_is_missing_or_damaged_is_named(copied, smoke_runs):
    asked = smoke_runs, "smoke", ["grpo"], [5], ["loss.kl_weight=0.1"]
    refused(DataError, r"train smoke/grpo loss\.kl_weight=0\.1 --seed 5", load_runs, *asked)
    metrics = copied / "metrics.jsonl"
    metrics.write_text("garbage\n" + metrics.read_text())
    refused(DataError, r"metrics\.jsonl:1", load_run, copied)
    (copied / "manifest.json").write_text('{"profile": "smoke"}')
    refused(DataError, r"manifest\.json is no manifest .*status", load_run, copied)


def test_damaged_published_metrics_are_named(copied, tmp_path):
    manifest = publish_run(load_run(copied), published=tmp_path / "published")
    metrics = manifest.with_suffix(".csv.gz")
    whole = metrics.read_bytes()
    assert len(read_published_run(manifest).metrics) == len(read_metrics(copied))
    for damaged in (whole[:40], whole[:40] + bytes(40), whole[40:], b""):
        metrics.write_bytes(damaged)
        refused(DataError, "damaged", read_published_run, manifest)


def test_missing_runs_are_trained_others_read(copied, smoke_runs, tmp_path, monkeypatch):
    shutil.rmtree(copied / "checkpoint")  # which reading needs not
    asked = []

    def fake_train(run, after_step):
        asked.append((run.config.method, run.seed))
        shutil.copytree(smoke_runs / "smoke" / run.config.method / "seed0", run.path)
        raise TrainingDivergedError("loss is not a number")

    monkeypatch.setattr("llds_core.training.experiment.train", fake_train)
    runs = ensure_runs("smoke", ["grpo", "llds-action"], [0], tmp_path)
    unknown = "smoke", ["llds-ma", "grrpo"], [0], tmp_path  # before anything is trained
    refused(ConfigError, "unknown method", ensure_runs, *unknown)
    assert asked == [("llds-action", 0)]
    assert [run.method for run in runs] == ["grpo", "llds-action"]


def test_a_stopped_training_is_read_as_far_as_it_went(smoke_runs, tmp_path, monkeypatch):
    """What a notebook's stop button does, and that the same call then goes on."""
    (start,) = smoke_runs.glob("smoke/warmstart-*")
    shutil.copytree(start, tmp_path / "smoke" / start.name)
    asked = ["smoke", ["grpo", "llds-action"], [3], tmp_path]
    seen = []

    def stop(run):
        seen.append(len(run.metrics))
        LiveCurves(["reward", "entropy"])(run)
        if len(seen) == 2:
            raise KeyboardInterrupt

    (run,) = ensure_runs(*asked, watch=stop)
    assert seen == [1, 2] and len(run.metrics) == 2 and run.status == "interrupted"
    assert [len(run.metrics) for run in ensure_runs(*asked)] == [3, 3]
    monkeypatch.setattr("llds_core.training.experiment.train", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # nothing to show
        ensure_runs("smoke", ["grpo"], [4], tmp_path, watch=stop)


def test_published_runs_stand_grey_behind_ones_own(smoke_runs, tmp_path, monkeypatch):
    own = [load_run(smoke_runs / "smoke/grpo/seed0")]
    assert published_beside(own) == []  # nothing is published of smoke
    monkeypatch.setattr("llds_core.reporting.store.PUBLISHED", tmp_path)
    publish_run(own[0], published=tmp_path)
    write_runs_table(tmp_path, "smoke")
    (other,) = published_beside(own)
    assert other.name == own[0].name and published_beside([other]) == []
    alone, above = (curves_figure(own, ["reward"], behind=runs) for runs in ((), [other]))
    before, after = ({line.get_color() for line in f.axes[0].lines} for f in (alone, above))
    assert after - before == {FAINT}
    assert alone.axes[0].get_xlim() == above.axes[0].get_xlim()
