"""`doctor`: can this machine run a profile? Each finding comes with what to do about it."""

import importlib.util
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from llds_core.config import load_experiment

Status = Literal["ok", "warn", "fail"]
_NEEDED_DISK_GIB = 1.0
_NEEDED_MEMORY_GIB = 6.0


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was looked at.
        status: `ok`, `warn` (it will run, but not as intended) or `fail` (it will not run).
        found: what is there.
        fix: what to do; empty when ok.
    """

    check: str
    status: Status
    found: str
    fix: str = ""

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.status:4}  {self.check}: {self.found}" + (
            f" – {self.fix}" if self.fix else ""
        )

    def to_dict(self) -> dict[str, str]:
        """Plain dict with the attributes as keys."""
        return asdict(self)


def examine(profile: str, run_root: Path) -> list[Finding]:
    """Return all findings for `profile`.

    Raises:
        ConfigError: for an unknown profile.
    """
    config = load_experiment(f"{profile}/grpo")
    return [
        _python(),
        *_packages(),
        _cores(config.training.threads),
        _memory(),
        _writable(run_root),
        _disk(run_root),
        _kernel(),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", found)


def _packages() -> list[Finding]:
    try:
        declared = [Requirement(text) for text in requires("llds-core") or []]
    except PackageNotFoundError:
        return [Finding("packages", "fail", "llds-core is not installed", "run make setup")]
    findings = []
    for requirement in declared:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            findings.append(
                Finding(requirement.name, "fail", "not installed", f'pip install "{requirement}"')
            )
            continue
        if not requirement.specifier.contains(installed.split("+")[0], prereleases=True):
            fix = f'tested with {requirement}: pip install "{requirement}"'
            findings.append(Finding(requirement.name, "warn", installed, fix))
    return findings or [Finding("packages", "ok", f"{len(declared)} pins met")]


def _cores(threads: int) -> Finding:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if cores < 2 * threads:
        return Finding(
            "cores",
            "warn",
            f"{cores}",
            "runs go two at a time: expect about twice the stated minutes",
        )
    return Finding("cores", "ok", f"{cores}")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return Finding("memory", "warn", "unknown", f"{_NEEDED_MEMORY_GIB:.0f} GiB are needed")
    if total < _NEEDED_MEMORY_GIB:
        return Finding(
            "memory",
            "warn",
            f"{total:.1f} GiB",
            f"{_NEEDED_MEMORY_GIB:.0f} GiB are needed: close programs",
        )
    return Finding("memory", "ok", f"{total:.1f} GiB")


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _writable(run_root: Path) -> Finding:
    folder = _existing(run_root)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            "run folder", "fail", f"{folder} cannot be written", "choose another with --run-root"
        )
    return Finding("run folder", "ok", str(run_root))


def _disk(run_root: Path) -> Finding:
    free = shutil.disk_usage(_existing(run_root)).free / 2**30
    if free < _NEEDED_DISK_GIB:
        return Finding(
            "disk",
            "fail",
            f"{free:.2f} GiB free",
            f"{_NEEDED_DISK_GIB:.0f} GiB are needed: free space",
        )
    return Finding("disk", "ok", f"{free:.0f} GiB free")


def _kernel() -> Finding:
    missing = [
        name
        for name in ("ipykernel", "papermill", "nbconvert")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Finding("notebooks", "fail", f"{', '.join(missing)} missing", "run make setup")
    return Finding("notebooks", "ok", "papermill and kernel present")
