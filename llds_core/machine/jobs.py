"""Runs jobs in child processes, as many at a time as there are GPUs, or else cores, for.

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
from llds_core.files import disk_errors
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

    @property
    def gpus(self) -> int:
        """GPUs it takes where there are any."""
        return self.config.hardware.processes

    def path(self, run_root: Path) -> Path:
        """Its run directory."""
        return run_path(run_root, self.config, self.seed, self.overrides)

    def messages(self, run_root: Path) -> Path:
        """What its last process wrote to standard error."""
        return self.path(run_root) / "messages.txt"

    def words(self, command: str, run_root: Path) -> list[str]:
        """Words of `command` for this job, after `python -m llds_core`."""
        named = [command, self.config.name, *self.overrides]
        return [*named, "--seed", str(self.seed), "--run-root", str(run_root)]


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_sets(gpus: Sequence[str], wanted: int) -> list[list[str]]:
    """Divide `gpus` into sets of `wanted`; all of them in one when there are not enough for one."""
    count = max(1, len(gpus) // wanted)
    size = wanted if len(gpus) >= wanted else len(gpus)
    return [list(gpus[i * size : (i + 1) * size]) for i in range(count)]


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return named[:count] or [str(index) for index in range(count)]


def places(job: Job) -> list[dict[str, str]]:
    """Environment variables of each job that can run at a time: its GPUs, or its share of cores."""
    if gpus := visible_gpus():
        return [{"CUDA_VISIBLE_DEVICES": ",".join(of_job)} for of_job in gpu_sets(gpus, job.gpus)]
    threads = job.config.training.threads * job.config.hardware.processes
    return [{} for _ in range(max(1, usable_cores() // threads))]


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
    taken: dict[subprocess.Popen, dict[str, str]] = {}
    free = places(jobs[0])
    bars = ProgressBars(run_root) if progress and command == "train" else None
    try:
        while waiting or running:
            while waiting and free:
                if not may_start():
                    waiting.clear()
                    break
                job, place = waiting.pop(0), free.pop(0)
                process = _start(job, command, run_root, extra, place)
                running[process], taken[process] = job, place
            time.sleep(_POLL_SECONDS)
            if bars:
                bars.refresh(running.values())
            for process in [process for process in running if process.poll() is not None]:
                job = running.pop(process)
                free.append(taken.pop(process))
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
        stop(running)
        if bars:
            bars.close()


def _start(
    job: Job, command: str, run_root: Path, extra: Sequence[str], place: dict[str, str]
) -> subprocess.Popen:
    words = job.words(command, run_root)
    arguments = [sys.executable, "-m", "llds_core", *words, "--quiet", *extra]
    # The thread count is part of a run; the environment must not add threads of its own.
    environment = os.environ | {"OMP_NUM_THREADS": str(job.config.training.threads)} | place
    path = job.messages(run_root)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file: libraries write more than a pipe holds while nobody reads it.
        messages = path.open("wb")
    with messages:
        return subprocess.Popen(
            arguments,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=environment,
            # A session of its own: Ctrl-C reaches it once, through `stop`, and it can write its
            # status in peace.
            start_new_session=True,
            preexec_fn=prepare_child,
        )


def make_start_policy(job: Job, run_root: Path, *, progress: bool) -> None:
    """Make the policy that `job` starts from, unless it is there.

    On a GPU a child makes it: this process would keep its share of the memory while others train.

    Raises:
        LLDSError: when it cannot be made or had.
    """
    from llds_core.training.warmstart import start_policy, warmstart_policy_path

    gpus = visible_gpus() if job.config.warm_starts else []
    if not gpus or warmstart_policy_path(run_root, job.config).is_dir():
        start_policy(job.config, run_root, progress=progress)
        return
    words = ["warmstart", job.config.name, *job.overrides, "--run-root", str(run_root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "llds_core", *words, *([] if progress else ["--quiet"])],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus[0]},
        start_new_session=True,
        preexec_fn=prepare_child,
    )
    try:
        code = process.wait()
    finally:
        stop([process])
    if code:
        raise RunError(f"the start policy of {job.config.profile} failed: see the line above")


def prepare_child() -> None:
    """In a child, before it runs.

    It hears the interrupt of `stop`, which a parent started in the background (`nohup … &`) makes
    its children ignore; and it ends with its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent is killed, so that no orphan holds a run
    directory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(processes: Iterable[subprocess.Popen]) -> None:
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
    messages = job.messages(run_root)
    lines = [line for line in messages.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if process.returncode < 0:
        # It had no time to say why.
        number = -process.returncode
        errors = [f"ended by signal {number} ({signal.strsignal(number)}), e.g. for lack of memory"]
    reason = [f"exit code {process.returncode}", *lines, *errors][-1]
    log = job.path(run_root) / "log.txt"
    return RunError(
        f"{command} {job.label} seed {job.seed} failed: {reason} (log: {log}, all of it: "
        f"{messages})"
    )


class ProgressBars:
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
