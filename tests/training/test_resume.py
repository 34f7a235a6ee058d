"""Killed runs, re-issued, end as if nothing had happened; interrupted and failed runs say so.

Children are forked from a server that has only imported the package, so that a kill can be put at
an exact place without paying for imports each time. One test stops and kills the command from
outside.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import CONFIG as SMOKE
from shared_trainers import command, spawn, wait
from transformers import PreTrainedModel

from llds_core.errors import TrainingDivergedError
from llds_core.runs import Run, RunDirectory, read_manifest, read_metrics, read_trajectories
from llds_core.runs.checkpoints import checkpoint_path, checkpoint_steps
from llds_core.runs.policies import load_policy
from llds_core.training import experiment, recorder
from llds_core.training.experiment import train
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import WarmstartTrainer, warmstart

TIMING = re.compile("seconds|per_second")
PATIENCE = 600  # seconds until a test gives up; a busy machine only makes it later
# Every second checkpoint but the last holds weights only; rotation keeps it no longer than others.
_SPARSE = ["training.steps=5", "training.resumable_every=2", "training.keep_checkpoints=1"]


def kill(owner: Any, name: str, number: int, *, after: bool = False) -> None:
    """Die in call `number` of an attribute of `owner`, before or after it has done its work."""
    original = getattr(owner, name)
    calls = iter(range(1, 10**9))

    def counted(*args: Any, **kwargs: Any) -> Any:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


# Where a child dies, and what is on disk then: owner, attribute, call, rows and last checkpoint.
# Each child continues what the one before it left, and ends a step, so that it can be compared.
_PLACES: dict[str, tuple[Any, str, int, int, int]] = {
    "second rollout": (experiment.SearchRollout, "__call__", 2, 1, 1),
    "after the row, before the checkpoint": (RunDirectory, "append_metrics", 1, 2, 1),
    "between updates": (SearchGRPOTrainer, "_clip_grad_norm", 7, 2, 2),
    "inside the checkpoint": (SearchGRPOTrainer, "checkpoint_extra", 1, 3, 2),
    "before the row is written": (RunDirectory, "append_metrics", 2, 3, 3),
    "before the leftover of a checkpoint is removed": (shutil, "rmtree", 1, 4, 4),
    "before ranking the last checkpoint": (recorder.Recorder, "saved", 2, 5, 5),
}
_WARM_PLACES: dict[str, tuple[Any, str, int, int, int]] = {
    "between updates": (WarmstartTrainer, "compute_loss", 33, 3, 30),
    "inside the checkpoint": (WarmstartTrainer, "checkpoint_extra", 1, 6, 30),
    "after the weights of the policy": (PreTrainedModel, "save_pretrained", 2, 6, 60),
    "before the run ends": (RunDirectory, "update", 2, 6, 60),
}
_FIVE = ("training.steps=5",)


def _train(root: Path, place: str | None) -> None:
    if place is not None:
        kill(*_PLACES[place][:3], after=place.startswith("after"))
    train(Run.load("smoke/llds-action", 0, root, _FIVE))


def _warm_start(root: Path, place: str | None) -> None:
    if place is not None:
        kill(*_WARM_PLACES[place][:3], after=place.startswith("after"))
    warmstart(Run.load("smoke/grpo", 0, root))


def kill_everywhere(
    work: Callable, places: dict[str, tuple], root: Path, run: Path, whole: Path
) -> None:
    """Kill `work` at each place, always continuing it; then let it end."""
    last = "nowhere"
    for place, (*_, written, saved) in places.items():
        assert in_child(work, root, place) == -signal.SIGKILL, place
        history = f"killed {last}, continued, killed {place}"
        assert read_manifest(run)["status"] == "running"
        assert checkpoint_steps(run / "checkpoint")[-1] == saved, history
        assert rows(run) == rows(whole)[:written], history
        stored, expected = (
            [t for t in read_trajectories(path) if t["step"] <= written] for path in (run, whole)
        )
        assert stored == expected, history
        last = place
    assert in_child(work, root, None) == 0
    assert read_manifest(run)["status"] == "complete"
    assert len(read_manifest(run)["resumed"]) == len(places)
    assert not list((run / "checkpoint").glob(".partial*"))


def in_child(work: Callable, *arguments: Any) -> int | None:
    """Exit code of `work(*arguments)` in another process."""
    return wait(spawn(1, work, *arguments), PATIENCE)[0]


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not TIMING.search(k)} for row in read_metrics(run)]


def assert_same_run(one: Path, other: Path) -> None:
    steps = checkpoint_steps(one / "checkpoint")
    assert steps == checkpoint_steps(other / "checkpoint")
    for step in steps:
        left, right = (checkpoint_path(run / "checkpoint", step) for run in (one, other))
        weights = [(path / "model.safetensors").read_bytes() for path in (left, right)]
        assert weights[0] == weights[1]
    assert rows(one) == rows(other)
    assert read_trajectories(one) == read_trajectories(other)
    for key in ("status", "best_step", "last_step"):
        assert read_manifest(one)[key] == read_manifest(other)[key], key


@pytest.mark.slow
def test_a_run_killed_at_every_place_is_bit_identical(smoke_runs, root, tmp_path) -> None:
    run, whole = (each / "smoke" / "llds-action" / "seed0" for each in (root, tmp_path / "whole"))
    shutil.copytree(smoke_runs, tmp_path / "whole")
    assert in_child(_train, tmp_path / "whole", None) == 0
    kill_everywhere(_train, _PLACES, root, run, whole)
    assert_same_run(run, whole)


@pytest.mark.slow
def test_a_warm_start_killed_at_every_place_gives_the_same_policy(smoke_runs, tmp_path) -> None:
    run, whole = (Run(SMOKE, 0, root).warmstart_path for root in (tmp_path, smoke_runs))
    kill_everywhere(_warm_start, _WARM_PLACES, tmp_path, run, whole)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (run / "policy" / name).read_bytes() == (whole / "policy" / name).read_bytes(), name
    assert rows(run) == rows(whole)


@pytest.mark.slow
def test_command_interrupted_then_killed_while_it_writes_a_checkpoint_is_bit_identical(
    smoke_runs: Path, root: Path, tmp_path: Path
) -> None:
    run = root / "smoke" / "grpo" / "seed0"
    errors, deadline = tmp_path / "errors", time.monotonic() + PATIENCE

    def issue(*words: str) -> BaseProcess:
        words = ("train", "smoke/grpo", *words, "--run-root", str(root))
        (child,) = spawn(1, command, words, errors)
        return child

    child = issue("training.steps=200")
    while not checkpoint_steps(run / "checkpoint"):
        assert child.is_alive() and time.monotonic() < deadline, errors.read_text("utf-8")
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGINT)
    assert wait([child], PATIENCE) == [130]
    err = errors.read_text("utf-8")
    assert "python -m llds_core train smoke/grpo training.steps=200" in err
    assert str(root) in err
    assert "Traceback" not in err
    manifest = read_manifest(run)
    assert manifest["status"] == "interrupted"
    assert manifest["finished"] is not None

    # The lock is free, and a shorter command of the same run continues it.
    child = issue()
    partial = run / "checkpoint" / ".partial-2"  # gone in a moment: it may be missed
    while not partial.exists() and child.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.kill()
    child.join()
    assert "missing" not in errors.read_text("utf-8")  # as transformers says of tied weights
    train(Run(SMOKE, 0, root))
    assert_same_run(run, smoke_runs / "smoke" / "grpo" / "seed0")


@pytest.fixture(scope="module")
def five_steps(fresh_root, tmp_path_factory) -> Path:
    """A run of five steps in one go."""
    run = Run.load("smoke/grpo", 0, fresh_root(tmp_path_factory.mktemp("five")), _SPARSE)
    train(run)
    return run.path


def test_longer_run_continues_a_shorter_one(smoke_runs: Path, five_steps: Path, root: Path) -> None:
    complete = smoke_runs / "smoke" / "grpo" / "seed0"
    shutil.copytree(complete, root / "smoke" / "grpo" / "seed0")
    longer = Run.load("smoke/grpo", 0, root, ["training.steps=4"])
    train(longer)
    assert longer.path == root / "smoke" / "grpo" / "seed0"
    assert rows(longer.path)[:3] == rows(complete)
    assert [row["step"] for row in longer.metrics()] == [1, 2, 3, 4]
    assert rows(five_steps)[:4] == rows(longer.path)


def test_a_run_goes_on_from_its_last_resumable_checkpoint(five_steps: Path, root: Path) -> None:
    run = Run.load("smoke/grpo", 0, root, _SPARSE)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, after_step=stop)
    assert {2, 3} <= {*checkpoint_steps(run.checkpoints)}
    weights_only = checkpoint_path(run.checkpoints, 3)
    assert not (weights_only / "optimizer.pt").exists() and load_policy(weights_only)
    assert (checkpoint_path(run.checkpoints, 2) / "optimizer.pt").exists()
    train(run)
    assert_same_run(five_steps, run.path)
    assert (checkpoint_path(run.checkpoints, 5) / "optimizer.pt").exists()


def test_a_proved_collapse_ends_the_run_with_a_checkpoint_even_after_a_kill(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["diagnostics.stop_after_collapse=true", "training.steps=5"]
    run = Run.load("smoke/grpo", 0, root, overrides)
    judged: list[int] = []

    def collapses_at_two(reward: Any, window: int) -> int | None:
        judged.append(len(reward))
        assert window == run.config.diagnostics.window
        return 1 if len(reward) >= 2 else None

    monkeypatch.setattr(recorder, "collapse_row", collapses_at_two)
    train(run)
    assert judged == [1, 2]
    assert run.manifest()["status"] == "collapsed"
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert checkpoint_steps(run.checkpoints)[-1] == 2
    # Killed between the last step and the final status: nothing is trained any more.
    (run.path / "manifest.json").write_text(json.dumps(run.manifest() | {"status": "running"}))
    train(run)
    assert run.manifest()["status"] == "collapsed"
    assert len(run.metrics()) == 2


def test_diverged_run_ends_failed_with_its_last_checkpoint_intact(
    smoke_runs: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.load("smoke/llds-action", 0, root, ["training.max_nonfinite_updates=2"])

    class Poisoned(experiment.SearchGRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            loss = super()._compute_loss(model, inputs)
            if self.state.global_step >= 5:
                self._loss_is_finite = False
                return loss * float("nan")
            return loss

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "SearchGRPOTrainer", Poisoned)
        with pytest.raises(TrainingDivergedError, match="at step 2"):
            train(run)
    assert run.manifest()["status"] == "failed"
    assert "TrainingDivergedError" in run.manifest()["reason"]
    assert checkpoint_steps(run.checkpoints) == [1]
    model, _ = load_policy(checkpoint_path(run.checkpoints, 1))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    # Re-issued without the fault, it ends like a run that never had it.
    train(run)
    assert_same_run(run.path, smoke_runs / "smoke" / "llds-action" / "seed0")


def test_complete_run_is_returned_untouched(smoke_runs: Path) -> None:
    run = smoke_runs / "smoke" / "grpo" / "seed0"
    files = [run / name for name in ("manifest.json", "metrics.jsonl", "lock", "log.txt")]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    train(Run(SMOKE, 0, smoke_runs))
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    other = read_manifest(smoke_runs / "smoke" / "llds-action" / "seed0")
    assert other["start_policy"] == read_manifest(run)["start_policy"]
