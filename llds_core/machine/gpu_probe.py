"""What driver and torch say about GPUs, asked in a process of its own.

Asking how much memory is free takes some of every GPU for as long as the process lives, which must
not be as long as a training run. `python -m llds_core.machine.gpu_probe` prints one JSON object.
"""

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass

_GIB = 2**30
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
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Gpus(error=f"torch gave no answer within {_SECONDS} s")
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return Gpus(error=lines[-1][:200] if lines else f"exit code {done.returncode}")
    cuda = found.pop("driver_cuda")
    gpus = tuple(Gpu(**gpu) for gpu in found.pop("gpus"))
    return Gpus(**found, driver_cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None, gpus=gpus)


def main() -> None:
    """Print what is found."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        gpus.append({"name": name, "total": total / _GIB, "free": free / _GIB})
    versions = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    print(
        json.dumps({**versions, "driver": _driver(), "driver_cuda": _driver_cuda(), "gpus": gpus})
    )


def _driver_cuda() -> int | None:
    """CUDA version of the driver, as 1000 × major + 10 × minor; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _driver() -> str | None:
    """Version of the driver; only `nvidia-smi` tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


if __name__ == "__main__":
    main()
