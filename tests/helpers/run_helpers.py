"""What the tests of run directories share."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.runs import Run

CONFIG = load_experiment("smoke/grpo")


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def train_run(
    config: ExperimentConfig, seed: int, root: Path, overrides: Sequence[str] = (), **options: Any
) -> Path:
    """Train a run; return its folder."""
    from llds_core.training.experiment import train

    run = Run(config, seed, root, tuple(overrides))
    train(run, **options)
    return run.path
