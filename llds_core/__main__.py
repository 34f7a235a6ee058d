"""The command line: `llds <command>`, or `python -m llds_core <command>`.

A command is a function, and its docstring the help. Every mistake a user can make ends in one line
on standard error and exit code 2; a failed check of `doctor` in exit code 1; Ctrl-C in exit code
130 with the command that resumes. Heavy modules are imported by the commands.
"""

import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

try:
    import typer
    from typer import Option
except ModuleNotFoundError as error:  # the base of the package is the losses alone
    needed = "llds-core[run], or llds-core[monitor] for diagnose and watch"
    print(f"error: {error.name} is missing: run pip install {needed}", file=sys.stderr)
    sys.exit(2)

from llds_core.config import laid_over, load_experiment, profiles
from llds_core.config import options as cli
from llds_core.config.given import words
from llds_core.errors import ConfigError, LLDSError
from llds_core.machine.vllm_server import spare_loopback
from llds_core.monitor.monitor_commands import diagnose, watch
from llds_core.runs import DEFAULT_ROOT as ROOT
from llds_core.runs import Run
from llds_core.study.commands import (
    ask,
    baselines,
    demo,
    mechanism,
    report,
    reproduce,
    slurm,
    study,
)
from llds_core.worlds.text import visible

_PROGRAM = "llds" if Path(sys.argv[0]).name == "llds" else "python -m llds_core"

app = typer.Typer(
    add_completion=False,
    help="Reproduce and measure the death spiral of search agents (arXiv 2512.04220).",
    epilog="Example: llds train desk/llds-action training.learning_rate=1e-4 --seed 3",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # A shell expands `~` only where a word begins with it, and of words in quotes none.
    given = [re.sub(r"^(--[\w-]+=)?~(?=/)", rf"\g<1>{Path.home()}", word) for word in given]
    # For children too. ipykernel loads a debugger, which no notebook uses and which warns of frozen
    # modules; TRL calls rollout functions experimental, and a contract test watches them.
    os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    spare_loopback()
    for stream in (sys.stdout, sys.stderr):  # characters that the terminal lacks end no program
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _end_like_interrupt()
        command = typer.main.get_command(app)
        with command.make_context(_PROGRAM, given.copy()) as context:
            code = command.invoke(context) or 0
            sys.stdout.flush()  # here, where a reader that has gone is no error
            return code
    except typer.Exit as end:  # of --help
        return end.exit_code
    except (LLDSError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print(f"error: {visible(' '.join(message.split()))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does; Python would complain on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop
        print(f"\nstopped; to continue: {_PROGRAM} {shlex.join(given)}", file=sys.stderr)
        return 130


def _end_like_interrupt() -> None:
    """Make SIGTERM and SIGHUP, as of a cluster or a closed terminal, end like Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores the latter
                signal.signal(number, signal.default_int_handler)


def _any_experiment(given: str) -> str:
    """The experiment meant by a profile or an experiment: of a profile, any will do."""
    return given if "/" in given else f"{given}/grpo"


def doctor(
    profile: cli.Profile = "desk",
    *,
    overrides: cli.Overrides,
    layout: cli.Layout = None,
    json_: cli.Json = False,
    run_root: cli.Root = ROOT,
) -> int:
    """Check that this machine can run a profile."""
    from llds_core.machine.doctor import examine

    findings = examine(load_experiment(f"{profile}/grpo", overrides, layout), run_root)
    if json_:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(finding.line() for finding in findings))
    return int(any(finding.status == "fail" for finding in findings))


def data(
    profile: cli.Profile,
    folder: Annotated[Path, Option(help="where to put it")] = Path("data"),
    yes: Annotated[bool, Option("--yes", help="do not ask before fetching")] = False,
    only: Annotated[str, Option(metavar="PART,PART", help="e.g. questions,train")] = "",
    quiet: cli.Quiet = False,
) -> int:
    """Fetch what a profile needs from the model hub."""
    from llds_core.worlds.downloads import describe, download, find_missing, needs

    names = needs(profile, words(only))
    if not names:
        print(f"{profile} needs no download: its world is built on this machine")
        return 0
    items = find_missing(names, folder)
    if not items:
        print(f"{', '.join(names)}: complete in {folder}")
        return 0
    print(describe(items, folder))
    if not yes and not sys.stdin.isatty():
        raise ConfigError("no terminal to confirm on: pass --yes")
    if not yes and input("fetch? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was fetched")
        return 1
    download(items, folder)
    return 0


def warmstart(
    experiment: cli.AnyExperiment,
    overrides: cli.Overrides,
    layout: cli.Layout = None,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Train the policy that all runs of a profile start from."""
    from llds_core.machine.plan import layout_overrides
    from llds_core.training.warmstart import warmstart

    name = _any_experiment(experiment)
    run = Run.load(name, 0, run_root, layout_overrides(name, layout, overrides))
    print(f"start policy: {warmstart(run)}")


def train(
    experiment: cli.Experiment,
    overrides: cli.Overrides,
    seed: cli.Seed = 0,
    layout: cli.Layout = None,
    evaluate: Annotated[bool, Option("--evaluate", help="then score best and last")] = False,
    machine_rank: cli.Rank = 0,
    main_address: cli.Address = "127.0.0.1",
    main_port: cli.Port = 29500,
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Train one experiment; the same command resumes it."""
    from llds_core.machine.jobs import end_with_parent
    from llds_core.machine.launch import Machine, is_launched, launch_training
    from llds_core.machine.plan import layout_overrides

    run = Run.load(experiment, seed, run_root, layout_overrides(experiment, layout, overrides))
    if not is_launched() and machine_rank == 0 and not run.is_complete():
        from llds_core.study.runner import make_start_policy

        make_start_policy(run)
    if run.config.world_size > 1 and not is_launched():
        launch_training(run, Machine(machine_rank, main_address, main_port))
    else:
        from llds_core.training.experiment import train

        if is_launched():
            end_with_parent()
        train(run)
    print(f"run: {run.path}\nnext: llds diagnose {shlex.quote(str(run.path))}")
    if evaluate:
        from llds_core.evaluation.held_out import evaluate_ends

        for path in evaluate_ends(run):
            print(f"evaluation: {path}")


def evaluate(
    context: typer.Context,
    experiment: cli.AnyExperiment,
    overrides: cli.Overrides,
    seed: cli.Seed = 0,
    split: cli.Split = "test",
    checkpoint: cli.Checkpoint = "best",
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
    benchmarks: cli.Benchmarks = "",
    limit: cli.Limit = None,
    mode: cli.Mode = "greedy",
    samples: cli.Samples = 1,
    method: cli.Method = None,
    baseline: Annotated[str, Option(help="direct, rag, search-o1 or search-r1")] = "policy",
    out: Annotated[Path | None, Option(help="folder of predictions and summary")] = None,
    shard: Annotated[str, Option(metavar="I/N", help="answer every n-th question")] = "",
    publish: cli.Publish = False,
) -> None:
    """Score the checkpoint of a run, or with a profile alone any model over benchmarks.

    A run takes the options up to --quiet; those below belong to benchmarks.
    """
    from llds_core.evaluation.evaluate import EvaluationPlan, evaluate_questions
    from llds_core.evaluation.held_out import evaluate_run
    from llds_core.evaluation.models import open_asked
    from llds_core.evaluation.predictions import parse_shard
    from llds_core.reporting.benchmark_scores import score_lines
    from llds_core.runs import deviations

    profile, separator, name = experiment.partition("/")
    if separator:
        options = [each.name or "" for each in context.command.params]
        for option in options[options.index("benchmarks") :]:
            source = context.get_parameter_source(option)
            if source and source.name == "COMMANDLINE":
                raise ConfigError(
                    f"--{option} belongs to benchmarks: write evaluate {profile} --method {name}"
                )
        run = Run.load(experiment, seed, run_root, overrides)
        print(evaluate_run(run, checkpoint, split).read_text("utf-8"))
        return
    part = parse_shard(shard) if shard else None
    if part and publish:
        raise ConfigError("--publish takes the answers of all shards: leave out --shard")
    modes = tuple(word.strip() for word in mode.split(","))  # a repeat is a mistake, and said
    plan = EvaluationPlan(baseline, words(benchmarks), limit, modes, samples, split, seed)
    environment, model = open_asked(profile, overrides, method, checkpoint, seed, run_root)
    about = {"method": method, "run_seed": seed, "deviations": deviations(environment.config)}
    folder = evaluate_questions(environment, model, plan, out=out, shard=part, about=about)
    if part:
        print(f"shard {shard}: {folder}")
        return
    print(score_lines(folder))
    print(f"summary: {folder / 'summary.json'}")
    if publish:
        from llds_core.study.published import publish_evaluation

        print(f"published: {publish_evaluation(folder)}")


def plan(
    experiment: cli.AnyExperiment,
    overrides: cli.Overrides,
    layout: cli.Layout = None,
    gpus: Annotated[int | None, Option(help="GPUs per node, instead of a layout", min=1)] = None,
    gpu_memory_gib: Annotated[float | None, Option(help="memory of each GPU", min=1)] = None,
    nodes: Annotated[int, Option(help="machines", min=1)] = 1,
    json_: Annotated[
        bool, Option("--json", help="print JSON; exit with 1 where the run does not fit")
    ] = False,
    run_root: cli.Root = ROOT,
) -> int:
    """Say what a run takes: memory, disk, time, downloads."""
    from llds_core.machine.plan import advice, estimate, load_laid_out

    name = _any_experiment(experiment)
    config = load_laid_out(
        name, overrides, layout, gpus=gpus, gpu_memory_gib=gpu_memory_gib, nodes=nodes
    )
    result = estimate(config, run_root)
    if json_:
        print(json.dumps(asdict(result), indent=1))
        return int(not result.fits)
    if not result.fits:
        raise ConfigError(f"{result.reason}: {advice(config, overrides)}")
    print(result.text())
    return 0


def index(
    profile: cli.Profile,
    overrides: cli.Overrides,
    layout: cli.Layout = None,
    quiet: cli.Quiet = False,
) -> None:
    """Build the dense index of a profile: resumable."""
    from llds_core.retrieval.index import build_index
    from llds_core.rollout.environment import build_world, index_folder

    config = load_experiment(f"{profile}/grpo", overrides, layout)
    world = build_world(config)
    folder = index_folder(config, world)
    build_index(world.passages, config.dense, folder)
    print(f"index: {folder}")


def retriever(
    profile: cli.Profile,
    overrides: cli.Overrides,
    layout: cli.Layout = None,
    backend: Annotated[Literal["bm25", "dense"] | None, Option(help="if not the profile's")] = None,
    host: Annotated[str, Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, Option(help="port to listen on; 0 takes a free one")] = 8000,
) -> None:
    """Serve the search engine of a profile over HTTP."""
    chosen = [f"retrieval.backend={backend}"] if backend else []
    config = load_experiment(f"{profile}/grpo", laid_over(overrides, chosen), layout)
    if config.retrieval.backend == "server":
        raise ConfigError(
            'retrieval.backend is "server", which is what this starts: add --backend bm25 or dense'
        )
    from llds_core.retrieval.service import serve
    from llds_core.rollout.environment import build_served

    serve(lambda: build_served(config), config.service, host=host, port=port)


def bench(
    profile: Annotated[str, Option(help=f"one of: {', '.join(profiles())}")] = "desk",
    layout: cli.Layout = None,
    out: Annotated[Path, Option(help="CSV file")] = Path("results/bench.csv"),
    run_root: cli.Root = ROOT,
    quiet: cli.Quiet = False,
) -> None:
    """Measure speed against named baselines, side by side."""
    from llds_core.bench.speed import bench

    bench(profile, run_root, out, layout)


def gpu_check(
    phase: Annotated[
        str, Option(metavar="A,B,C,D", help="which phases, in this order")
    ] = "A,B,C,D",
    out: Annotated[Path, Option(help="folder of gpu_check.json and of runs")] = Path("results/gpu"),
    steps: Annotated[int | None, Option(min=1, help="of phase D")] = None,
) -> int:
    """Check and time a GPU, with plan's numbers beside; at toy sizes on a CPU."""
    from llds_core.bench.gpu_check import gpu_check

    return gpu_check(words(phase), out, steps)


COMMANDS = {
    "start": (demo, doctor, data, reproduce),
    "train": (warmstart, train),
    "look": (ask, evaluate, baselines, report),
    "monitor": (diagnose, watch),
    "study": (study, mechanism),
    "machine": (plan, slurm, index, retriever, bench, gpu_check),
}
for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        app.command(rich_help_panel=_panel)(_function)


if __name__ == "__main__":
    sys.exit(main())
