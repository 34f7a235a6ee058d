"""Asks driver and torch about GPUs: `python -m llds_core.machine.gpu_probe`, a process of its own.

Asking how much memory is free takes some of every GPU for as long as the process lives, which must
not be as long as a training run. Prints one JSON object.
"""

import ctypes
import json
import subprocess
from typing import Any


def main() -> None:
    """Print what is found."""
    import torch

    found: dict[str, Any] = {
        "driver": _driver(),
        "driver_cuda": _driver_cuda(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "gpus": [],
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            found["gpus"].append({"name": name, "total": total, "free": free})
    print(json.dumps(found))


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
