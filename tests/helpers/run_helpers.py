"""What the tests of run directories share."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from llds_core.__main__ import main
from llds_core.config import load_experiment
from llds_core.machine import jobs

CONFIG = load_experiment("smoke/grpo")


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(kind: type, match: str | None, call: Callable, *arguments: Any, **options: Any) -> str:
    """The one line in which `call` refuses."""
    with pytest.raises(kind, match=match) as error:
        call(*arguments, **options)
    return one_line(error)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; return its only line."""
    assert main([*arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@contextmanager
def jobs_in_process() -> Iterator[None]:
    """What `run_jobs` would give to children is done here, one after the other: their imports take
    longer than a smoke run. Real children are in `study/test_orchestration.py`.
    """
    import torch

    threads = torch.get_num_threads()

    def start(job: jobs.Job, place: dict[str, str]) -> SimpleNamespace:
        assert main([*job.words, "--quiet"]) == 0
        return SimpleNamespace(code=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_start", start)
        patch.setattr(jobs, "_POLL_SECONDS", 0.0)
        yield
    torch.set_num_threads(threads)
