"""What the commands of the command line do; heavy modules are imported by the command that needs
them.
"""

import argparse
import json
import sys
from pathlib import Path

from llds_core.benchmark_commands import evaluate_benchmarks, is_benchmark
from llds_core.config import ExperimentConfig, load_experiment
from llds_core.errors import ConfigError
from llds_core.runs import Run


def doctor(options: argparse.Namespace) -> int:
    """Check the machine."""
    from llds_core.machine.doctor import examine

    config = _laid_out(options)
    findings = examine(config, options.run_root)
    if options.json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
    else:
        for finding in findings:
            print(finding.line())
    return int(any(finding.status == "fail" for finding in findings))


def slurm(options: argparse.Namespace) -> None:
    """Print a batch script."""
    from llds_core.machine.slurm import batch_script

    script = batch_script(
        _laid_out(options),
        arms=options.arms,
        seeds=options.seeds,
        run_root=options.run_root,
        overrides=options.overrides,
        layout=options.layout,
        hours=options.hours,
    )
    print(script, end="")


def _laid_out(options: argparse.Namespace) -> ExperimentConfig:
    """An experiment of `options.profile` with its overrides, on its layout."""
    return load_experiment(f"{options.profile}/grpo", options.overrides, options.layout)


def plan(options: argparse.Namespace) -> int:
    """Say what a run takes; as JSON, 1 when it does not fit."""
    from llds_core.machine.layouts import nearest_fitting
    from llds_core.machine.plan import plan

    config = _planned(options)
    result = plan(config, options.run_root)
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
        return int(not result.fits)
    if not result.fits:
        nearest = nearest_fitting(config, options.overrides)
        advice = f"--layout {nearest} is the nearest that fits" if nearest else "no layout fits"
        raise ConfigError(f"{result.reason}: {advice}")
    print(result.text())
    return 0


def _planned(options: argparse.Namespace) -> ExperimentConfig:
    """The experiment that `plan` is asked about."""
    from llds_core.machine.layouts import on_gpus

    name = _named(options.experiment)
    if options.gpus is None and options.gpu_memory_gib is None:
        return load_experiment(name, options.overrides, options.layout)
    if options.layout:
        raise ConfigError(
            f'--layout is "{options.layout}" and names the GPUs already: leave out --gpus and '
            "--gpu-memory-gib"
        )
    if options.gpus is None or options.gpu_memory_gib is None:
        raise ConfigError("--gpus and --gpu-memory-gib belong together: give both")
    if options.gpus < 1 or options.nodes < 1:
        raise ConfigError(
            f"{options.nodes} nodes of {options.gpus} GPUs: give numbers of at least 1"
        )
    return on_gpus(
        name,
        options.overrides,
        gpus=options.gpus,
        gpu_memory_gib=options.gpu_memory_gib,
        nodes=options.nodes,
    )


def _named(given: str) -> str:
    """The experiment meant by a profile or an experiment: of a profile, any will do."""
    return given if "/" in given else f"{given}/grpo"


def data(options: argparse.Namespace) -> int:
    """Fetch what a profile needs; 1 when the user says no."""
    from llds_core.retrieval.vectors import read_index_manifest
    from llds_core.worlds.downloads import check_room, describe, download, plan
    from llds_core.worlds.sources import SOURCES, needs

    names = needs(options.profile, options.only)
    copied = options.folder / SOURCES["index"].folder
    if "index" in names and not options.only and (read_index_manifest(copied) or {}).get("index"):
        print(f"index: its vectors are in {copied} already; --only index fetches it again")
        names = tuple(name for name in names if name != "index")
    if not names:
        print(f"{options.profile} needs no download: its world is built on this machine")
        return 0
    items = plan(names, options.folder)
    if not items:
        print(f"{', '.join(names)}: complete in {options.folder}")
        return 0
    print(describe(items, options.folder))
    check_room(items, options.folder)
    if not options.yes and not _agreed():
        print("nothing was fetched")
        return 1
    if options.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    download(items, options.folder)
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to agree to the download: add --yes")
    return input("fetch? [y/N] ").strip().lower() in ("y", "yes")


def warmstart(options: argparse.Namespace) -> None:
    """Make the start policy."""
    from llds_core.training.warmstart import warmstart

    run = Run.load(_named(options.experiment), 0, options.run_root, options.overrides)
    print(f"start policy: {warmstart(run)}")


def train(options: argparse.Namespace) -> None:
    """Train one run, and evaluate it when asked."""
    from llds_core.machine.jobs import end_with_parent
    from llds_core.machine.launch import Machine, is_launched, launch_training
    from llds_core.study.runner import make_start_policy

    run = Run.load(options.experiment, options.seed, options.run_root, options.overrides)
    if run.config.world_size > 1 and not is_launched():
        machine = Machine(options.machine_rank, options.main_address, options.main_port)
        if machine.rank == 0 and not run.is_complete():
            make_start_policy(run)
        launch_training(run, machine)
    else:
        from llds_core.training.experiment import train

        if is_launched():
            end_with_parent()
        train(run)
    print(f"run: {run.path}")
    if options.evaluate:
        _evaluate_ends(run, options)


def _evaluate_ends(run: Run, options: argparse.Namespace) -> None:
    from llds_core.evaluation import evaluate_run

    checkpoints = ["best", "last"]
    training, planned = run.config.training, load_experiment(options.experiment).training.steps
    keeps_all = training.keep_checkpoints * training.save_every >= training.steps
    if training.steps > planned and keeps_all:
        # Comparable with runs of the usual length.
        checkpoints += [f"best-{planned}", f"last-{planned}"]
    for checkpoint in checkpoints:
        print(f"evaluation: {evaluate_run(run, checkpoint)}")


def evaluate(options: argparse.Namespace) -> None:
    """Score the checkpoint of a run, or with a profile alone any model over benchmarks."""
    if is_benchmark(options):
        evaluate_benchmarks(options)
        return
    from llds_core.evaluation import evaluate_run

    run = Run.load(options.experiment, options.seed, options.run_root, options.overrides)
    print(evaluate_run(run, options.checkpoint, options.split).read_text("utf-8"))


def ask(options: argparse.Namespace) -> None:
    """Let an agent answer a question."""
    from llds_core.evaluation import ask
    from llds_core.reporting.trajectories import to_ansi

    trajectory = ask(
        Run.load(options.experiment, options.seed, options.run_root),
        options.question,
        checkpoint=options.checkpoint,
        temperature=options.temperature,
    )
    print(to_ansi(trajectory, color=sys.stdout.isatty()))


def report(options: argparse.Namespace) -> None:
    """Run the notebooks."""
    from llds_core.reporting.notebooks import report
    from llds_core.study.published import report_published

    if options.published:
        print(f"redrawn: {report_published(options.profile)}")
        return
    report(
        options.profile,
        options.seeds,
        options.run_root,
        options.out_dir,
        methods=options.arms,
        progress=not options.quiet,
    )


def reproduce(options: argparse.Namespace) -> None:
    """Run the main job, or with all arms the whole study."""
    from llds_core.machine.launch import Machine
    from llds_core.study.reproduce import reproduce

    reproduce(
        options.profile,
        options.seeds,
        options.run_root,
        arms=options.arms,
        overrides=options.overrides,
        layout=options.layout,
        retriever_env=options.retriever_env,
        machine=Machine(options.machine_rank, options.main_address, options.main_port),
        out_dir=options.out_dir,
    )


def mechanism(options: argparse.Namespace) -> None:
    """Measure checkpoints."""
    from llds_core.diagnostics.measure import measure
    from llds_core.study.published import publish_mechanism

    folder = measure(
        options.profile,
        options.arms,
        options.seed,
        options.run_root,
        questions=options.questions,
        last_step=options.last_step,
        smollm2=options.smollm2,
    )
    if options.publish:
        folder = publish_mechanism(options.run_root, options.profile, options.seed)
    print(f"tables: {folder}")


def study(options: argparse.Namespace) -> int:
    """Run a study, or show its queue."""
    from llds_core.config.arms import load_study
    from llds_core.study.runner import planned_runs, run_study, status, what_is_left

    study = load_study(options.study)
    if options.status:
        table = status(planned_runs(study, options.run_root, options.arms, options.seeds))
        print(table.to_string(index=False, float_format="%.1f"))
        print(what_is_left(study, table, options.run_root))
        return 0
    failures = run_study(
        study,
        options.run_root,
        arms=options.arms,
        seeds=options.seeds,
        minutes=options.minutes,
    )
    for failure in failures:
        print(failure, file=sys.stderr)
    return 2 if failures else 0


def publish(options: argparse.Namespace) -> None:
    """Copy runs into the published results."""
    from llds_core.reporting.store import PUBLISHED
    from llds_core.study.published import publish, write_tables

    table = publish(options.run_root, options.profile, options.arms, options.seeds)
    write_tables(PUBLISHED, options.profile)
    print(f"published: {table}")


def index(options: argparse.Namespace) -> None:
    """Build the dense index of a profile, or say how large one would be."""
    if options.sizes:
        from llds_core.machine.sizing import size_table

        print(size_table())
        return
    from llds_core.retrieval.index import build_index
    from llds_core.rollout.environment import build_world, index_folder

    config = load_experiment(f"{options.profile}/grpo", options.overrides)
    world = build_world(config)
    folder = index_folder(config, world)
    build_index(world.passages, config.dense, folder, progress=not options.quiet)
    print(f"index: {folder}")


def retriever(options: argparse.Namespace) -> None:
    """Serve a search engine until the process is told to stop."""
    backend = [f"retrieval.backend={options.backend}"] if options.backend else []
    config = load_experiment(f"{options.profile}/grpo", [*options.overrides, *backend])
    if config.retrieval.backend == "server":
        raise ConfigError(
            'retrieval.backend is "server", which is what this starts: add --backend bm25 or dense'
        )
    from llds_core.retrieval.base import Retriever
    from llds_core.retrieval.wire import ServiceIdentity
    from llds_core.serving.server import serve

    def load() -> tuple[Retriever, ServiceIdentity]:
        from llds_core.retrieval.passage_file import passages_hash
        from llds_core.rollout.environment import build_environment

        environment = build_environment(config)
        passages = environment.world.passages
        identity = ServiceIdentity(
            index=environment.retriever.identity,
            corpus=passages_hash(passages)[:16],
            backend=config.retrieval.backend,
            passages=len(passages),
        )
        return environment.retriever, identity

    serve(load, config.service, host=options.host, port=options.port)


def bench(options: argparse.Namespace) -> None:
    """Measure speed."""
    progress = not options.quiet
    if options.retrieval:
        from llds_core.bench.retrieval import bench_retrieval

        out = options.out or Path("results/bench_retrieval.csv")
        bench_retrieval(out, out.with_suffix(".cache"), size=options.size, progress=progress)
        return
    if options.service:
        from llds_core.bench.service import bench_service

        out = options.out or Path("results/bench_service.csv")
        bench_service(options.profile, out, progress=progress)
        return
    from llds_core.bench.speed import bench

    out = options.out or Path("results/bench.csv")
    bench(options.profile, options.run_root, out, progress=progress)
