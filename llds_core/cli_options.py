"""Options that several commands share."""

import argparse
from pathlib import Path

from llds_core.config import layouts, methods
from llds_core.errors import ConfigError
from llds_core.runs import DEFAULT_ROOT


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The experiment and its overrides."""
    parser.add_argument("experiment", help=f"<profile>/<method>; methods: {', '.join(methods())}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. training.learning_rate=1e-4"
    )


def add_asked(parser: argparse.ArgumentParser) -> None:
    """Which questions, how often; all but the first two for benchmarks only."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the run to score (default: 0)")
    parser.add_argument(
        "--split", default="test", choices=("dev", "test"), help="questions (default: test)"
    )
    parser.add_argument(
        "--benchmarks", type=parts, default=[], help="e.g. nq,hotpotqa or city-country"
    )
    parser.add_argument(
        "--limit", type=int, default=None, help="questions in all, spread evenly (default: all)"
    )
    parser.add_argument(
        "--mode", type=parts, default=["greedy"], help="greedy, sampled or both, with a comma"
    )
    parser.add_argument(
        "--samples", type=int, default=1, help="sampled answers per question (default: 1)"
    )
    parser.add_argument("--method", default=None, help="method of the run that is scored")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which policy."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        help='"best", "last", those of the first steps as in "best-30", "start", or a checkpoint '
        'folder (default: best); for benchmarks also "smollm2", the packaged model',
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """This machine among several."""
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        help="several machines: number of this one, the first being 0",
    )
    parser.add_argument(
        "--main-address", default="127.0.0.1", help="several machines: address of the first"
    )
    parser.add_argument(
        "--main-port",
        type=int,
        default=29500,
        help="several machines: free port of the first (default: %(default)s)",
    )


def add_layout(parser: argparse.ArgumentParser) -> None:
    """The GPUs."""
    parser.add_argument(
        "--layout", help=f"one of: {', '.join(layouts())} (default: the profile's own)"
    )


def add_arms(parser: argparse.ArgumentParser) -> None:
    """Methods, seeds and where the output goes."""
    parser.add_argument(
        "--seeds", type=seeds, default=[0], help="comma-separated seeds (default: 0)"
    )
    parser.add_argument(
        "--arms",
        type=parts,
        default=["grpo", "llds-action"],
        help="comma-separated methods; reproduce also takes arms and groups of the profile's "
        "study, and all of them as all (default: grpo,llds-action)",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=None,
        help="folder of the rendered output (default: results/<profile>)",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Where runs are, and how much is said."""
    parser.add_argument(
        "--run-root", type=Path, default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def seeds(text: str) -> list[int]:
    """Read numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f'--seeds is "{text}": give numbers separated by commas, e.g. 0,1,2'
        ) from None


def shard(text: str) -> tuple[int, int]:
    """Read a part and how many there are, `i/n`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is no part of how many, e.g. 1/4')
    return int(number), int(count)


def parts(text: str) -> list[str]:
    """Read words separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
