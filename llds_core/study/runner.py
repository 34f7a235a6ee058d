"""Runs what is left of a study, as many runs at a time as there are cores or GPUs for, and
publishes each as it ends.

A run that is published with the same configuration is not made again, one that is complete is
published, one that was cut or failed goes on: whatever stops a study, the same command continues
it. A run that diverged is a result and published like a complete one.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from llds_core.config import Study
from llds_core.config.arms import MAIN_ARMS
from llds_core.config.given import numbers, words
from llds_core.errors import RunError, TrainingDivergedError
from llds_core.machine.jobs import Job, places, run_jobs, visible_gpus
from llds_core.reporting.store import (
    PUBLISHED,
    StoredRun,
    find_published,
    is_published,
    load_run,
    load_runs,
)
from llds_core.runs import Run
from llds_core.runs.identity import same_run
from llds_core.study.published import publish_run, write_runs_table
from llds_core.study.published_agents import take_start

_FINISHED = ("published", "complete")
_logger = logging.getLogger("llds_core")


def planned_runs(
    study: Study, root: Path, arms: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Run]:
    """The runs of a study in order, restricted to `arms` (names or groups) and `seeds` if given."""
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
        # Of a damaged folder its own process says what is wrong with it.
        complete = run.is_finished() and run.is_complete()
        state = "published" if found else "complete" if complete else "started"
        row = {"arm": run.arm, "seed": run.seed, "state": state if len(metrics) else "waiting"}
        row |= {"steps": len(metrics), "of": run.config.training.steps, "minutes": seconds / 60}
        rows.append(row)
    return pd.DataFrame(rows)


def what_is_left(study: Study, table: pd.DataFrame, root: Path, published: Path = PUBLISHED) -> str:
    """One line about a table of `status`: runs and steps left, and the minutes they will take at
    the pace of finished runs of their arm, else of the study; scoring them comes on top.
    """
    left = table[~table["state"].isin(_FINISHED)]
    if left.empty:
        return "runs left: 0"
    steps = left["of"] - left["steps"]
    line = f"runs left: {len(left)}, with {steps.sum()} steps"
    planned = planned_runs(study, root)
    whole = status(planned, published)
    done = whole[whole["state"].isin(_FINISHED)]
    if not done["steps"].sum():
        return f"{line}; minutes left: unknown, no run is finished"
    of_arms = done.groupby("arm")[["minutes", "steps"]].sum()
    paces = left["arm"].map(of_arms["minutes"] / of_arms["steps"])
    minutes = (steps * paces.fillna(done["minutes"].sum() / done["steps"].sum())).sum()
    at_once = min(len(places(Job.of(planned[0], "train"))), len(left))
    return f"{line}; {at_once} at a time, {minutes / at_once:.0f} minutes left at this pace"


def _find(run: Run, published: Path) -> StoredRun | None:
    """The published form of `run`, None when there is none of its configuration."""
    found = find_published(published, run.config.profile, run.arm, run.seed)
    return found if found and same_run(found.manifest, run.config, len(found.metrics)) else None


def run_study(
    study: Study,
    root: Path,
    arms: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    published: Path = PUBLISHED,
) -> list[str]:
    """Run what is left of a study, or of some arms (names or groups) and seeds of it, and publish
    each run below `published` as it ends; one line per run that failed, which the same call runs
    again.
    """
    planned = planned_runs(study, root, arms, seeds)
    left = [run for run in planned if not _find(run, published)]
    failures = []
    # Whose trajectories the explorer shows.
    shown = {(arm.name, arm.seeds[0]) for arm in study.arms if arm.name in MAIN_ARMS}

    def say() -> None:
        table = status(planned, published)
        print(f"study: {what_is_left(study, table, root, published)}", flush=True)

    def done(job: Job) -> None:
        arm, rollouts = job.run.arm, (job.run.arm, job.run.seed) in shown
        publish_run(load_run(job.run.path), arm, published, rollouts=rollouts)
        write_runs_table(published, study.profile)
        say()

    def failed(job: Job, error: RunError) -> None:
        if job.run.is_finished() and job.run.metrics():
            done(job)
        else:
            failures.append(str(error))

    say()
    for run in {run.warmstart_path: run for run in left}.values():
        make_start_policy(run, published)
    run_jobs([Job.of(run, "train", "--evaluate") for run in left], done=done, failed=failed)
    return failures


def make_start_policy(run: Run, published: Path = PUBLISHED) -> None:
    """Copy the published policy that `run` starts from, or train it where none is published; what
    is there stays, and what was begun here goes on.

    On a GPU a child trains it: this process would keep its share of the memory while others train.
    """
    from llds_core.training.warmstart import start_policy

    if run.config.warm_starts and take_start(run, published):
        print(
            f"   the published one, of {run.config.warmstart.steps:,} steps "
            f"(llds warmstart {run.config.profile}, before, trains your own)",
            flush=True,
        )
        return
    gpus = visible_gpus() if run.config.warm_starts else []
    if not gpus or run.start_policy.is_dir():
        start_policy(run)
        return
    words = ("warmstart", run.config.name, *run.overrides, "--run-root", str(run.root))
    log = run.root / run.config.profile / "messages-warmstart.txt"
    run_jobs([Job(run, words, log, gpus=1)])


def ensure_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
    *,
    watch: Callable[[StoredRun], None] | None = None,
) -> list[StoredRun]:
    """Train what is missing or unfinished, then read the runs; complete runs are only read.

    A run that diverged is a result too: it is read as far as it went. `watch` is called after every
    step of a run that trains with the run so far; an interrupt (a notebook's stop button) then ends
    the training, and the steps that were made are read. The same call goes on with it.
    """
    methods, seeds = words(methods), numbers(seeds)
    if is_published(run_root, profile):
        return load_runs(run_root, profile, methods, seeds, overrides)
    # Loads torch, which reading runs does without.
    from llds_core.training.experiment import train

    runs = [Run.load(f"{profile}/{m}", s, run_root, overrides) for m, s in product(methods, seeds)]
    for run in runs:
        see = (lambda row, path=run.path: watch(load_run(path))) if watch else None
        try:
            if not run.is_complete() and not run.has_diverged():
                make_start_policy(run)
                train(run, after_step=see)
        except TrainingDivergedError as error:
            _logger.warning("%s diverged: %s", run.title, error)
        except KeyboardInterrupt:
            if watch is None or not any(each.metrics() for each in runs):
                raise
            _logger.warning("%s was stopped: run the cell again to go on", run.title)
            return [load_run(each.path) for each in runs if each.metrics()]
    return [load_run(run.path) for run in runs]
