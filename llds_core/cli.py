"""Command line: `python -m llds_core <command>`.

Every mistake a user can make ends in one line on standard error and exit code 2; a failed check of
`doctor` in exit code 1; Ctrl-C in exit code 130 with the command that resumes. Heavy modules are
imported by the commands.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llds_core import commands
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

    evaluate = command("evaluate", commands.evaluate, "score a checkpoint on held-out questions")
    _add_experiment(evaluate)
    evaluate.add_argument(
        "--seed", type=int, default=0, help="seed of the run to score (default: 0)"
    )
    evaluate.add_argument(
        "--split", default="test", choices=("dev", "test"), help="questions (default: test)"
    )
    _add_checkpoint(evaluate)
    _add_common(evaluate)

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

    bench = command("bench", commands.bench, "measure speed against named baselines, side by side")
    bench.add_argument(
        "--profile", default="desk", help=f"one of: {', '.join(profiles())} (default: desk)"
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench.csv"),
        help="CSV file (default: %(default)s)",
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


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="best",
        help='"best", "last", "start", or a checkpoint folder (default: best)',
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


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _same_command(arguments: Sequence[str] | None) -> str:
    import shlex

    return shlex.join(
        ["python", "-m", "llds_core", *(sys.argv[1:] if arguments is None else arguments)]
    )
