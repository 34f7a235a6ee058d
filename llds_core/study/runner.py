"""`study`: runs what is left of a study, two runs at a time on two cores, and publishes each as it
ends.

A run that is published with the same configuration is not made again, one that is complete is
published, one that was cut or failed goes on: whatever stops a study, the same command continues
it. A run that diverged is a result and published like a complete one.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llds_core.config.arms import Study
from llds_core.errors import DataError, RunError
from llds_core.machine.jobs import Job, make_start_policy, places, run_jobs
from llds_core.reporting.store import PUBLISHED, Run, find_published, load_run
from llds_core.runs import is_complete, read_manifest, read_metrics
from llds_core.runs.identity import diverged, same_run
from llds_core.study.published import publish_run, write_runs_table

_FINISHED = ("published", "complete")


def study_jobs(
    study: Study, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Job]:
    """The queue of a study in order, restricted to `arms` (names or groups) and `seeds`."""
    return [
        Job(entry.config, entry.seed, entry.arm.overrides, entry.arm.name)
        for entry in study.entries(arms, seeds)
    ]


def status(
    study: Study,
    run_root: Path,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    published: Path = PUBLISHED,
) -> pd.DataFrame:
    """One row a run in the order of the queue: `arm`, `seed`, `state`, `steps`, `of`, `minutes`.

    `state` is `published`, `complete`, `started` (a run that failed is one to go on with) or
    `waiting`; `minutes` what the steps so far took.
    """
    rows = []
    for job in study_jobs(study, arms, seeds):
        found = _find(job, published)
        metrics = found.metrics if found else pd.DataFrame(read_metrics(job.path(run_root)))
        seconds = metrics.reindex(columns=["rollout_seconds", "update_seconds"]).sum().sum()
        rows.append(
            {
                "arm": job.label,
                "seed": job.seed,
                "state": "published" if found else _state(job, run_root),
                "steps": len(metrics),
                "of": job.config.training.steps,
                "minutes": seconds / 60,
            }
        )
    return pd.DataFrame(rows)


def what_is_left(
    study: Study, table: pd.DataFrame, run_root: Path, published: Path = PUBLISHED
) -> str:
    """One line about a table of `status`: runs and steps left, and the minutes they will take.

    A step takes what one takes in finished runs of its arm, else of the group of the arm, else of
    the study; scoring the runs comes on top.
    """
    left = table[~table["state"].isin(_FINISHED)]
    if left.empty:
        return "runs left: 0"
    line = f"runs left: {len(left)}, with {(left['of'] - left['steps']).sum()} steps"
    whole = status(study, run_root, published=published)
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
    job = study_jobs(study, [left["arm"].iloc[0]])[0]
    at_once = min(len(places(job)), len(left))
    return f"{line}; {at_once} at a time, {_time_left(60 * minutes / at_once)}"


def _time_left(seconds: float) -> str:
    end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
    return f"{seconds / 60:.0f} minutes left at this pace (until {end})"


def _find(job: Job, published: Path) -> Run | None:
    """The published run of a job, None when there is none of its configuration."""
    found = find_published(published, job.config.profile, job.label, job.seed)
    return found if found and same_run(found.manifest, job.config, len(found.metrics)) else None


def _state(job: Job, run_root: Path) -> str:
    """State of a run that is not published."""
    path = job.path(run_root)
    if is_complete(path, job.config):
        return "complete"
    return "started" if read_metrics(path) else "waiting"


def _is_result(job: Job, run_root: Path) -> bool:
    """Whether a job that failed left a run that diverged; what cannot be read is no result."""
    path = job.path(run_root)
    try:
        manifest, steps = read_manifest(path), len(read_metrics(path))
    except DataError:
        return False
    return steps > 0 and diverged(manifest) and same_run(manifest, job.config, steps)


def run_study(
    study: Study,
    run_root: Path,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    published: Path = PUBLISHED,
    minutes: float | None = None,
    progress: bool = True,
) -> list[str]:
    """Run what is left of a study and publish each run as it ends.

    Args:
        study: the queue.
        run_root: folder of all runs.
        arms: names of arms or groups; None for all.
        seeds: restrict to these seeds; None for all.
        published: root of the published results.
        minutes: start no further run after this time; None for no limit.
        progress: show progress.

    Returns:
        One line for each run that failed, which the same call runs again.

    Raises:
        ConfigError: for an unknown arm, or nothing to run.
        RunError: when the published folder cannot be written.
    """
    from llds_core.training.warmstart import warmstart_path

    queue = study_jobs(study, arms, seeds)
    left = [job for job in queue if not _find(job, published)]
    clock = _Clock(len(queue), len(queue) - len(left), left, minutes)
    if progress:
        clock.say()
    for job in {warmstart_path(run_root, job.config): job for job in left}.values():
        make_start_policy(job, run_root, progress=progress)
    failures = []

    def done(job: Job) -> None:
        publish_run(load_run(job.path(run_root)), job.label, published)
        write_runs_table(published, study.profile)
        clock.finished(job)
        if progress:
            clock.say()

    def failed(job: Job, error: RunError) -> None:
        if _is_result(job, run_root):
            done(job)
        else:
            failures.append(str(error))
            clock.dropped(job)

    run_jobs(
        left,
        "train",
        run_root,
        progress=progress,
        extra=["--evaluate"],
        done=done,
        failed=failed,
        may_start=clock.may_start,
    )
    return failures


class _Clock:
    """Says what is left of a queue and when it will end, from the runs it has seen."""

    def __init__(
        self, total: int, published: int, left: Sequence[Job], minutes: float | None
    ) -> None:
        self._total = total
        self._finished = published
        self._waiting = list(left)
        self._started = time.monotonic()
        self._limit = minutes
        self._steps = 0

    def may_start(self) -> bool:
        """Whether the time limit allows another run."""
        return self._limit is None or (time.monotonic() - self._started) / 60 < self._limit

    def finished(self, job: Job) -> None:
        """A run has ended."""
        self.dropped(job)
        self._finished += 1
        self._steps += job.config.training.steps

    def dropped(self, job: Job) -> None:
        """A run is not waited for any more."""
        self._waiting.remove(job)

    def say(self) -> None:
        """Print one line."""
        line = f"study: {self._finished} of {self._total} runs done"
        if self._steps and self._waiting:
            pace = (time.monotonic() - self._started) / self._steps
            seconds = pace * sum(job.config.training.steps for job in self._waiting)
            line += f", {_time_left(seconds)}"
        print(line, flush=True)
