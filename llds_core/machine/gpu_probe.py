"""What torch and the driver say about GPUs, asked in a process of its own.

Asking how much memory is free takes some of every GPU for as long as the process lives, which must
not be as long as a training run. `python -m llds_core.machine.gpu_probe` prints one JSON object.
"""

import subprocess
import sys
from dataclasses import dataclass

from pydantic import TypeAdapter

from llds_core.errors import RunError

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

    torch: str
    torch_cuda: str | None  # what torch was built for; None for a CPU build
    driver: str | None
    found: tuple[Gpu, ...]
    reason: str = ""  # torch's, for finding none


_GPUS = TypeAdapter(Gpus)


def find_gpus() -> Gpus:
    """Ask torch and the driver; a `RunError` when nothing could be asked."""
    command = [sys.executable, "-m", "llds_core.machine.gpu_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise RunError(f"torch gave no answer within {_SECONDS} s") from None
    if done.returncode:
        raise RunError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return _GPUS.validate_json(done.stdout)


def _probe() -> Gpus:
    import torch

    found, reason = [], ""
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found.append(Gpu(torch.cuda.get_device_name(index), total / 2**30, free / 2**30))
    except (AssertionError, RuntimeError) as error:
        found, reason = [], str(error).splitlines()[0]  # the rest is about debugging kernels
    return Gpus(torch.__version__, torch.version.cuda, driver_version(), tuple(found), reason)


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


if __name__ == "__main__":
    print(_GPUS.dump_json(_probe()).decode())
