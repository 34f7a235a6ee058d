"""`reproduce`: the main job of a profile, from nothing to figures and a verdict.

Checks the machine, says what is left to do and what it costs, starts the search service the profile
needs, makes the start policy, trains every arm, scores the checkpoints, runs the notebooks and says
what was found. What it started is stopped, however it ends. The same command goes on where it was
stopped: what is finished is read off the runs and results on disk and not done again.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from llds_core.config import is_method, load_study, studies
from llds_core.config.given import numbers, words
from llds_core.errors import CheckpointError, ConfigError, DataError, RunError
from llds_core.machine.doctor import examine
from llds_core.machine.jobs import Job, run_jobs
from llds_core.machine.launch import ALONE, Machine
from llds_core.machine.plan import layout_overrides, say_costs
from llds_core.machine.retriever import running_retriever, wait_for_service
from llds_core.reporting.notebooks import MAIN_ARMS, is_rendered, report
from llds_core.reporting.store import StoredRun, load_run, read_published
from llds_core.runs import Run
from llds_core.runs.identity import FREE
from llds_core.study.published import publish_mechanism, write_tables
from llds_core.study.runner import make_start_policy, planned_runs, run_study, status
from llds_core.study.scoring import has_benchmarks, is_scored, score
from llds_core.study.verdict import verdict, write_page


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
    """Run the main job of `profile`.

    Args:
        profile: name of a profile.
        seeds: seeds of every arm.
        root: folder of all runs.
        arms: methods to run. With an arm or group of the profile's study among them, or `all`, see
            `reproduce_study`.
        overrides: of every run.
        layout: GPUs to run on; None for those that the profile names.
        retriever_env: virtual environment of the search service; None for this one.
        machine: this machine of several, of which all but the first only train.
        out_dir: folder of the rendered output; None for `results/<profile>`.

    Returns:
        The index that lists every artefact; the run root on all machines but the first.
    """
    out_dir = Path("results") / profile if out_dir is None else out_dir
    seeds, arms = numbers(seeds), words(arms)
    if list(arms) == ["all"] or (profile in studies() and not all(map(is_method, arms))):
        if given := [*overrides, *filter(None, [layout])]:
            raise ConfigError(
                f'"{given[0]}" with arms of study {profile}: a study says itself what it changes; '
                "leave it out, or name methods"
            )
        return reproduce_study(profile, seeds, root, arms=arms, out_dir=out_dir)
    as_printed = all(override.partition("=")[0].strip() in FREE for override in overrides)
    overrides = layout_overrides(f"{profile}/{arms[0]}", layout, overrides)
    runs = [Run.load(f"{profile}/{arm}", seed, root, overrides) for seed in seeds for arm in arms]
    left = [run for run in runs if not run.is_finished()]
    index = out_dir / "index.json"
    if not left and is_scored(runs) and is_rendered(index, [run.path for run in runs]):
        _section("everything is there already")
        return _conclude(index, [load_run(run.path) for run in runs])
    _check_machine(runs[0], machine, runs=max(1, len(left)))
    _section("cost")
    say_costs([run.config for run in runs[: len(arms)]], root, len(left))
    with _search_service(runs[0], retriever_env, machine):
        if machine.rank:
            _train(runs, left, machine)
            return root
        _section("start policy")
        make_start_policy(runs[0])
        _section(f"training {', '.join(arms)}; seeds {', '.join(map(str, seeds))}")
        _train(runs, left, machine)
        _section("benchmarks" if has_benchmarks(runs[0].config) else "held-out questions")
        score(runs, as_printed=as_printed)
        _section("notebooks and figures")
        index = report(profile, list(seeds), root, out_dir, methods=arms, overrides=overrides)
    return _conclude(index, [load_run(run.path) for run in runs])


def reproduce_study(
    profile: str,
    seeds: Sequence[int],
    root: Path,
    *,
    arms: Sequence[str],
    out_dir: Path,
) -> Path:
    """Run the study of `profile` from nothing: hours, resumable.

    Like `study`, but on seeds of your own, and nothing that came with the project is read: runs are
    published below `out_dir`, and tables, claims and figures drawn from there. Checkpoints of the
    main arms are measured for every seed that both have finished; with the first goes SmolLM2,
    where it is installed. An arm for which the study plans n seeds takes the first n of `seeds`;
    the main arms, with which all others are compared, run whatever `arms` names.

    Raises:
        RunError: when runs or measurements fail, after all others are done and drawn.
    """
    study = load_study(profile).with_seeds(seeds)
    wanted = None if list(arms) == ["all"] else [*MAIN_ARMS, *arms]
    chosen = study.chosen(wanted)
    _check_machine(Run.load(f"{profile}/{MAIN_ARMS[0]}", root=root), ALONE)
    published = out_dir / "published"
    _section(f"study {study.name}: {len(chosen)} arms; seeds {', '.join(map(str, seeds))}")
    failures = run_study(study, root, arms=wanted, published=published)
    main = status(planned_runs(study, root, MAIN_ARMS), published)
    left = set(main["seed"][main["state"] != "published"])
    # In the order given: single runs are shown of the first.
    finished = [seed for seed in study.chosen(MAIN_ARMS)[0].seeds if seed not in left]
    if finished:
        _section("mechanism")
        failures += _measure(profile, finished, root, published)
        write_tables(published, profile, study)
        _section("notebooks and figures")
        index = report(profile, finished, published, out_dir, methods=MAIN_ARMS)
        runs = [run for run in read_published(profile, published) if run.arm in MAIN_ARMS]
        _conclude(index, runs)
    if failures:
        raise RunError(
            f"{len(failures)} runs or measurements failed, the first: {failures[0]} (the same "
            "command goes on with what failed)"
        )
    return index


def _measure(profile: str, seeds: Sequence[int], root: Path, published: Path) -> list[str]:
    """Measure the checkpoints of the main arms and publish that; one line per seed that fails."""
    from llds_core.diagnostics.measure import measure
    from llds_core.runs.smollm2 import smollm2_file

    failures = []
    smollm2 = True
    try:
        smollm2_file()
    except ConfigError as error:
        print(f"   Figure 6 goes without SmolLM2: {error}", flush=True)
        smollm2 = False
    for seed in seeds:
        try:
            measure(profile, MAIN_ARMS, seed, root, smollm2=smollm2)
            publish_mechanism(root, profile, seed, published)
            smollm2 = False  # its script is the same for every seed
        except (CheckpointError, DataError) as error:
            # Of a run that diverged before its first checkpoint, for one.
            failures.append(f"mechanism of seed {seed}: {error}")
    return failures


def _conclude(index: Path, runs: Sequence[StoredRun]) -> Path:
    """Say what was found, and which page shows it."""
    page = write_page(index, runs)
    _section("verdict")
    print(f"{verdict(runs)}\nopen {page}", flush=True)
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
    own = [] if has_benchmarks(runs[0].config) else ["--evaluate"]
    extra = place if runs[0].config.hardware.nodes > 1 else own
    run_jobs([Job.of(run, "train", *extra) for run in left], failed=failed)


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


def _check_machine(run: Run, machine: Machine, *, runs: int = 1) -> None:
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
