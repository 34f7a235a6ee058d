"""What driver and torch say about GPUs, asked in a process of its own.

Asking how much memory is free takes some of every GPU for as long as the process lives, which must
not be as long as a training run. `python -m llds_core.machine.gpu_probe` prints one JSON object.
"""

import ctypes
import subprocess
import sys
from dataclasses import dataclass

from pydantic import TypeAdapter

_SECONDS = 120  # for torch to answer


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in GiB."""

    name: str
    total: float
    free: float


@dataclass(frozen=True)
class Gpus:
    """Versions of torch and driver, and the GPUs that torch can use."""

    torch: str = ""
    torch_cuda: str | None = None  # what torch was built for; None for a CPU build
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None  # the highest that the driver supports
    gpus: tuple[Gpu, ...] = ()
    error: str = ""  # why nothing could be asked


def find_gpus() -> Gpus:
    """Ask driver and torch."""
    command = [sys.executable, "-m", "llds_core.machine.gpu_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        return TypeAdapter(Gpus).validate_json(done.stdout)
    except subprocess.TimeoutExpired:
        return Gpus(error=f"torch gave no answer within {_SECONDS} s")
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return Gpus(error=lines[-1][:200] if lines else f"exit code {done.returncode}")


def _probe() -> Gpus:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(torch.cuda.get_device_name(index), total / 2**30, free / 2**30))
    return Gpus(
        torch.__version__, torch.version.cuda, _driver_version(), _driver_cuda(), tuple(gpus)
    )


def _driver_cuda() -> tuple[int, int] | None:
    """The highest CUDA version that the driver supports; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()  # 1000 × major + 10 × minor
    if library.cuDriverGetVersion(ctypes.byref(version)) or not version.value:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _driver_version() -> str | None:
    """Version of the driver; only `nvidia-smi` tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


if __name__ == "__main__":
    print(TypeAdapter(Gpus).dump_json(_probe()).decode())
