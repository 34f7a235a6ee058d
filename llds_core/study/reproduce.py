"""`reproduce`: the main job of a profile, from nothing to figures.

Checks the machine, says what is left to do and what it costs, starts the search service the profile
needs, makes the start policy, trains every arm (one at a time on each set of GPUs, or as many as
there are cores for), scores the checkpoints, runs the notebooks and lists what was made. What it
started is stopped, however it ends. The same command goes on where it was stopped: what is finished
is read off the runs and results on disk and not done again.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from llds_core.config import ExperimentConfig, load_experiment, methods
from llds_core.config.arms import load_study, studies
from llds_core.errors import CheckpointError, ConfigError, DataError, LLDSError, RunError
from llds_core.machine.doctor import examine
from llds_core.machine.jobs import Job, make_start_policy, run_jobs, visible_gpus
from llds_core.machine.launch import Machine
from llds_core.machine.retriever import running_retriever, wait_for_service
from llds_core.runs import has_diverged, is_complete
from llds_core.runs.identity import FREE
from llds_core.study.benchmark_jobs import benchmark_jobs, is_answered, run_benchmarks
from llds_core.study.costs import layout_overrides, say_costs, say_what_else

_CHECKPOINTS = ("best", "last")


def reproduce(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    *,
    arms: Sequence[str] = ("grpo", "llds-action"),
    overrides: Sequence[str] = (),
    layout: str | None = None,
    retriever_env: Path | None = None,
    machine: Machine | None = None,
    out_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the main job of `profile`.

    Args:
        profile: name of a profile.
        seeds: seeds of every arm.
        run_root: folder of all runs.
        arms: methods to run; with an arm or group of the profile's study among them, see
            `reproduce_study`.
        overrides: dotted overrides of every run.
        layout: GPUs to run on; None for those that the profile names.
        retriever_env: virtual environment of the search service; None for this one.
        machine: this machine of several, of which all but the first only train; None for one.
        out_dir: folder of the rendered output; None for `results/<profile>`.
        progress: show progress.

    Returns:
        The path of the index that lists every artefact; of the run root on all machines but the
        first.

    Raises:
        ConfigError: for an unknown profile, arm or override, or a machine that cannot run it.
        RunError: when a run fails, naming its log.
        RetrieverError: when the search service does not come up or searches another corpus.
    """
    from llds_core.reporting.notebooks import is_rendered, report

    if profile in studies() and any(arm.partition("@")[0] not in methods() for arm in arms):
        if given := [*overrides, *([layout] if layout else [])]:
            raise ConfigError(
                f'"{given[0]}" with arms of study {profile}: a study says itself what it changes; '
                "leave it out, or name methods"
            )
        return reproduce_study(
            profile, seeds, run_root, arms=arms, out_dir=out_dir, progress=progress
        )
    machine = machine or Machine()
    as_printed = all(override.partition("=")[0].strip() in FREE for override in overrides)
    overrides = [*layout_overrides(f"{profile}/{arms[0]}", layout), *overrides]
    configs = [load_experiment(f"{profile}/{arm}", overrides) for arm in arms]
    jobs = [Job(config, seed, tuple(overrides)) for seed in seeds for config in configs]
    out_dir = Path("results") / profile if out_dir is None else out_dir
    started = time.perf_counter()
    training = [job for job in jobs if not _is_trained(job, run_root)]
    if not training and not _unscored(jobs, run_root):
        index = out_dir / "index.json"
        if is_rendered(index, [job.path(run_root) for job in jobs]):
            _section("everything is there already")
            _list(index)
            return index
    _check_machine(configs[0], run_root, machine, runs=max(1, len(training)))
    _section("cost")
    say_costs(configs, run_root, len(training))
    service = _search_service(configs[0], overrides, run_root, retriever_env, machine)
    with stopping_on_signals(), service:
        if machine.rank:
            _train(jobs, training, run_root, machine, progress=False)
            return run_root
        _section("start policy")
        make_start_policy(jobs[0], run_root, progress=progress)
        _minutes(started)
        _section(f"training {', '.join(arms)}; seeds {', '.join(map(str, seeds))}")
        _train(jobs, training, run_root, machine, progress=progress)
        _minutes(started)
        _section("benchmarks" if _has_benchmarks(configs[0]) else "held-out questions")
        _score(jobs, run_root, as_printed=as_printed, progress=progress)
        _minutes(started)
        _section("notebooks and figures")
        index = report(
            profile,
            list(seeds),
            run_root,
            out_dir,
            methods=arms,
            overrides=overrides,
            progress=progress,
        )
    _minutes(started)
    _list(index)
    if configs[0].hardware.gpu_memory_gib is None and visible_gpus():
        say_what_else(run_root)
    return index


def reproduce_study(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    *,
    arms: Sequence[str] | None = None,
    out_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the study of `profile` from nothing: hours, resumable.

    Like `study`, but on seeds of your own, and nothing that came with the project is read: runs are
    published below `out_dir`, and tables, claims and figures drawn from there. Checkpoints of the
    main arms are measured for every seed that both have finished; with the first goes SmolLM2,
    where it is installed.

    Args:
        profile: name of a profile that has a study.
        seeds: seeds to run: an arm for which the study plans n takes the first n of them.
        run_root: folder of all runs.
        arms: arms or groups to run, beside the main arms, with which all others are compared; None
            for all.
        out_dir: folder of the output; None for `results/<profile>`.
        progress: show progress.

    Returns:
        The path of the index that lists every artefact.

    Raises:
        ConfigError: for a profile without a study, an unknown arm, or a machine that cannot run it.
        RunError: when runs or measurements fail, after all others are done and drawn.
    """
    from llds_core.diagnostics.measure import measure
    from llds_core.reporting.notebooks import MAIN_ARMS, report
    from llds_core.study.published import publish_mechanism, write_tables
    from llds_core.study.runner import run_study, status

    study = load_study(profile).with_seeds(seeds)
    wanted = [*MAIN_ARMS, *arms] if arms else None
    chosen = study.chosen(wanted)
    started = time.perf_counter()
    _check_machine(load_experiment(f"{profile}/{MAIN_ARMS[0]}"), run_root, Machine())
    out_dir = Path("results") / profile if out_dir is None else out_dir
    published = out_dir / "published"
    _section(f"study {study.name}: {len(chosen)} arms; seeds {', '.join(map(str, seeds))}")
    failures = run_study(study, run_root, arms=wanted, published=published, progress=progress)
    _minutes(started)
    main = status(study, run_root, MAIN_ARMS, published=published)
    left = set(main["seed"][main["state"] != "published"])
    # In the order given: single runs are shown of the first.
    finished = [seed for seed in study.chosen(MAIN_ARMS)[0].seeds if seed not in left]
    if not finished:
        raise _failed(failures)
    _section("mechanism")
    smollm2 = _has_smollm2()
    for seed in finished:
        try:
            measure(profile, MAIN_ARMS, seed, run_root, smollm2=smollm2, progress=progress)
            publish_mechanism(run_root, profile, seed, published)
            smollm2 = False  # its script is the same for every seed
        except (CheckpointError, DataError) as error:
            # Of a run that diverged before its first checkpoint, for one.
            failures.append(f"mechanism of seed {seed}: {error}")
    write_tables(published, profile)
    _minutes(started)
    _section("notebooks and figures")
    index = report(profile, finished, published, out_dir, methods=MAIN_ARMS, progress=progress)
    _minutes(started)
    _list(index)
    if failures:
        raise _failed(failures)
    return index


def _has_smollm2() -> bool:
    """Whether SmolLM2 can be measured; where it cannot, say how to install it."""
    from llds_core.runs.smollm2 import smollm2_file

    try:
        smollm2_file()
    except ConfigError as error:
        print(f"   Figure 6 goes without SmolLM2: {error}", flush=True)
        return False
    return True


def _failed(failures: Sequence[str]) -> RunError:
    return RunError(
        f"{len(failures)} runs or measurements failed, the first: {failures[0]} (the same command "
        "goes on with what failed)"
    )


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP, as of a cluster or a closed terminal, end like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _is_trained(job: Job, run_root: Path) -> bool:
    path = job.path(run_root)
    try:
        return is_complete(path, job.config) or has_diverged(path)
    except LLDSError:
        return False  # its own process says what is wrong with it


def _train(
    jobs: Sequence[Job],
    left: Sequence[Job],
    run_root: Path,
    machine: Machine,
    *,
    progress: bool,
) -> None:
    """Train what is left; a run that diverges is a result, and the others go on."""

    def failed(job: Job, error: RunError) -> None:
        if not has_diverged(job.path(run_root)):
            raise error
        print(f"   {job.label} seed {job.seed} diverged; the others go on", flush=True)

    if len(left) < len(jobs):
        print(f"   {len(jobs) - len(left)} of {len(jobs)} runs are there already", flush=True)
    extra: list[str] = []
    if jobs[0].config.hardware.nodes > 1:
        extra = ["--machine-rank", str(machine.rank), "--main-address", machine.main_address]
        extra += ["--main-port", str(machine.main_port)]
    run_jobs(left, "train", run_root, progress=progress, extra=extra, failed=failed)


def _has_benchmarks(config: ExperimentConfig) -> bool:
    return config.world.name == "files"


def _unscored(jobs: Sequence[Job], run_root: Path) -> bool:
    """Whether a score is missing."""
    if _has_benchmarks(jobs[0].config):
        return not all(is_answered(job, run_root) for job in benchmark_jobs(jobs, run_root))
    return any(_held_out_left(jobs, which, run_root) for which in _CHECKPOINTS)


def _score(jobs: Sequence[Job], run_root: Path, *, as_printed: bool, progress: bool) -> None:
    if _has_benchmarks(jobs[0].config):
        asked = benchmark_jobs(jobs, run_root)
        run_benchmarks(asked, run_root, as_method=as_printed, progress=progress)
        return
    for which in _CHECKPOINTS:
        left = _held_out_left(jobs, which, run_root)
        run_jobs(left, "evaluate", run_root, progress=progress, extra=["--checkpoint", which])


def _held_out_left(jobs: Sequence[Job], which: str, run_root: Path) -> list[Job]:
    """Runs whose checkpoint `which` has no score yet; a run that has no checkpoint has none."""
    from llds_core.evaluation import find_checkpoint

    left = []
    for job in jobs:
        try:
            folder = find_checkpoint(job.config, job.seed, run_root, which, job.overrides)
        except CheckpointError:
            continue
        file = job.path(run_root) / f"evaluation-{which}-test.json"
        manifest = job.path(run_root) / "manifest.json"
        if (
            not file.exists()
            or json.loads(file.read_text("utf-8"))["checkpoint"] != folder.name
            or file.stat().st_mtime_ns < manifest.stat().st_mtime_ns
        ):
            left.append(job)
    return left


def _search_service(
    config: ExperimentConfig,
    overrides: Sequence[str],
    run_root: Path,
    environment: Path | None,
    machine: Machine,
) -> AbstractContextManager[None]:
    if config.retrieval.backend != "server":
        return nullcontext()
    from llds_core.rollout.environment import corpus_identity

    _section("search service")
    corpus = corpus_identity(config, progress=True)
    if machine.rank:
        wait_for_service(config.service.url, corpus)
        return nullcontext()
    log = run_root / config.profile / "retriever.log"
    return running_retriever(config, corpus, overrides, log, environment=environment)


def _check_machine(
    config: ExperimentConfig, run_root: Path, machine: Machine, *, runs: int = 1
) -> None:
    _section("machine")
    findings = examine(config, run_root, runs=runs)
    if machine.rank:
        # The first machine starts it, and is waited for.
        findings = [finding for finding in findings if finding.check != "retriever"]
    for finding in findings:
        print(finding.line())
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        raise ConfigError(f"this machine cannot run {config.profile}: {failed[0].line()}")


def _section(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _minutes(started: float) -> None:
    print(f"   {(time.perf_counter() - started) / 60:.1f} minutes so far", flush=True)


def _list(index: Path) -> None:
    content = json.loads(index.read_text("utf-8"))
    _section(f"made in {index.parent}")
    for artefact in content["artefacts"]:
        print(f"{artefact['kind']:10} {index.parent / artefact['path']}")
    for run in content["runs"]:
        print(f"run        {run['path']} ({run['status']})")
    print(f"index      {index}")
