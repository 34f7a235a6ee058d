"""Whole runs on several processes: as one process would have made them, whatever becomes of one."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from shared_trainers import differing, spawn, wait
from test_resume import assert_same_run, kill, rows

from llds_core.__main__ import main
from llds_core.runs import Run, read_manifest, read_metrics, read_trajectories
from llds_core.runs.checkpoints import checkpoint_path, checkpoint_steps
from llds_core.runs.policies import load_policy
from llds_core.training import experiment
from llds_core.training.trainer import SearchGRPOTrainer

# The format reward differs inside groups, which the smoke policy's answers hardly ever do.
_RUN = ("reward.kind=format", "training.warmup_steps=0", "rollout.streams=trajectory")
_STEPS = 2
_LIMIT = 600  # seconds within which no process may be left
pytestmark = pytest.mark.slow


class InDouble(SearchGRPOTrainer):
    """Samples and trains in float64, where no token hangs on the order in which a sum is taken."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.double()
        self.ref_model.double()


def train_smoke(root: Path, world: int, dies_in: int | None = None) -> None:
    """Train in this process's place; the second process is killed at its rollout `dies_in`."""
    experiment.SearchGRPOTrainer = InDouble
    if dies_in is not None and os.environ["RANK"] == "1":
        kill(experiment.SearchRollout, "__call__", dies_in)
    overrides = (*_RUN, f"training.steps={_STEPS}", f"hardware.processes={world}")
    experiment.train(Run.load("smoke/llds-action", 0, root, overrides))


def smoke_path(root: Path) -> Path:
    return Run.load("smoke/llds-action", 0, root, _RUN).path


@pytest.fixture(scope="module")
def runs(fresh_root, tmp_path_factory) -> dict[int, Path]:
    """The same run on one and on two processes."""
    made = {}
    for world in (1, 2):
        root = fresh_root(tmp_path_factory.mktemp(f"world{world}") / "runs")
        assert wait(spawn(world, train_smoke, root, world)) == [0] * world
        made[world] = smoke_path(root)
    return made


def test_two_processes_make_the_run_of_one(runs: dict[int, Path]) -> None:
    for step in range(1, _STEPS + 1):
        assert not differing(rows(runs[1])[step - 1], rows(runs[2])[step - 1])
    assert [read_manifest(path)["status"] for path in runs.values()] == ["complete"] * 2
    ids = [[t["completion_ids"] for t in read_trajectories(path)] for path in runs.values()]
    assert ids[0] == ids[1]
    assert rows(runs[1])[0]["grad_norm"] > 0.01
    assert rows(runs[1])[1]["gated_fraction"] > 0


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_checkpoint_continues_on_another_number_of_processes(runs, root, before, after) -> None:
    path = smoke_path(root)
    shutil.copytree(runs[before], path)
    shutil.rmtree(checkpoint_path(path / "checkpoint", 2))
    first = (path / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)[0]
    (path / "metrics.jsonl").write_text(first, "utf-8")
    assert wait(spawn(after, train_smoke, root, after)) == [0] * after
    assert read_manifest(path)["config"]["hardware"]["processes"] == after
    assert not differing(rows(path)[1], rows(runs[before])[1])


def test_a_killed_process_ends_the_run_which_continues_as_if_nothing_had_happened(
    runs: dict[int, Path], root: Path
) -> None:
    started = time.monotonic()
    assert wait(spawn(2, train_smoke, root, 2, 2)) == [2, -signal.SIGKILL]
    assert time.monotonic() - started < _LIMIT
    path = smoke_path(root)
    manifest = read_manifest(path)
    assert manifest["status"] == "failed"
    assert "another process of this run has ended" in manifest["reason"]
    assert checkpoint_steps(path / "checkpoint") == [1]
    assert wait(spawn(2, train_smoke, root, 2)) == [0, 0]
    assert_same_run(path, runs[2])


def test_the_command_says_which_process_was_killed(root, capsys) -> None:
    """All of its processes end; Ctrl-C is in `machine/test_launch.py` and `test_jobs.py`."""
    path = smoke_path(root)
    ended = threading.Event()
    found: list[psutil.Process] = []

    def saved() -> list[int]:
        return checkpoint_steps(path / "checkpoint")

    def kill_one() -> None:
        while not saved():
            if ended.wait(0.05):
                return
        for each in psutil.Process().children(recursive=True):
            if str(root) in each.cmdline() and "RANK" in each.environ():
                found.append(each)
        next(each for each in found if each.environ()["RANK"] == "1").kill()
        if not ended.wait(_LIMIT):
            for each in found:
                each.kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    words = ["train", "smoke/llds-action", *_RUN, "hardware.processes=2", "training.steps=500"]
    try:
        assert main([*words, "--run-root", str(root), "--quiet"]) == 2
    finally:
        ended.set()
        killer.join()
    assert len(found) == 2 and not any(each.is_running() for each in found)
    output = capsys.readouterr().err
    assert "process 1 was killed by SIGKILL" in output and output.count("\n") == 1
    manifest = read_manifest(path)
    assert manifest["status"] == "failed"
    assert manifest["reason"] == "process 1 was killed by SIGKILL"
    last = saved()[-1]
    load_policy(checkpoint_path(path / "checkpoint", last))
    assert [row["step"] for row in read_metrics(path)][:last] == list(range(1, last + 1))
