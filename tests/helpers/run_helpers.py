"""What the tests of run directories share."""

import errno

import pytest

from llds_core.config import load_experiment

CONFIG = load_experiment("smoke/grpo")


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
