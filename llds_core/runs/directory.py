"""`RunDirectory`: a run's folder opened for writing.

It is locked by the process that writes it. The lock is the kernel's, so that a killed process holds
none.
"""

import gzip
import logging
import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock

from llds_core.config import ExperimentConfig, official_differences
from llds_core.errors import RunError
from llds_core.files import (
    append_lines,
    disk_errors,
    json_lines,
    locked,
    replacing,
    write_json,
    write_text,
)
from llds_core.runs.checkpoints import (
    check_checkpoint,
    checkpoint_path,
    checkpoint_steps,
    delete_checkpoints,
    remove_leftovers,
    resumable_steps,
)
from llds_core.runs.identity import check_recorded, check_same, deviations
from llds_core.runs.provenance import command_line, git_diff, git_state, hardware, package_versions
from llds_core.runs.run import read_manifest, read_metrics, read_trajectories

# Given back at the end, so that a full disk takes the status of the run that filled it.
_RESERVE, _RESERVED = ".reserve", 1 << 16
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_logger = logging.getLogger("llds_core")


class RunDirectory:
    """A run directory opened for writing. Use as a context manager: it holds the lock and sets the
    final status.

    It is refused when another process holds it, or when it holds another experiment. `command` says
    how to continue the run. Set `collapsed` to end it with that status instead of `complete`.
    """

    def __init__(
        self, path: Path, config: ExperimentConfig, seed: int, *, command: str | None = None
    ) -> None:
        self.path = path
        self.checkpoints = path / "checkpoint"
        self.collapsed = False
        self._held = _hold(path)
        try:
            self.manifest = self._open_manifest(config, seed, command or command_line())
        except BaseException:
            self._held.lock.release()
            raise
        with disk_errors(path):
            self._log = _Log(path / "log.txt", encoding="utf-8")
            (path / _RESERVE).write_bytes(bytes(_RESERVED))
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _logger.addHandler(self._log)
        _logger.setLevel(logging.INFO)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        status, reason = ("collapsed" if self.collapsed else "complete"), None
        if kind is not None:
            stopped = issubclass(kind, KeyboardInterrupt)
            status = "interrupted" if stopped else "failed"
            reason = "stopped by the user" if stopped else f"{kind.__name__}: {error}"[:500]
        # Signals that would end this process wait until its status is written.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            (self.path / _RESERVE).unlink(missing_ok=True)
            self.update(status=status, finished=_now(), reason=reason)
        except (OSError, RunError) as second:
            # The disk may be what went wrong: the first error must stay the one that is reported.
            if kind is None:
                raise
            _logger.error("%s", second)
        finally:
            _logger.removeHandler(self._log)
            with suppress(OSError):  # what a full disk did not take
                self._log.close()
            self._held.lock.release()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def update(self, **values: Any) -> None:
        """Set manifest values and write it."""
        # Writing would make the folder again, without the run.
        if not (self.path / "lock").exists():
            raise RunError(
                f"{self.path} was deleted during the run: delete what is left, start again"
            )
        self.manifest.update(values)
        write_json(self.path / "manifest.json", self.manifest)

    def record(self, what: str, identity: str) -> None:
        """Set what the run works with, as `corpus`; refuse another than it began with."""
        check_recorded(self.path, self.manifest, what, identity)
        self.update(**{what: identity})

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row, on disk when this returns. Non-finite numbers become null."""
        append_lines(self.path / "metrics.jsonl", [row])

    def append_trajectories(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append trajectories as JSON lines, one gzip member per call."""
        with disk_errors(self.path), (self.path / "rollouts.jsonl.gz").open("ab") as file:
            file.write(gzip.compress(json_lines(rows)))

    def rewind(self) -> tuple[int, Path | None]:
        """Go back to the last checkpoint that resumes: its step and folder; (0, None) without."""
        remove_leftovers(self.checkpoints)
        done = max(resumable_steps(self.checkpoints), default=0)
        last = checkpoint_path(self.checkpoints, done) if done else None
        if last:
            check_checkpoint(last)
        later = [step for step in checkpoint_steps(self.checkpoints) if step > done]
        delete_checkpoints(self.checkpoints, later)  # weights only
        self.truncate(done)
        return done, last

    def truncate(self, step: int) -> None:
        """Drop metrics and trajectories of steps after `step`."""
        metrics, trajectories = (
            json_lines(row for row in read(self.path) if row["step"] <= step)
            for read in (read_metrics, read_trajectories)
        )
        with replacing(self.path / "metrics.jsonl") as file:
            file.write(metrics)
        with replacing(self.path / "rollouts.jsonl.gz") as file:
            file.write(gzip.compress(trajectories))

    def _open_manifest(self, config: ExperimentConfig, seed: int, command: str) -> dict[str, Any]:
        old = read_manifest(self.path) if (self.path / "manifest.json").exists() else {}
        if old:
            check_same(self.path, old, config)
            check_recorded(self.path, old, "seed", seed)
        manifest = old | {
            "schema_version": 1,
            "status": "running",
            "profile": config.profile,
            "method": config.method,
            "seed": seed,
            "command": command,
            "config": config.to_dict(),
            "config_hash": config.hash(),
            "deviations": deviations(config),
            "differences": official_differences(config.name),
            **git_state(),
            "packages": package_versions(),
            "hardware": hardware(),
            "started": old.get("started", _now()),
            "finished": None,
            "resumed": [*old.get("resumed", []), _now()] if old else [],
            "reason": None,
        }
        write_json(self.path / "manifest.json", manifest)
        write_text(self.path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        write_text(self.path / "code.diff", git_diff())
        return manifest


class _Log(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """A full disk takes no message either: what fails is told once, by who writes results."""


def _hold(path: Path) -> "AcquireReturnProxy[FileLock]":
    """Take the lock of a run directory and note the process that has it."""
    file = path / "lock"
    with disk_errors(path):
        holder = file.read_text("utf-8").strip() if file.exists() else ""
        busy = f"{path} is in use by process {holder}: wait for it, or stop it"
        held = locked(file, busy)
        file.write_text(str(os.getpid()), "utf-8")
    return held


def end_run(path: Path, status: str, reason: str) -> None:
    """Write how a run ended whose processes could not, unless another command holds it."""
    if not (path / "manifest.json").exists():
        return
    with suppress(RunError), _hold(path):
        manifest = read_manifest(path)
        if manifest["status"] in ("running", "failed"):
            ending = {"status": status, "finished": _now(), "reason": reason}
            write_json(path / "manifest.json", manifest | ending)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
