"""Driver, CUDA and GPU memory, for profiles that train on GPUs."""

from llds_core.config import ExperimentConfig
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.probes import Gpus

REPORTED_SHARE = 0.97
"""Of the memory that a layout counts on, what a card must report: no two report the same."""


def gpu_findings(config: ExperimentConfig, found: Gpus, needed: float) -> list[Finding]:
    """Whether the GPUs of this machine can train `config`.

    Args:
        config: with `hardware.gpu_memory_gib` set.
        found: what is there.
        needed: GiB that a process takes on each GPU.
    """
    if found.error:
        fix = 'look at "python -m llds_core.machine.gpu_probe"'
        return [Finding("GPU", "fail", f"torch cannot be asked ({found.error})", fix)]
    cuda = _cuda(found)
    if cuda.status == "fail":
        return [cuda]
    return [cuda, _count(config, found), *_memory(config, found, needed)]


def _cuda(found: Gpus) -> Finding:
    if found.torch_cuda is None:
        fix = "install the CUDA build of the same version: make setup without a CPU index"
        return Finding("CUDA", "fail", f"torch {found.torch} is built for CPUs", fix)
    if found.driver_cuda is None:
        fix = "install the NVIDIA driver; nvidia-smi must list the GPUs"
        return Finding("CUDA", "fail", f"torch {found.torch} finds no NVIDIA driver", fix)
    driver = f"driver {found.driver or 'of unknown version'}"
    highest = ".".join(map(str, found.driver_cuda))
    said = f"{driver} supports CUDA {highest}, torch {found.torch} was built for {found.torch_cuda}"
    if found.driver_cuda[0] < int(found.torch_cuda.split(".")[0]):
        major = found.torch_cuda.split(".")[0]
        fix = f"update the driver to one for CUDA {major}; nvidia-smi names what it supports"
        return Finding("CUDA", "fail", said, fix)
    if not found.gpus:
        fix = "nvidia-smi must list them, and CUDA_VISIBLE_DEVICES must not hide them"
        return Finding("CUDA", "fail", f"{said}, and torch finds no GPU", fix)
    return Finding("CUDA", "ok", said)


def _count(config: ExperimentConfig, found: Gpus) -> Finding:
    names = sorted({gpu.name for gpu in found.gpus})
    said = f"{len(found.gpus)} × {', '.join(names)}"
    wanted = config.hardware.processes
    if len(found.gpus) < wanted:
        fix = (
            f"{wanted} a node are needed: choose a layout that fits "
            f'("python -m llds_core plan {config.profile}" lists them)'
        )
        return Finding("GPUs", "fail", said, fix)
    return Finding("GPUs", "ok", said)


def _memory(config: ExperimentConfig, found: Gpus, needed: float) -> list[Finding]:
    """Total memory against the layout's, free memory against what is needed; the scarcest GPU."""
    used = found.gpus[: config.hardware.processes]
    layout = config.hardware.gpu_memory_gib or 0.0
    small, full = min(used, key=lambda gpu: gpu.total), min(used, key=lambda gpu: gpu.free)
    if small.total < REPORTED_SHARE * layout:
        fix = (
            f"the layout counts on {layout:g} GiB: choose one that fits "
            f'("python -m llds_core plan {config.profile}" lists them)'
        )
        return [Finding("GPU memory", "fail", f"{small.total:.1f} GiB on {small.name}", fix)]
    said = f"{full.free:.1f} of {full.total:.1f} GiB free"
    if full.free < needed:
        fix = f"{needed:.1f} GiB are needed: end what uses the GPU (nvidia-smi lists it)"
        return [Finding("GPU memory", "fail", said, fix)]
    return [Finding("GPU memory", "ok", said)]
