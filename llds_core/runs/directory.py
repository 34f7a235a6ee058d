"""`RunDirectory`: a run's folder opened for writing.

It is locked by the process that writes it. The lock is the kernel's, so that a killed process holds
none.
"""

import gzip
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llds_core.config import ExperimentConfig
from llds_core.errors import RunError
from llds_core.files import disk_errors, finite, replacing, write_json, write_text
from llds_core.runs.identity import check_recorded, check_same, deviations
from llds_core.runs.provenance import (
    command_line,
    git_diff,
    git_state,
    hardware,
    package_versions,
)
from llds_core.runs.run import read_manifest, read_metrics, read_trajectories

SCHEMA_VERSION = 1
_logger = logging.getLogger("llds_core")


class RunDirectory:
    """A run directory opened for writing. Use as a context manager: it holds the lock and sets the
    final status.

    Args:
        path: the folder; made when missing.
        config: the resolved configuration.
        seed: the run's seed.
        command: how to continue the run, shown when it is interrupted.

    Raises:
        RunError: when another process holds it, it cannot be written, or it holds another
            experiment.

    Attributes:
        collapsed: set to end the run with status `collapsed` instead of `complete`.
    """

    def __init__(
        self, path: Path, config: ExperimentConfig, seed: int, *, command: str | None = None
    ) -> None:
        self.path = path
        self.command = command or command_line()
        self.collapsed = False
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = _hold(path)
        try:
            self.manifest = self._open_manifest(config, seed)
        except BaseException:
            self._lock.release()
            raise
        with disk_errors(path):
            self._log = logging.FileHandler(path / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _logger.addHandler(self._log)
        _logger.setLevel(logging.INFO)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoint"

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
        try:
            self.update(status=status, finished=_now(), reason=reason)
        except RunError as second:
            # The disk may be what went wrong: the first error must stay the one that is reported.
            if kind is None:
                raise
            _logger.error("%s", second)
        finally:
            _logger.removeHandler(self._log)
            self._log.close()
            self._lock.release()

    def update(self, **values: Any) -> None:
        """Set manifest values and write it."""
        self.manifest.update(values)
        write_json(self.path / "manifest.json", self.manifest)

    def record_corpus(self, identity: str) -> None:
        """Set what is searched, which may not change in the middle of a run.

        Raises:
            RunError: when the run began with another corpus or index.
        """
        check_recorded(self.path, self.manifest, "corpus", identity)
        self.update(corpus=identity)

    def record_policy(self, digest: str) -> None:
        """Set which policy the run starts from, which may not become another behind its path.

        Raises:
            RunError: when the run began with another one.
        """
        check_recorded(self.path, self.manifest, "policy", digest)
        self.update(policy=digest)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row, on disk when this returns. Non-finite numbers become null."""
        with (
            disk_errors(self.path),
            (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file,
        ):
            file.write(_json_lines([row]))
            file.flush()
            os.fsync(file.fileno())

    def append_trajectories(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append trajectories as JSON lines, one gzip member a call."""
        with disk_errors(self.path), (self.path / "rollouts.jsonl.gz").open("ab") as file:
            file.write(gzip.compress(_json_lines(rows).encode()))

    def truncate(self, step: int) -> None:
        """Drop metrics and trajectories of steps after `step`, which a resumed run writes again."""
        metrics = _json_lines(
            row for row in read_metrics(self.path) if row["step"] <= step
        ).encode()
        trajectories = _json_lines(
            row for row in read_trajectories(self.path) if row["step"] <= step
        ).encode()
        for name, content in (
            ("metrics.jsonl", metrics),
            ("rollouts.jsonl.gz", gzip.compress(trajectories)),
        ):
            with replacing(self.path / name) as file:
                file.write(content)

    def _open_manifest(self, config: ExperimentConfig, seed: int) -> dict[str, Any]:
        old = read_manifest(self.path) if (self.path / "manifest.json").exists() else {}
        if old:
            check_same(self.path, old, config)
            if old["seed"] != seed:
                raise RunError(
                    f"{self.path} was made with seed {old['seed']}, now {seed}: choose "
                    "another folder with --run-root"
                )
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "profile": config.profile,
            "method": config.method,
            "seed": seed,
            "command": self.command,
            "config": config.to_dict(),
            "config_hash": config.hash(),
            "deviations": deviations(config),
            **git_state(),
            "packages": package_versions(),
            "hardware": hardware(),
            "started": old.get("started", _now()),
            "finished": None,
            "resumed": [*old.get("resumed", []), _now()] if old else [],
        }
        kept = {key: value for key, value in old.items() if key not in manifest}
        manifest |= kept | {"reason": None}
        write_json(self.path / "manifest.json", manifest)
        write_text(self.path / "config.yaml", config.to_yaml())
        if diff := git_diff():
            write_text(self.path / "code.diff", diff)
        else:
            with disk_errors(self.path):
                (self.path / "code.diff").unlink(missing_ok=True)
        return manifest


def _hold(path: Path) -> FileLock:
    """Take the lock of a run directory and note the process that has it.

    Raises:
        RunError: when another process has it.
    """
    file = path / "lock"
    with disk_errors(path):
        holder = file.read_text("utf-8").strip() if file.exists() else ""
        lock = FileLock(file)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(
                f"{path} is in use by process {holder}: wait for it, or stop it"
            ) from None
        if holder:
            _logger.info("stale lock of process %s taken over: %s", holder, path)
        file.write_text(str(os.getpid()), "utf-8")
    return lock


def end_run(path: Path, status: str, reason: str) -> None:
    """Write how a run ended whose processes could not, unless another command holds it."""
    if not (path / "manifest.json").exists():
        return
    try:
        lock = _hold(path)
    except RunError:
        return
    with lock:
        manifest = read_manifest(path)
        if manifest["status"] in ("running", "failed"):
            ending = {"status": status, "finished": _now(), "reason": reason}
            write_json(path / "manifest.json", manifest | ending)


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
