"""`reproduce`: the main job of a profile, from nothing to figures and a verdict.

What it started is stopped, however it ends. The same command goes on where it was stopped: what is
finished is read off the runs and results on disk and not done again.

Scores are of held-out questions of the world, or of benchmarks where the world is files:

    <run>/evaluation-<checkpoint>-test.json             held-out questions
    <run>/benchmarks/<checkpoint>-<digits>/             predictions and summary.json of benchmarks
    <root>/<profile>/evaluations/<run>-seed<k>.json     that summary, where tables look for it
"""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from llds_core.config import ExperimentConfig, override_key
from llds_core.config.arms import MAIN_ARMS
from llds_core.errors import ConfigError, RunError
from llds_core.files import NOTEBOOKS, project_path
from llds_core.machine.doctor import examine
from llds_core.machine.jobs import Job, run_jobs, visible_gpus
from llds_core.machine.launch import ALONE, Machine
from llds_core.machine.plan import layout_overrides, say_costs
from llds_core.machine.retriever import running_retriever, wait_for_service
from llds_core.reporting.store import load_run, published_beside
from llds_core.runs import Run
from llds_core.runs.checkpoints import checkpoint_steps
from llds_core.runs.identity import FREE
from llds_core.study.notebooks import report
from llds_core.study.published import publish_evaluation
from llds_core.study.runner import make_start_policy
from llds_core.study.verdict import verdict, write_page

_CHECKPOINTS = ("best", "last")


def reproduce(
    profile: str,
    seeds: Sequence[int],
    root: Path,
    *,
    arms: Sequence[str] = MAIN_ARMS,
    overrides: Sequence[str] = (),
    layout: str | None = None,
    retriever_env: Path | None = None,
    machine: Machine = ALONE,
    out_dir: Path | None = None,
) -> Path:
    """Run the main job of `profile`: some methods (`arms`), each with all seeds and `overrides`,
    below the run `root`, on the GPUs of a layout or of the profile, with the search service in this
    environment or another. Of several machines all but the first only train.

    Returns:
        The index of all artefacts, in `out_dir` or `results/<profile>`; the run root on all
        machines but the first.
    """
    out_dir = Path("results") / profile if out_dir is None else out_dir
    as_printed = all(override_key(override) in FREE for override in overrides)
    given, overrides = overrides, layout_overrides(f"{profile}/{arms[0]}", layout, overrides)
    runs = [Run.load(f"{profile}/{arm}", seed, root, overrides) for seed in seeds for arm in arms]
    left = [run for run in runs if not run.is_finished()]
    index = out_dir / "index.json"
    scored = all(_has_score(run, which) for which in _CHECKPOINTS for run in runs)
    if not left and scored and _is_rendered(index, [run.path for run in runs]):
        _section("everything is there already")
        return _conclude(index, runs)
    _check_machine(runs[0], machine, max(1, len(left)))
    _section("cost")
    say_costs([run.config for run in runs[: len(arms)]], root, len(left), given)
    with _search_service(runs[0], retriever_env, machine):
        if machine.rank:
            _train(runs, left, machine)
            return root
        _section("start policy")
        make_start_policy(runs[0])
        _section(f"training {', '.join(arms)}; seeds {', '.join(map(str, seeds))}")
        _train(runs, left, machine)
        _section("benchmarks" if _has_benchmarks(runs[0].config) else "held-out questions")
        _score(runs, as_printed=as_printed)
        _section("notebooks and figures")
        index = report(profile, seeds, root, out_dir, methods=arms, overrides=overrides)
    return _conclude(index, runs)


def _is_rendered(index: Path, runs: Sequence[Path]) -> bool:
    """Whether `index` lists exactly `runs`, and none of them or of the notebooks changed since."""
    if not index.exists():
        return False
    listed = {project_path(run["path"]) for run in json.loads(index.read_text("utf-8"))["runs"]}
    if listed != {project_path(run) for run in runs}:
        return False
    names = ("manifest.json", "metrics.jsonl", "evaluation-*.json", "benchmarks/*/summary.json")
    sources = [file for run in runs for name in names for file in run.glob(name)]
    sources += project_path(NOTEBOOKS).glob("*.ipynb")
    made = index.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns <= made for source in sources)


def _conclude(index: Path, made: Sequence[Run]) -> Path:
    """Say what was found, and which page shows it."""
    runs = [load_run(run.path) for run in made]
    page = write_page(index, runs)
    _section("verdict")
    print(verdict(runs))
    if published := published_beside(runs):
        print(f"in the published study: {verdict(published)}")
    print(f"open {page}", flush=True)
    return index


def _train(runs: Sequence[Run], left: Sequence[Run], machine: Machine) -> None:
    """Train what is left; a run that diverges is a result, and the others go on."""

    def failed(job: Job, error: RunError) -> None:
        if not job.run.has_diverged():
            raise error
        print(f"   {job.run.title} diverged; the others go on", flush=True)

    if len(left) < len(runs):
        print(f"   {len(runs) - len(left)} of {len(runs)} runs are there already", flush=True)
    place = ["--machine-rank", str(machine.rank), "--main-address", machine.main_address]
    place += ["--main-port", str(machine.main_port)]
    own = [] if _has_benchmarks(runs[0].config) else ["--evaluate"]
    extra = place if runs[0].config.hardware.nodes > 1 else own
    run_jobs([Job.of(run, "train", *extra) for run in left], failed=failed)


def _has_benchmarks(config: ExperimentConfig) -> bool:
    return config.world.name == "files"


def _score(runs: Sequence[Run], *, as_printed: bool) -> None:
    """Score what has no scores yet. `as_printed` says that nothing that matters was overridden, so
    that tables may count the runs as those of their method; else they are named as their folders.
    """
    if not _has_benchmarks(runs[0].config):
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
    if _has_benchmarks(run.config):
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
    if (count := len(visible_gpus()) // run.config.sampler.tensor_parallel) > 1:
        # Parts run at a time, so that each has its own messages.
        parts = range(1, count + 1)
        run_jobs([benchmark_job(run, "--shard", f"{n}/{count}", messages=f"-{n}") for n in parts])
    run_jobs([benchmark_job(run)])


def benchmark_job(run: Run, *extra: str, messages: str = "") -> Job:
    """`evaluate` of the best checkpoint of `run` on every benchmark, on the GPUs of one sampler."""
    settings = run.config.evaluation
    command = ["evaluate", run.config.profile, *run.overrides, "--method", run.config.method]
    command += ["--seed", str(run.seed), "--checkpoint", str(run.checkpoint("best"))]
    command += ["--out", str(_answers(run)), "--run-root", str(run.root)]
    if settings.questions is not None:
        command += ["--limit", str(settings.questions)]
    if settings.samples:
        command += ["--mode", "greedy,sampled", "--samples", str(settings.samples)]
    log = run.path / f"messages-benchmarks{messages}.txt"
    return Job(run, (*command, *extra), log, gpus=run.config.sampler.tensor_parallel)


def _search_service(
    run: Run, environment: Path | None, machine: Machine
) -> AbstractContextManager[None]:
    if run.config.retrieval.backend != "server":
        return nullcontext()
    from llds_core.rollout.environment import corpus_identity

    _section("search service")
    corpus = corpus_identity(run.config)
    if machine.rank:
        wait_for_service(run.config.service.url, corpus)
        return nullcontext()
    log = run.root / run.config.profile / "retriever.log"
    return running_retriever(run.config, corpus, run.overrides, log, environment=environment)


def _check_machine(run: Run, machine: Machine, runs: int) -> None:
    _section("machine")
    findings = examine(run.config, run.root, runs=runs)
    if machine.rank:
        # The first machine starts it, and is waited for.
        findings = [finding for finding in findings if finding.check != "retriever"]
    for finding in findings:
        print(finding.line())
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        raise ConfigError(f"this machine cannot run {run.config.profile}: {failed[0].line()}")


def _section(title: str) -> None:
    print(f"\n== {time.strftime('%H:%M')} {title}", flush=True)
