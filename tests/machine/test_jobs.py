"""How many jobs run at a time, and where."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from run_helpers import refused
from services import eventually

from llds_core.config import load_experiment
from llds_core.errors import RunError
from llds_core.machine import jobs
from llds_core.machine.jobs import Job
from llds_core.runs import Run

SMOKE = Run(load_experiment("smoke/grpo"))
FOUR = Run(load_experiment("paper-3b/grpo", layout="4x80"))


@pytest.mark.parametrize(
    ("gpus", "wanted", "sets"),
    [
        ("0", 1, ["0"]),
        ("01", 1, ["0", "1"]),
        ("01234567", 4, ["0,1,2,3", "4,5,6,7"]),
        ("012", 2, ["0,1"]),
        ("01", 4, ["0,1"]),
    ],
)
def test_gpus_are_divided_among_jobs(monkeypatch, gpus: str, wanted: int, sets: list[str]) -> None:
    monkeypatch.setattr(jobs, "visible_gpus", lambda: list(gpus))
    found = jobs.places(Job(SMOKE, ("train",), SMOKE.messages, gpus=wanted))
    assert found == [{"CUDA_VISIBLE_DEVICES": names} for names in sets]
    assert Job.of(FOUR, "train").gpus == 4


def test_gpus_keep_their_names_and_without_any_cores_are_shared(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert jobs.visible_gpus() == ["3", "GPU-5a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert jobs.visible_gpus() == ["0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(jobs, "usable_cores", lambda: 6)
    two = Run.load("smoke/grpo", overrides=["training.threads=2"])
    assert jobs.places(Job.of(two, "train")) == [{}, {}, {}]


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (
            "echo 'a warning' >&2; kill -9 $$",
            r"ended by signal 9 \(Killed(: 9)?\), e.g. for lack of",
        ),
        ("echo 'error: no space left' >&2; echo bye >&2; exit 2", "no space left "),
        ("echo 'Oops: a defect' >&2; exit 1", "Oops: a defect"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_failed_job_says_why(tmp_path: Path, monkeypatch, ending: str, reason: str) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{ending}\n", "utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    failing = [Job.of(Run(SMOKE.config, 0, tmp_path), "train")]
    refused(RunError, f"train smoke/grpo seed 0 failed: {reason}", jobs.run_jobs, failing)


_STUBBORN = """
import os, signal, subprocess, sys, time
for one in signal.SIGINT, signal.SIGTERM:
    signal.signal(one, signal.SIG_IGN)
if sys.argv[1:]:
    for own in False, True:
        subprocess.Popen([sys.executable, __file__], start_new_session=own)
os.write(1, f"{os.getpid()}\\n".encode())  # at once: three processes share the file
time.sleep(600)
"""


def is_dead(number: int) -> bool:
    try:  # where nobody collects orphans, a dead one stays as a zombie
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("again", [False, True], ids=["killed in the end", "Ctrl-C twice"])
def test_children_that_ignore_the_interrupt_are_killed_with_all_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """With a child of the child in its group, and one in a session of its own."""
    (tmp_path / "stubborn.py").write_text(_STUBBORN)
    command = [sys.executable, str(tmp_path / "stubborn.py"), "parent"]
    children = [jobs.Child(command, tmp_path / f"{i}.log", all_output=True) for i in range(2)]
    eventually(lambda: all(len(child.output.split()) == 3 for child in children))
    numbers = [int(number) for child in children for number in child.output.split()]
    monkeypatch.setattr(jobs, "_STOP_SECONDS", 600.0 if again else 0.2)
    before, began = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    try:
        if again:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                jobs.stop_children(*children)
        else:
            jobs.stop_children(*children)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [child.code for child in children] == [-signal.SIGKILL] * 2
    assert time.monotonic() - began < 60
    eventually(lambda: all(map(is_dead, numbers)))
