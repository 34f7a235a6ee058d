"""Runs what is left of a study, as many runs at a time as there are cores or GPUs for, and
publishes each as it ends.

A run that is published with the same configuration is not made again, one that is complete is
published, one that was cut or failed goes on: whatever stops a study, the same command continues
it. A run that diverged is a result and published like a complete one.
"""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llds_core.config import Study
from llds_core.errors import DataError, RunError, TrainingDivergedError
from llds_core.machine.jobs import Child, Job, places, run_jobs, visible_gpus
from llds_core.reporting.store import (
    PUBLISHED,
    StoredRun,
    find_published,
    is_published,
    load_run,
    load_runs,
)
from llds_core.runs import Run
from llds_core.runs.identity import diverged, same_run
from llds_core.study.published import publish_run, write_runs_table

_FINISHED = ("published", "complete")
_logger = logging.getLogger("llds_core")


def planned_runs(
    study: Study,
    root: Path,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Run]:
    """The runs of a study in order, restricted to `arms` (names or groups) and `seeds`."""
    return [
        Run(entry.config, entry.seed, Path(root), entry.arm.overrides, entry.arm.name)
        for entry in study.entries(arms, seeds)
    ]


def status(runs: Sequence[Run], published: Path = PUBLISHED) -> pd.DataFrame:
    """One row per run: `arm`, `seed`, `state`, `steps`, `of`, `minutes`.

    `state` is `published`, `complete`, `started` (a run that failed is one to go on with) or
    `waiting`; `minutes` what the steps so far took.
    """
    rows = []
    for run in runs:
        found = _find(run, published)
        metrics = found.metrics if found else pd.DataFrame(run.metrics())
        seconds = metrics.reindex(columns=["rollout_seconds", "update_seconds"]).sum().sum()
        rows.append(
            {
                "arm": run.arm,
                "seed": run.seed,
                "state": "published" if found else _state(run),
                "steps": len(metrics),
                "of": run.config.training.steps,
                "minutes": seconds / 60,
            }
        )
    return pd.DataFrame(rows)


def what_is_left(study: Study, table: pd.DataFrame, root: Path, published: Path = PUBLISHED) -> str:
    """One line about a table of `status`: runs and steps left, and the minutes they will take.

    A step takes what one takes in finished runs of its arm, else of the group of the arm, else of
    the study; scoring the runs comes on top.
    """
    left = table[~table["state"].isin(_FINISHED)]
    if left.empty:
        return "runs left: 0"
    line = f"runs left: {len(left)}, with {(left['of'] - left['steps']).sum()} steps"
    whole = status(planned_runs(study, root), published)
    done = whole[whole["state"].isin(_FINISHED)]
    if not done["steps"].sum():
        return f"{line}; minutes left: unknown, no run is finished"
    groups = {arm.name: arm.group for arm in study.arms}
    minutes = 0.0
    for row in left.itertuples():
        of_arm = done[done["arm"] == row.arm]
        of_group = done[done["arm"].map(groups) == groups[row.arm]]
        seen = next(runs for runs in (of_arm, of_group, done) if runs["steps"].sum())
        minutes += (row.of - row.steps) * seen["minutes"].sum() / seen["steps"].sum()
    run = planned_runs(study, root, [left["arm"].iloc[0]])[0]
    at_once = min(len(places(Job.of(run, "train"))), len(left))
    return f"{line}; {at_once} at a time, {_time_left(60 * minutes / at_once)}"


def _time_left(seconds: float) -> str:
    end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
    return f"{seconds / 60:.0f} minutes left at this pace (until {end})"


def _find(run: Run, published: Path) -> StoredRun | None:
    """The published form of `run`, None when there is none of its configuration."""
    found = find_published(published, run.config.profile, run.arm, run.seed)
    return found if found and same_run(found.manifest, run.config, len(found.metrics)) else None


def _state(run: Run) -> str:
    """State of a run that is not published."""
    if run.is_complete():
        return "complete"
    return "started" if run.metrics() else "waiting"


def _is_result(run: Run) -> bool:
    """Whether a run that failed diverged; what cannot be read is no result."""
    try:
        manifest, steps = run.manifest(), len(run.metrics())
    except DataError:
        return False
    return steps > 0 and diverged(manifest) and same_run(manifest, run.config, steps)


def run_study(
    study: Study,
    root: Path,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    published: Path = PUBLISHED,
    minutes: float | None = None,
) -> list[str]:
    """Run what is left of a study and publish each run as it ends.

    Args:
        study: what to run.
        root: folder of all runs.
        arms: names of arms or groups; None for all.
        seeds: restrict to these seeds; None for all.
        published: root of the published results.
        minutes: start no further run after this time; None for no limit.

    Returns:
        One line for each run that failed, which the same call runs again.
    """
    planned = planned_runs(study, root, arms, seeds)
    left = [run for run in planned if not _find(run, published)]
    clock = _Clock(planned, left, minutes)
    clock.say()
    for run in {run.warmstart_path: run for run in left}.values():
        make_start_policy(run)
    failures = []

    def done(job: Job) -> None:
        publish_run(load_run(job.run.path), job.run.arm, published)
        write_runs_table(published, study.profile)
        clock.finished(job.run)
        clock.say()

    def failed(job: Job, error: RunError) -> None:
        if _is_result(job.run):
            done(job)
        else:
            failures.append(str(error))
            clock.dropped(job.run)

    jobs = [Job.of(run, "train", "--evaluate") for run in left]
    run_jobs(jobs, done=done, failed=failed, may_start=clock.may_start)
    return failures


class _Clock:
    """Says what is left of a study and when it will end, from the runs it has seen."""

    def __init__(self, planned: Sequence[Run], left: Sequence[Run], minutes: float | None) -> None:
        self._total = len(planned)
        self._finished = len(planned) - len(left)
        self._steps_left = {run.path: run.config.training.steps for run in left}
        self._started = time.monotonic()
        self._limit = minutes
        self._steps = 0

    def may_start(self) -> bool:
        """Whether the time limit allows another run."""
        return self._limit is None or (time.monotonic() - self._started) / 60 < self._limit

    def finished(self, run: Run) -> None:
        """A run has ended."""
        self.dropped(run)
        self._finished += 1
        self._steps += run.config.training.steps

    def dropped(self, run: Run) -> None:
        """A run is not waited for any more."""
        del self._steps_left[run.path]

    def say(self) -> None:
        """Print one line."""
        line = f"study: {self._finished} of {self._total} runs done"
        if self._steps and self._steps_left:
            pace = (time.monotonic() - self._started) / self._steps
            line += f", {_time_left(pace * sum(self._steps_left.values()))}"
        print(line, flush=True)


def make_start_policy(run: Run) -> None:
    """Make the policy that `run` starts from, unless it is there.

    On a GPU a child makes it: this process would keep its share of the memory while others train.
    """
    from llds_core.training.warmstart import start_policy

    gpus = visible_gpus() if run.config.warm_starts else []
    if not gpus or run.start_policy.is_dir():
        start_policy(run)
        return
    words = ["warmstart", run.config.name, *run.overrides, "--run-root", str(run.root)]
    child = Child(
        [sys.executable, "-m", "llds_core", *words, "--quiet"],
        run.root / run.config.profile / "messages-warmstart.txt",
        environment={"CUDA_VISIBLE_DEVICES": gpus[0]},
    )
    try:
        child.process.wait()
    finally:
        child.stop()
    if child.code:
        raise RunError(f"the start policy of {run.config.profile} failed: {child.failure()}")


def ensure_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
) -> list[StoredRun]:
    """Train what is missing or unfinished, then read the runs; complete runs are only read.

    A run that diverged is a result too: it is read as far as it went.
    """
    if not is_published(run_root, profile):
        # Loads torch, which reading runs does without.
        from llds_core.training.experiment import train

        runs = [
            Run.load(f"{profile}/{method}", seed, run_root, overrides)
            for method in methods
            for seed in seeds
        ]
        for run in runs:
            if run.is_complete() or run.has_diverged():
                continue
            try:
                train(run)
            except TrainingDivergedError as error:
                _logger.warning("%s diverged: %s", run.title, error)
    return load_runs(run_root, profile, methods, seeds, overrides)
