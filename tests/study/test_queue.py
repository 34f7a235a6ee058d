"""Which failed runs of a queue are results, which are run again; how long the rest will take."""

import json
import shlex
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from llds_core.config import Arm, Study, load_experiment
from llds_core.errors import RunError, TrainingDivergedError
from llds_core.machine import jobs
from llds_core.machine.jobs import Child, Job
from llds_core.reporting.store import read_published
from llds_core.runs import RunDirectory
from llds_core.runs.identity import same_run
from llds_core.study import runner as queue
from llds_core.study.runner import planned_runs, run_study, status, what_is_left

STUDY = Study("two", "smoke", "", (Arm("grpo", "grpo", (0,)), Arm("llds", "llds-action", (0,))))
KILLED = KeyboardInterrupt("without a word")
FULL = RunError("cannot write to run (No space left on device): free space")
MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory")
DIVERGED = TrainingDivergedError("5 updates in a row were not finite")


class Children:
    """In place of processes: each writes its run, and the first of `grpo` fails after a step."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error
        self.started: list[str] = []

    def __call__(self, job: Job, place: object) -> Child:
        run, error = job.run, None
        self.started.append(run.arm)
        if run.arm == "grpo":
            error, self.error = self.error, None
        steps = 1 if error else run.config.training.steps
        directory = RunDirectory(run.path, run.config, run.seed, command="again")
        row = {"reward": 0.5, "entropy": 1.0, "rollout_seconds": 1.0, "update_seconds": 1.0}
        with suppress(type(error)), directory:
            for step in range(len(run.metrics()) + 1, steps + 1):
                directory.append_metrics(
                    {"step": step, "updates": step, "loglik_correct": None, **row}
                )
            if error:
                raise error
        if error is KILLED:
            manifest = run.manifest() | {"status": "running", "reason": None}
            (run.path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        said = f"echo {shlex.quote(f'error: {error}')} >&2; " if error else ""
        ending = "kill -9 $$" if error is KILLED else f"exit {2 if error else 0}"
        return Child(["sh", "-c", said + ending], job.messages)


@pytest.fixture
def children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Children:
    """Children of which the first fails as the parameter says; two run at a time."""
    made = Children(request.param)
    monkeypatch.setattr(jobs, "_start", made)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "places", lambda job: [{}, {}])
    monkeypatch.setattr(queue, "make_start_policy", lambda *_, **__: None)
    return made


def study(folder: Path) -> list[str]:
    return run_study(STUDY, folder / "runs", published=folder / "published")


def states(folder: Path) -> dict[str, str]:
    table = status(planned_runs(STUDY, folder / "runs"), folder / "published")
    return dict(zip(table["arm"], table["state"], strict=True))


@pytest.mark.parametrize(
    ("children", "reason"),
    [(KILLED, "ended by signal 9"), (FULL, "No space left"), (MEMORY, "not enough memory")],
    indirect=["children"],
)
def test_a_run_that_failed_is_reported_and_run_again(children: Children, reason, tmp_path) -> None:
    (failure,) = study(tmp_path)
    assert failure.startswith("train grpo seed 0 failed") and reason in failure
    assert states(tmp_path) == {"grpo": "started", "llds": "published"}
    assert [run.arm for run in read_published("smoke", tmp_path / "published")] == ["llds"]
    table = status(planned_runs(STUDY, tmp_path / "elsewhere"), tmp_path / "published")
    assert table["steps"].tolist() == [0, 3] and table["minutes"].tolist() == [0, 6 / 60]
    assert study(tmp_path) == []
    assert children.started == ["grpo", "llds", "grpo"]
    assert states(tmp_path) == {"grpo": "published", "llds": "published"}
    grpo, _ = read_published("smoke", tmp_path / "published")
    assert grpo.status == "complete" and len(grpo.metrics) == 3


@pytest.mark.parametrize("children", [DIVERGED], indirect=True)
def test_a_run_that_diverged_is_published_and_not_run_again(children: Children, tmp_path) -> None:
    assert study(tmp_path) == []
    grpo, llds = read_published("smoke", tmp_path / "published")
    assert (grpo.status, len(grpo.metrics), llds.status) == ("failed", 1, "complete")
    assert states(tmp_path) == {"grpo": "published", "llds": "published"}
    assert study(tmp_path) == [] and children.started == ["grpo", "llds"]


@pytest.mark.parametrize("children", [DIVERGED], indirect=True)
def test_a_run_that_cannot_be_read_stops_no_other(children, tmp_path, monkeypatch) -> None:
    def started(job: Job, place: object) -> Child:
        child = children(job, place)
        if job.run.arm == "grpo":
            (job.run.path / "manifest.json").write_text("{", "utf-8")
        return child

    monkeypatch.setattr(jobs, "_start", started)
    assert len(study(tmp_path)) == 1
    assert [run.arm for run in read_published("smoke", tmp_path / "published")] == ["llds"]


def test_a_run_with_all_steps_that_failed_is_not_finished() -> None:
    config = load_experiment("smoke/grpo")
    failed = {"status": "failed", "reason": "RunError: no space", "config": config.to_dict()}
    for ended in ("failed", "running", "interrupted"):
        assert not same_run(failed | {"status": ended}, config, config.training.steps)
    assert same_run(failed | {"reason": "TrainingDivergedError: nan"}, config, 1)


def test_what_is_left_takes_the_pace_of_the_arm_else_of_all(monkeypatch) -> None:
    arms = (
        Arm("grpo", "grpo", (0, 1)),
        Arm("token", "llds-token", (0,)),
        Arm("ma", "llds-ma", (0,), group="variants"),
        Arm("large", "grpo", (0,), group="cures"),
    )
    columns = ["arm", "seed", "state", "steps", "of", "minutes"]
    rows = [
        ("grpo", 0, "published", 10, 20, 10.0),  # it collapsed
        ("grpo", 1, "started", 4, 10, 9.0),  # 6 minutes to go
        ("token", 0, "waiting", 0, 10, 0.0),  # 20, as all
        ("ma", 0, "complete", 10, 10, 30.0),
        ("large", 0, "waiting", 0, 10, 0.0),  # 20, as all
    ]
    table, study = pd.DataFrame(rows, columns=columns), Study("made", "smoke", "", arms)
    monkeypatch.setattr(queue, "status", lambda *_, **__: table)
    monkeypatch.setattr(queue, "places", lambda job: [{}, {}])
    line = what_is_left(study, table, Path("runs"))
    assert line == "runs left: 3, with 26 steps; 2 at a time, 23 minutes left at this pace"
    # The pace is that of the whole study, whatever part of it is asked for.
    line = what_is_left(study, table.iloc[[2]], Path("runs"))
    assert line.startswith("runs left: 1, with 10 steps; 1 at a time, 20 minutes left")
    assert what_is_left(study, table.iloc[[0, 3]], Path("runs")) == "runs left: 0"
    table = table.iloc[[1, 2]]
    line = what_is_left(study, table, Path("runs"))
    assert line == "runs left: 2, with 16 steps; minutes left: unknown, no run is finished"
