"""Python, packages, cores, memory and disk."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

from llds_core.config import ExperimentConfig
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.probes import Probes, existing
from llds_core.machine.jobs import usable_cores

NEEDED_DISK_GIB = 1.0
NEEDED_MEMORY_GIB = 6.0


def python() -> Finding:
    """The interpreter."""
    return Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def packages(config: ExperimentConfig, probes: Probes) -> list[Finding]:
    """Installed versions against the pins, of what the profile uses."""
    try:
        declared = [Requirement(text) for text in requires("llds-core") or []]
    except PackageNotFoundError:
        return [Finding("packages", "fail", "llds-core is not installed", "run make setup")]
    extras = _extras(config)
    findings = []
    for requirement in declared:
        if not _is_wanted(requirement, extras):
            continue
        found = probes.installed(requirement.name)
        pin = f"{requirement.name}{requirement.specifier}"
        if found is None:
            findings.append(
                Finding(requirement.name, "fail", "not installed", f'pip install "{pin}"')
            )
        elif not requirement.specifier.contains(found.split("+")[0], prereleases=True):
            fix = f'tested with {pin}: pip install "{pin}"'
            findings.append(Finding(requirement.name, "warn", found, fix))
    optional = {
        "bitsandbytes": (config.training.optimizer == "adamw-8bit", "training.optimizer=adamw"),
        "deepspeed": (config.hardware.sharding == "zero3", "hardware.sharding=fsdp2"),
    }
    for name, (wanted, instead) in optional.items():
        if wanted and probes.installed(name) is None:
            fix = f"pip install {name}, or set {instead}"
            findings.append(Finding(name, "fail", "not installed", fix))
    return findings or [Finding("packages", "ok", f"{len(declared)} pins met")]


def _extras(config: ExperimentConfig) -> dict[str, str]:
    """Packages of the extras that the profile uses, and the extra of each."""
    return {"vllm": "gpu"} if config.sampler.backend == "vllm" else {}


def _is_wanted(requirement: Requirement, extras: dict[str, str]) -> bool:
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return True
    extra = extras.get(requirement.name)
    return extra is not None and requirement.marker.evaluate({"extra": extra})


def cores(config: ExperimentConfig) -> Finding:
    """Cores that this process may use."""
    found = usable_cores()
    if config.hardware.gpu_memory_gib is None and found < 2 * config.training.threads:
        fix = "runs go two at a time: expect about twice the stated minutes"
        return Finding("cores", "warn", f"{found}", fix)
    return Finding("cores", "ok", f"{found}")


def memory(needed: float, probes: Probes) -> Finding:
    """Main memory, in GiB."""
    total = probes.host_memory()
    if total is None:
        return Finding("memory", "warn", "unknown", f"{needed:.0f} GiB are needed")
    if total < needed:
        fix = f"{needed:.0f} GiB are needed: close programs, or take a larger machine"
        return Finding("memory", "warn", f"{total:.1f} GiB", fix)
    return Finding("memory", "ok", f"{total:.1f} GiB")


def run_folder(run_root: Path) -> Finding:
    """Whether runs can be written."""
    folder = existing(run_root)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            "run folder", "fail", f"{folder} cannot be written", "choose another with --run-root"
        )
    return Finding("run folder", "ok", str(run_root))


def disk(run_root: Path, needed: float, probes: Probes) -> Finding:
    """Free disk for runs, in GiB."""
    free = probes.free_disk(run_root)
    if free < needed:
        fix = f"{needed:.0f} GiB are needed: free space, or choose another disk with --run-root"
        return Finding("disk", "fail", f"{free:.2f} GiB free", fix)
    return Finding("disk", "ok", f"{free:.0f} GiB free")


def notebooks() -> Finding:
    """What runs and renders notebooks."""
    missing = [
        name
        for name in ("ipykernel", "papermill", "nbconvert")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Finding("notebooks", "fail", f"{', '.join(missing)} missing", "run make setup")
    return Finding("notebooks", "ok", "papermill and kernel present")
