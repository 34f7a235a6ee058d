"""Run directories: one folder per (experiment, seed) that says what it is and can be continued.

    manifest.json       what, from which code, when, status
    config.yaml         the resolved configuration
    metrics.jsonl       one row a step
    rollouts.jsonl.gz   a few whole trajectories a step
    checkpoint/         see `llds_core.runs.checkpoints`
    log.txt             messages
    messages.txt        standard error of the last process, when another one started it
    code.diff           difference of the source tree from its commit, if any

A folder is locked by the process that writes it. The lock is the kernel's, so that a killed process
holds none.
"""

import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llds_core.config.load import ExperimentConfig
from llds_core.errors import DataError, RunError
from llds_core.files import disk_errors, finite, replacing, write_json, write_text
from llds_core.runs.deviations import deviations
from llds_core.runs.identity import FREE, check_recorded, check_same, diverged
from llds_core.runs.provenance import command_line, git_diff, git_state, hardware, package_versions

SCHEMA_VERSION = 1
STATUSES = ("running", "complete", "collapsed", "failed", "interrupted")
FINAL = ("complete", "collapsed", "failed")
_MANIFEST_KEYS = ("status", "profile", "method", "seed", "config", "config_hash")
DEFAULT_ROOT = Path("results/runs")
_LONGEST_SUFFIX = 150  # file systems allow names of 255 bytes
_GZIP_MAGIC = b"\x1f\x8b"
_logger = logging.getLogger("llds_core")


def run_path(
    root: Path, config: ExperimentConfig, seed: int, overrides: Iterable[str] = ()
) -> Path:
    """`<root>/<profile>/<method>[+overrides]/seed<k>`; overrides that leave the run itself
    unchanged are not named.
    """
    named = sorted(
        override.replace(" ", "")
        for override in overrides
        if override.split("=")[0].strip() not in FREE
    )
    suffix = "".join(f"+{re.sub(r'[^A-Za-z0-9._=-]', '_', override)}" for override in named)
    if len(suffix) > _LONGEST_SUFFIX:
        digest = hashlib.sha256(suffix.encode()).hexdigest()[:12]
        suffix = f"{suffix[:_LONGEST_SUFFIX]}-{digest}"
    return root / config.profile / f"{config.method}{suffix}" / f"seed{seed}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read `manifest.json` of a run directory.

    Raises:
        DataError: when it is missing or not JSON.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is not a run directory (no manifest.json): name one under results/runs"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{file} is not JSON ({error}): restore it, or delete the run directory"
        ) from error
    missing = [
        key for key in _MANIFEST_KEYS if not isinstance(manifest, dict) or key not in manifest
    ]
    if missing:
        raise DataError(
            f'{file} is no manifest (no "{missing[0]}"): restore it, or delete the run directory'
        )
    return manifest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` of a run directory, one dict a step.

    A torn last line, which a killed process leaves, is ignored.

    Raises:
        DataError: naming file and line of any other line that is not a JSON object with a `step`.
    """
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    text = file.read_bytes().decode("utf-8", errors="replace")
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no object with a step")
        except ValueError:
            if number == len(lines):
                break
            raise DataError(
                f"{file}:{number} is not a metrics row ({line[:60]!r}): delete the line, or the "
                "run directory"
            ) from None
        rows.append(row)
    return rows


def read_trajectories(path: Path) -> list[dict[str, Any]]:
    """Read `rollouts.jsonl.gz` of a run directory; a torn end is ignored."""
    file = path / "rollouts.jsonl.gz"
    rows: list[dict[str, Any]] = []
    if not file.exists():
        return rows
    torn = False
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows.extend(json.loads(line) for line in lines)
    except (EOFError, ValueError):
        torn = True
    except gzip.BadGzipFile as error:
        # One byte is all that is left of the next member's header.
        torn = bool(rows) and file.read_bytes()[-1:] == _GZIP_MAGIC[:1]
        if not torn:
            raise _damaged(file, error) from error
    except zlib.error as error:
        raise _damaged(file, error) from error
    if torn:
        _logger.warning("%s has a torn end: %d trajectories read", file, len(rows))
    return rows


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is damaged ({error}): delete it; the run continues without it")


def is_complete(path: Path, config: ExperimentConfig) -> bool:
    """Whether `path` holds all steps of `config`, or ended early because it collapsed; its
    checkpoints may be gone.

    Raises:
        RunError: when it is complete, but was made with another configuration.
        DataError: when manifest or metrics are damaged.
    """
    if not (path / "manifest.json").exists():
        return False
    manifest = read_manifest(path)
    status = manifest.get("status")
    if status not in ("complete", "collapsed"):
        return False
    check_same(path, manifest, config)
    if status == "collapsed" and config.diagnostics.stop_after_collapse:
        return True
    rows = read_metrics(path)
    return bool(rows) and rows[-1]["step"] >= config.training.steps


def has_diverged(path: Path) -> bool:
    """Whether a run ended as its updates stayed non-finite: a result, which training repeats."""
    return (path / "manifest.json").exists() and diverged(read_manifest(path))


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
            self._lock = (path / "lock").open("a+", encoding="utf-8")
        self._acquire()
        try:
            self.manifest = self._open_manifest(config, seed)
        except BaseException:
            self._lock.close()
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
            self._lock.close()

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

    def _acquire(self) -> None:
        self._lock.seek(0)
        holder = self._lock.read().strip()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunError(
                f"{self.path} is in use by process {holder}: wait for it, or stop it"
            ) from None
        if holder:
            _logger.info("stale lock of process %s taken over: %s", holder, self.path)
        with disk_errors(self.path):
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()))
            self._lock.flush()

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


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
