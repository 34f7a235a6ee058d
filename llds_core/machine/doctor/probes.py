"""What `doctor` asks the machine, the model hub and the search service."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llds_core.errors import DownloadError
from llds_core.retrieval import Health, ask_health
from llds_core.worlds.downloads import Kind, list_files

GIB = 2**30
_PROBE_SECONDS = 120


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in GiB."""

    name: str
    total: float
    free: float


@dataclass(frozen=True)
class Gpus:
    """Driver, CUDA and GPUs.

    Attributes:
        torch: version of torch.
        torch_cuda: CUDA version that torch was built for; None for a CPU build.
        driver: version of the driver; None when nothing tells.
        driver_cuda: highest CUDA version of the driver, (major, minor); None without a driver.
        gpus: those that torch can use.
        error: why nothing could be asked.
    """

    torch: str = ""
    torch_cuda: str | None = None
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


def find_gpus() -> Gpus:
    """Ask driver and torch, in a process of its own."""
    command = [sys.executable, "-m", "llds_core.machine.gpu_probe"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Gpus(error=f"torch gave no answer within {_PROBE_SECONDS} s")
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return Gpus(error=lines[-1][:200] if lines else f"exit code {done.returncode}")
    cuda = found["driver_cuda"]
    return Gpus(
        torch=found["torch"],
        torch_cuda=found["torch_cuda"],
        driver=found["driver"],
        driver_cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
        gpus=tuple(
            Gpu(gpu["name"], gpu["total"] / GIB, gpu["free"] / GIB) for gpu in found["gpus"]
        ),
    )


def installed(package: str) -> str | None:
    """Version of a package; None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def free_disk(path: Path) -> float:
    """Free GiB on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(existing(path)).free / GIB


def host_memory() -> float | None:
    """Main memory in GiB; None when the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError):
        return None


def hub_problem(repo: str, kind: Kind, revision: str | None) -> str:
    """Why the hub would not give `repo`; empty when it would."""
    try:
        list_files(repo, kind, revision, timeout=10.0)
    except DownloadError as error:
        return str(error)
    return ""


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        socket.create_server((host, port), backlog=1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Probes:
    """The questions; each can be replaced."""

    gpus: Callable[[], Gpus] = find_gpus
    installed: Callable[[str], str | None] = installed
    free_disk: Callable[[Path], float] = free_disk
    host_memory: Callable[[], float | None] = host_memory
    hub_problem: Callable[[str, Kind, str | None], str] = hub_problem
    health: Callable[[str], Health] = ask_health
    port_is_free: Callable[[str, int], bool] = port_is_free
