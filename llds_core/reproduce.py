"""`reproduce`: the main job of a profile, from nothing to figures.

Checks the machine, makes the start policy, trains every arm (as many at a time as there are cores
for), scores the checkpoints on held-out questions, runs the notebooks and lists what was made.
Everything is resumable: the same command goes on where it was stopped, and finished parts are not
done again.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.doctor import examine
from llds_core.errors import ConfigError, RunError
from llds_core.runs import read_manifest, read_metrics, run_path

_POLL_SECONDS = 1.0
_STOP_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def reproduce(
    profile: str,
    seeds: Sequence[int],
    run_root: Path,
    *,
    arms: Sequence[str] = ("grpo", "llds-action"),
    out_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the main job of `profile`.

    Args:
        profile: name of a profile.
        seeds: seeds of every arm.
        run_root: folder of all runs.
        arms: methods to run.
        out_dir: folder of the rendered output; None for `results/<profile>`.
        progress: show progress.

    Returns:
        The path of the index that lists every artefact.

    Raises:
        ConfigError: for an unknown profile or arm, or a machine that cannot run it.
        RunError: when a run fails, naming its log.
    """
    from llds_core.reporting.notebooks import report
    from llds_core.training.warmstart import warmstart

    configs = [load_experiment(f"{profile}/{arm}") for arm in arms]
    started = time.perf_counter()
    _section("machine")
    findings = examine(profile, run_root)
    for finding in findings:
        print(finding.line())
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        raise ConfigError(f"this machine cannot run {profile}: {failed[0].line()}")
    _section("start policy")
    warmstart(configs[0], run_root, progress=progress)
    _minutes(started)
    _section(f"training {', '.join(arms)}; seeds {', '.join(map(str, seeds))}")
    jobs = [(config, seed) for seed in seeds for config in configs]
    _run_all(jobs, "train", run_root, progress=progress)
    _minutes(started)
    _section("held-out questions")
    for checkpoint in ("best", "last"):
        _run_all(jobs, "evaluate", run_root, progress=progress, extra=["--checkpoint", checkpoint])
    _minutes(started)
    _section("notebooks and figures")
    index = report(profile, list(seeds), run_root, out_dir, methods=arms, progress=progress)
    _minutes(started)
    _list(index)
    return index


def _run_all(
    jobs: Sequence[tuple[ExperimentConfig, int]],
    command: str,
    run_root: Path,
    *,
    progress: bool,
    extra: Sequence[str] = (),
) -> None:
    """Run one process per job, as many at a time as the cores hold; a job that fails stops the
    rest.
    """
    waiting = list(jobs)
    running: dict[subprocess.Popen, tuple[ExperimentConfig, int]] = {}
    slots = max(1, (os.cpu_count() or 1) // jobs[0][0].training.threads)
    bars = _Bars(jobs, run_root) if progress and command == "train" else None
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                config, seed = waiting.pop(0)
                running[_start(config, seed, command, run_root, extra)] = (config, seed)
            time.sleep(_POLL_SECONDS)
            if bars:
                bars.refresh()
            for process in [process for process in running if process.poll() is not None]:
                config, seed = running.pop(process)
                if process.returncode:
                    _raise(process, config, seed, command, run_root)
    finally:
        _stop(running)
        if bars:
            bars.close()


def _start(
    config: ExperimentConfig, seed: int, command: str, run_root: Path, extra: Sequence[str]
) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "llds_core", command, config.name, "--seed", str(seed)]
    arguments += ["--run-root", str(run_root), "--quiet", *extra]
    # The thread count is part of a run; the environment must not add threads of its own.
    environment = os.environ | {"OMP_NUM_THREADS": str(config.training.threads)}
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A session of its own: Ctrl-C reaches it once, through `_stop`, and it can write its status
        # in peace.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _die_with_parent() -> None:
    """Ask the kernel to end this child when its parent is killed, so that no orphan holds a run
    directory.
    """
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


def _raise(
    process: subprocess.Popen, config: ExperimentConfig, seed: int, command: str, run_root: Path
) -> None:
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
    log = run_path(run_root, config, seed) / "log.txt"
    raise RunError(f"{command} {config.name} seed {seed} failed: {reason} (log: {log})")


class _Bars:
    """One progress bar per run, fed from the metrics on disk."""

    def __init__(self, jobs: Sequence[tuple[ExperimentConfig, int]], run_root: Path) -> None:
        self._bars = [
            (
                tqdm(
                    total=config.training.steps,
                    desc=f"{config.name} seed {seed}",
                    unit="step",
                    position=i,
                ),
                run_path(run_root, config, seed),
            )
            for i, (config, seed) in enumerate(jobs)
        ]

    def refresh(self) -> None:
        """Show the last row of every run."""
        for bar, path in self._bars:
            rows = read_metrics(path)
            if rows and rows[-1]["step"] != bar.n:
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

    def close(self) -> None:
        """Leave the bars as they are."""
        self.refresh()
        for bar, _ in self._bars:
            bar.close()


def _section(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _minutes(started: float) -> None:
    print(f"   {(time.perf_counter() - started) / 60:.1f} minutes so far", flush=True)


def _list(index: Path) -> None:
    content = json.loads(index.read_text("utf-8"))
    _section(f"made in {index.parent}")
    for artefact in content["artefacts"]:
        print(f"{artefact['kind']:10} {index.parent / artefact['path']}")
    for run in content["runs"]:
        manifest = read_manifest(Path(run["path"]))
        print(f"run        {run['path']} ({manifest['status']})")
    print(f"index      {index}")
