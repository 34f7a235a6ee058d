"""Scores of trained runs: held-out questions of the world, or benchmarks where the world is files.

<run>/evaluation-<checkpoint>-test.json             held-out questions
<run>/benchmarks/<checkpoint>-<digits>/             predictions and summary.json of benchmarks
<root>/<profile>/evaluations/<run>-seed<k>.json     that summary, where tables look for it
"""

import json
from collections.abc import Sequence
from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.machine.jobs import Job, run_jobs, visible_gpus
from llds_core.reporting.benchmark_scores import publish_evaluation
from llds_core.runs import Run
from llds_core.runs.checkpoints import checkpoint_steps

_CHECKPOINTS = ("best", "last")


def has_benchmarks(config: ExperimentConfig) -> bool:
    """Whether runs of `config` are scored on benchmarks."""
    return config.world.name == "files"


def is_scored(runs: Sequence[Run]) -> bool:
    """Whether every run that keeps a checkpoint has its scores."""
    return all(_has_score(run, which) for which in _CHECKPOINTS for run in runs)


def score(runs: Sequence[Run], *, as_printed: bool) -> None:
    """Score what has no scores yet.

    Args:
        runs: trained runs of one profile.
        as_printed: whether nothing that matters was overridden, so that tables may count the runs
            as those of their method; otherwise they are named as their folders.

    Raises:
        RunError: when a process fails, naming its log.
    """
    if not has_benchmarks(runs[0].config):
        for which in _CHECKPOINTS:
            left = [run for run in runs if not _has_score(run, which)]
            run_jobs([Job.of(run, "evaluate", "--checkpoint", which) for run in left])
        return
    for run in runs:
        if not _has_score(run, "best"):
            _ask_benchmarks(run)
        if checkpoint_steps(run.checkpoints):
            name = run.config.method if as_printed else run.path.parent.name
            publish_evaluation(_answers(run), run.root, name=name)


def _has_score(run: Run, which: str) -> bool:
    """Whether a checkpoint has its score, not one from before the run went on, or is not there."""
    if not checkpoint_steps(run.checkpoints):
        return True
    if has_benchmarks(run.config):
        return (_answers(run) / "summary.json").exists()
    file = run.path / f"evaluation-{which}-test.json"
    return (
        file.exists()
        and json.loads(file.read_text("utf-8"))["checkpoint"] == run.checkpoint(which).name
        and file.stat().st_mtime_ns >= (run.path / "manifest.json").stat().st_mtime_ns
    )


def _answers(run: Run) -> Path:
    """Where benchmark answers go: another checkpoint, or other questions, have another folder."""
    digits = run.config.hash("evaluation", "rollout", "retrieval", "dense")[:8]
    return run.path / "benchmarks" / f"{run.checkpoint('best').name}-{digits}"


def _ask_benchmarks(run: Run) -> None:
    """Answer all questions, each GPU a part of them; then put the parts together."""
    count = max(1, len(visible_gpus()))
    if count == 1:
        run_jobs([benchmark_job(run)])
        return
    # Parts run at a time, so that each has its own messages.
    numbers = range(1, count + 1)
    run_jobs([benchmark_job(run, "--shard", f"{n}/{count}", messages=f"-{n}") for n in numbers])
    run_jobs([benchmark_job(run, "--merge")])


def benchmark_job(run: Run, *extra: str, messages: str = "") -> Job:
    """`evaluate` of the best checkpoint of `run` on every benchmark, on one GPU."""
    settings = run.config.evaluation
    words = ["evaluate", run.config.profile, *run.overrides, "--method", run.config.method]
    words += ["--seed", str(run.seed), "--checkpoint", str(run.checkpoint("best"))]
    words += ["--out", str(_answers(run)), "--run-root", str(run.root)]
    if settings.questions is not None:
        words += ["--limit", str(settings.questions)]
    if settings.samples:
        words += ["--mode", "greedy,sampled", "--samples", str(settings.samples)]
    log = run.path / f"messages-benchmarks{messages}.txt"
    return Job(run, (*words, *extra), log, gpus=1)
