"""Child processes: `Child` is one, `run_jobs` runs many, as many at once as GPUs or cores allow.

Children hold their own run directory, so a job that was cut is simply run again. An interrupted
parent interrupts them and waits until their status is written.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
from tqdm.auto import tqdm

from llds_core.errors import RunError
from llds_core.files import disk_errors
from llds_core.runs import Run

_POLL_SECONDS = 1.0
_STOP_SECONDS = 75.0  # the search service gives its clients 60
_PR_SET_PDEATHSIG = 1


class Child:
    """A process started here, whose output goes to a file.

    It has a session of its own: Ctrl-C reaches it once, through `stop_children`, and it can write
    its status in peace. It ends with its parent.

    Args:
        command: program and arguments.
        log: standard error is appended to it, and standard output as well when `all_output`.
        environment: variables beside those of this process; None takes one away.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str | None] | None = None,
        all_output: bool = False,
    ) -> None:
        self.log = log
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            # A file: libraries write more than a pipe holds while nobody reads it.
            output = log.open("ab")
        self._begin = output.tell()
        variables = os.environ | dict(environment or {})
        with output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output if all_output else subprocess.DEVNULL,
                stderr=output,
                env={name: value for name, value in variables.items() if value is not None},
                start_new_session=True,
                preexec_fn=_prepare_child,
            )

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    @property
    def output(self) -> str:
        """What it has written to its log."""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")

    def failure(self) -> str:
        """Why it ended, in one line: what it said of itself, or the signal that ended it."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        code = self.process.returncode
        if code < 0:
            # It had no time to say why.
            name = signal.strsignal(-code)
            errors = [f"ended by signal {-code} ({name}), e.g. for lack of memory"]
        return [f"exit code {code}", *lines, *errors][-1]


def stop_children(*children: Child) -> None:
    """Interrupt what is still running, all at the same time. What does not end is killed with all
    its descendants, and at once when the user interrupts again.
    """
    running = [child.process for child in children if child.code is None]
    until = time.monotonic() + _STOP_SECONDS
    try:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, until - time.monotonic()))
    finally:
        for process in running:
            if process.poll() is None:
                _kill_family(process)


def _kill_family(process: subprocess.Popen) -> None:
    """Kill a process with its descendants; torchrun gives each of its own a session."""
    parent = psutil.Process(process.pid)
    for member in (*parent.children(recursive=True), parent):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _prepare_child() -> None:
    """In a child, before it runs: it hears the interrupt of `stop_children`, which a parent
    started in the background (`nohup … &`) makes its children ignore.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent is killed, so that no orphan holds a run
    directory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class Job:
    """A command of this package about one run."""

    run: Run
    words: tuple[str, ...]  # after `python -m llds_core`
    messages: Path  # standard error
    gpus: int  # it takes so many where there are any

    @classmethod
    def of(cls, run: Run, command: str, *extra: str) -> "Job":
        """`command` about `run`, with further arguments."""
        words = (*run.command(command), *extra)
        return cls(run, words, run.messages, run.config.hardware.processes)


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] or [str(index) for index in range(count)]


def places(job: Job) -> list[dict[str, str]]:
    """Environment variables of each job like `job` that can run at a time: its GPUs, all of them
    when there are not enough for one, or none where cores are shared.
    """
    if gpus := visible_gpus():
        size = min(job.gpus, len(gpus))
        sets = [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(names)} for names in sets]
    threads = job.run.config.training.threads * job.run.config.hardware.processes
    return [{} for _ in range(max(1, usable_cores() // threads))]


def run_jobs(
    jobs: Sequence[Job],
    *,
    done: Callable[[Job], None] = lambda job: None,
    failed: Callable[[Job, RunError], None] | None = None,
    where: Sequence[dict[str, str]] = (),
) -> None:
    """Run every job, in order; a `RunError` when one fails and there is no `failed`.

    Args:
        jobs: what to run, all with the same sizes.
        done: called with each job that succeeded.
        failed: called with each job that failed; without it, a failure stops the rest.
        where: environment variables of each that runs at a time, if not their `places`.
    """
    if not jobs:
        return
    waiting, free, bars = list(jobs), list(where) or places(jobs[0]), ProgressBars()
    running: list[tuple[Job, Child, dict[str, str]]] = []
    try:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop(0)
                running.append((job, _start(job, place), place))
            time.sleep(_POLL_SECONDS)
            ended = [entry for entry in running if entry[1].code is not None]
            running = [entry for entry in running if entry not in ended]
            bars.show([job.run for job, _, _ in running if job.words[0] == "train"])
            for job, child, place in ended:
                free.append(place)
                if child.code == 0:
                    done(job)
                    continue
                error = RunError(
                    f"{job.words[0]} {job.run.title} failed: {child.failure()} "
                    f"(log: {job.run.path / 'log.txt'}, all of it: {job.messages})"
                )
                if failed is None:
                    raise error
                failed(job, error)
    finally:
        stop_children(*(child for _, child, _ in running))
        bars.show([])


def _start(job: Job, place: dict[str, str]) -> Child:
    # The thread count is part of a run; the environment must not add threads of its own.
    threads = {"OMP_NUM_THREADS": str(job.run.config.training.threads)}
    command = [sys.executable, "-m", "llds_core", *job.words, "--quiet"]
    return Child(command, job.messages, environment=threads | place)


class ProgressBars:
    """One progress bar per running run, fed from the metrics on disk."""

    def __init__(self) -> None:
        self._bars: dict[Run, tqdm] = {}

    def show(self, runs: Sequence[Run]) -> None:
        """Show the last row of each of `runs`, and of those that are no longer among them."""
        for run in runs:
            if run not in self._bars:
                total = run.config.training.steps
                self._bars[run] = tqdm(total=total, desc=run.title, unit="step")
        for run, bar in list(self._bars.items()):
            rows = run.metrics()
            if rows and rows[-1]["step"] != bar.n:
                bar.set_postfix(shown_metrics(rows[-1]))
                bar.update(rows[-1]["step"] - bar.n)
            if run not in runs:
                self._bars.pop(run).close()


def shown_metrics(row: Mapping[str, float | None]) -> dict[str, str]:
    """What a progress bar shows of a metrics row."""
    named = {"reward": "reward", "loglik": "loglik_correct", "entropy": "entropy"}
    shown = {label: row[name] for label, name in named.items()}
    return {name: "–" if value is None else f"{value:.3f}" for name, value in shown.items()}
