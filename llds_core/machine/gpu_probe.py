"""What torch says about GPUs, asked in a process of its own.

Asking how much memory is free takes some of every GPU for as long as the process lives, which must
not be as long as a training run. `python -m llds_core.machine.gpu_probe` prints one JSON list.
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


_GPUS = TypeAdapter(list[Gpu])


def find_gpus() -> list[Gpu]:
    """The GPUs that torch can use; a `RunError` with torch's reason when there are none."""
    command = [sys.executable, "-m", "llds_core.machine.gpu_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise RunError(f"torch gave no answer within {_SECONDS} s") from None
    if done.returncode:
        raise RunError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return _GPUS.validate_json(done.stdout)


def _probe() -> list[Gpu]:
    import torch

    torch.cuda.init()
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Gpu(torch.cuda.get_device_name(index), total / 2**30, free / 2**30))
    return gpus


if __name__ == "__main__":
    try:
        found = _probe()
    except (AssertionError, RuntimeError) as error:
        sys.exit(str(error).splitlines()[0])  # further lines are about debugging kernels
    print(_GPUS.dump_json(found).decode())
