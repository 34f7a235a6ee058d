"""Runs jobs in child processes, as many at a time as there are cores for.

A job is one configuration and seed. Children hold their own run directory, so a job that was cut is
simply run again; an interrupted parent interrupts them and waits until their status is written.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from llds_core.config import ExperimentConfig
from llds_core.errors import RunError
from llds_core.runs import read_metrics, run_path

_POLL_SECONDS = 1.0
_STOP_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One experiment and seed.

    Attributes:
        config: the resolved configuration, overrides included.
        seed: the run's seed.
        overrides: as given by the user; they name the run directory.
        label: how the job is called in progress and errors.
    """

    config: ExperimentConfig
    seed: int
    overrides: tuple[str, ...] = ()
    label: str = field(default="")

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.config.name)

    def path(self, run_root: Path) -> Path:
        """Its run directory."""
        return run_path(run_root, self.config, self.seed, self.overrides)


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    jobs: Sequence[Job],
    command: str,
    run_root: Path,
    *,
    progress: bool,
    extra: Sequence[str] = (),
    done: Callable[[Job], None] | None = None,
    failed: Callable[[Job, RunError], None] | None = None,
    may_start: Callable[[], bool] = lambda: True,
) -> None:
    """Run `python -m llds_core <command>` for every job, in order.

    Args:
        jobs: what to run.
        command: `train` or `evaluate`.
        run_root: folder of all runs.
        progress: show a bar per run (`train` only).
        extra: further arguments of the command.
        done: called with each job that succeeded.
        failed: called with each job that failed; without it, a failure stops the rest.
        may_start: asked before each start; after a no, what runs is finished and the rest left.

    Raises:
        RunError: when a job fails and there is no `failed`, naming its log.
    """
    if not jobs:
        return
    waiting = list(jobs)
    running: dict[subprocess.Popen, Job] = {}
    slots = max(1, usable_cores() // jobs[0].config.training.threads)
    bars = _Bars(run_root) if progress and command == "train" else None
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                if not may_start():
                    waiting.clear()
                    break
                job = waiting.pop(0)
                running[_start(job, command, run_root, extra)] = job
            time.sleep(_POLL_SECONDS)
            if bars:
                bars.refresh(running.values())
            for process in [process for process in running if process.poll() is not None]:
                job = running.pop(process)
                if bars:
                    bars.finish(job)
                if process.returncode == 0:
                    if done:
                        done(job)
                    continue
                error = _failure(process, job, command, run_root)
                if failed is None:
                    raise error
                failed(job, error)
    finally:
        _stop(running)
        if bars:
            bars.close()


def _start(job: Job, command: str, run_root: Path, extra: Sequence[str]) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "llds_core", command, job.config.name, *job.overrides]
    arguments += ["--seed", str(job.seed), "--run-root", str(run_root), "--quiet", *extra]
    # The thread count is part of a run; the environment must not add threads of its own.
    environment = os.environ | {"OMP_NUM_THREADS": str(job.config.training.threads)}
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A session of its own: Ctrl-C reaches it once, through `_stop`, and it can write its status
        # in peace.
        start_new_session=True,
        preexec_fn=_prepare_child,
    )


def _prepare_child() -> None:
    """In the child, before it runs.

    It hears the interrupt of `_stop`, which a parent started in the background (`nohup … &`) makes
    its children ignore; and the kernel is asked to end it when its parent is killed, so that no
    orphan holds a run directory.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(processes: Iterable[subprocess.Popen]) -> None:
    """Interrupt what is still running and wait for its status to be written."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(process: subprocess.Popen, job: Job, command: str, run_root: Path) -> RunError:
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
    log = job.path(run_root) / "log.txt"
    return RunError(f"{command} {job.label} seed {job.seed} failed: {reason} (log: {log})")


class _Bars:
    """One progress bar per running job, fed from the metrics on disk."""

    def __init__(self, run_root: Path) -> None:
        self._run_root = run_root
        self._bars: dict[Job, tqdm] = {}

    def refresh(self, jobs: Iterable[Job]) -> None:
        """Show the last row of every running job."""
        for job in jobs:
            if job not in self._bars:
                title = f"{job.label} seed {job.seed}"
                total = job.config.training.steps
                self._bars[job] = tqdm(total=total, desc=title, unit="step")
            self._update(job)

    def finish(self, job: Job) -> None:
        """Leave the bar of a job that has ended as it is."""
        if job in self._bars:
            self._update(job)
            self._bars.pop(job).close()

    def close(self) -> None:
        """Leave all bars as they are."""
        for job in list(self._bars):
            self.finish(job)

    def _update(self, job: Job) -> None:
        bar = self._bars[job]
        rows = read_metrics(job.path(self._run_root))
        if not rows or rows[-1]["step"] == bar.n:
            return
        row = rows[-1]
        shown = {
            "reward": row["reward"],
            "loglik": row["loglik_correct"],
            "entropy": row["entropy"],
        }
        bar.set_postfix(
            {key: "–" if value is None else f"{value:.3f}" for key, value in shown.items()}
        )
        bar.update(row["step"] - bar.n)
