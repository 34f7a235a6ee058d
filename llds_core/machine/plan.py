"""`plan`: what a run takes, before anything starts. Arithmetic only: no GPU, no network.

Memory is in `plan_memory`, time in `plan_time`, shapes of models in `model_shapes`. Not counted:
evaluation, the start policy, and whatever other processes hold on the same GPUs. The retriever is
assumed to search in main memory, as the paper profiles set it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llds_core.config import ExperimentConfig
from llds_core.machine.model_shapes import ModelShape, policy_shape
from llds_core.machine.plan_memory import (
    GIB,
    USABLE,
    checkpoint_bytes,
    gpu_memory,
    host_memory,
    key_value_bytes,
)
from llds_core.machine.plan_time import throughput
from llds_core.machine.sizing import WIKIPEDIA_PASSAGES, index_size
from llds_core.runs import DEFAULT_ROOT
from llds_core.runs.identity import deviations
from llds_core.worlds.downloads import SOURCES, needs

_E5_DIMENSION = 768
_E5_BYTES = 437_955_512  # model.safetensors of intfloat/e5-base-v2
_PUBLISHED_HALF = 2  # bytes of a parameter as published on the hub


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        experiment: `<profile>/<method>`.
        fits: whether it can run on the hardware it names; without GPUs, on this machine.
        reason: one line that says why not; empty when it fits.
        gpus: of all nodes.
        gpu_memory_gib: of each GPU by part, and `total`, its highest moment: parts of updates and
            of rollouts are not there together. Empty without GPUs.
        gpu_moments_gib: `update`, `rollout` and `limit`, what may be filled.
        host_memory_gib: main memory of the node that needs most.
        host_memory_parts_gib: the same by part.
        disk_gib: downloads, index and checkpoints of one run.
        disk_parts_gib: the same by part.
        downloads_gb: by source, in 10^9 bytes; null where only the hub knows.
        tokens_per_step: expected tokens of a rollout.
        hours: expected, of training.
        hours_range: its bounds.
        gpu_hours: hours × GPUs.
        throughput: whether `measured` or `stated`, from what, and seconds a step.
        deviations: what differs from the profile as printed.
    """

    experiment: str
    fits: bool
    reason: str
    gpus: int
    gpu_memory_gib: dict[str, float]
    gpu_moments_gib: dict[str, float]
    host_memory_gib: float
    host_memory_parts_gib: dict[str, float]
    disk_gib: float
    disk_parts_gib: dict[str, float]
    downloads_gb: dict[str, float | None]
    tokens_per_step: int
    hours: float
    hours_range: tuple[float, float]
    gpu_hours: float
    throughput: dict[str, Any]
    deviations: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict with the attributes as keys."""
        return asdict(self)

    def text(self) -> str:
        """Lines for a terminal."""
        lines = [f"{self.experiment} on {_gpus(self.gpus)}"]
        if self.gpus:
            lines.append(_row("each GPU", self.gpu_memory_gib, "GiB"))
            moments = self.gpu_moments_gib
            lines.append(
                f"{'':12} updates {moments['update']:.1f}, rollouts {moments['rollout']:.1f}, of "
                f"{moments['limit']:.1f} GiB that may be filled"
            )
        lines += [
            _row(
                "main memory", self.host_memory_parts_gib | {"total": self.host_memory_gib}, "GiB"
            ),
            _row("disk", self.disk_parts_gib | {"total": self.disk_gib}, "GiB"),
        ]
        if self.downloads_gb:
            lines.append(_row("downloads", self.downloads_gb, "GB"))
        low, high = self.hours_range
        lines += [
            f"{'tokens':12} {self.tokens_per_step:,} a step",
            f"{'time':12} {_hours(self.hours)} ({_hours(low)} to {_hours(high)})"
            + (f", {self.gpu_hours:,.0f} GPU-hours" if self.gpus else ""),
            f"{'':12} {self.throughput['kind']}: {self.throughput['source']}",
        ]
        lines += [f"{'deviation':12} {deviation}" for deviation in self.deviations]
        return "\n".join(lines)


def plan(config: ExperimentConfig, run_root: Path = DEFAULT_ROOT) -> Plan:
    """Work out what `config` takes.

    Args:
        config: the experiment; `hardware.gpu_memory_gib` says whether there are GPUs.
        run_root: stored runs, whose measured times come before stated ones.

    Raises:
        ConfigError: when the shape of the policy is not known.
        CheckpointError: when the policy's folder cannot be read.
    """
    shape = policy_shape(config.policy)
    gpus = 0 if config.hardware.gpu_memory_gib is None else config.world_size
    memory = gpu_memory(config, shape)
    limit = round(USABLE * (config.hardware.gpu_memory_gib or 0) * GIB)
    host = host_memory(config, shape, _retriever_bytes(config))
    reason = _gpu_reason(config, shape) if gpus else _host_reason(config, sum(host.values()))
    downloads = _downloads(config, shape)
    disk = {name: size for name, size in downloads.items() if size is not None}
    if config.world.name == "files":
        index = index_size(config.dense, WIKIPEDIA_PASSAGES, _E5_DIMENSION)
        disk["own index"] = index.disk - index.text
    # The best one and the one being written come on top of the latest.
    disk["checkpoints"] = (config.training.keep_checkpoints + 2) * checkpoint_bytes(config, shape)
    rate = throughput(config, shape, run_root)
    hours, low, high = (
        config.training.steps * seconds / 3600
        for seconds in (rate.seconds, rate.fastest, rate.slowest)
    )
    return Plan(
        experiment=config.name,
        fits=not reason,
        reason=reason,
        gpus=gpus,
        gpu_memory_gib=_gib(memory.parts | {"total": memory.total}) if gpus else {},
        gpu_moments_gib=_gib({"update": memory.update, "rollout": memory.rollout, "limit": limit})
        if gpus
        else {},
        host_memory_gib=sum(host.values()) / GIB,
        host_memory_parts_gib=_gib(host),
        disk_gib=sum(disk.values()) / GIB,
        disk_parts_gib=_gib(disk),
        downloads_gb={
            name: None if size is None else size / 1e9 for name, size in downloads.items()
        },
        tokens_per_step=rate.tokens,
        hours=hours,
        hours_range=(low, high),
        gpu_hours=hours * gpus,
        throughput={"kind": rate.kind, "source": rate.source, "seconds_per_step": rate.seconds},
        deviations=deviations(config),
    )


def _gpu_reason(config: ExperimentConfig, shape: ModelShape) -> str:
    memory = gpu_memory(config, shape)
    capacity = config.hardware.gpu_memory_gib
    limit = USABLE * capacity * GIB
    if memory.total > limit:
        moment = "updates" if memory.update >= memory.rollout else "rollouts"
        return (
            f"{config.name} needs {memory.total / GIB:.1f} GiB on each GPU during {moment}, and "
            f"{limit / GIB:.1f} of {capacity:g} GiB may be filled"
        )
    longest = config.rollout.max_total_tokens * key_value_bytes(config, shape)
    cache = memory.parts["kv_cache"] * config.sampler.tensor_parallel
    if config.sampler.backend == "vllm" and config.sampler.mode == "colocate" and cache < longest:
        return (
            f"{config.name} leaves vLLM {cache / GIB:.2f} GiB of KV cache, and one longest "
            f"trajectory takes {longest / GIB:.2f}: raise sampler.memory_share"
        )
    return ""


def _host_reason(config: ExperimentConfig, needed: int) -> str:
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= here:
        return ""
    return (
        f"{config.name} needs {needed / GIB:.1f} GiB of main memory, and this machine has "
        f"{here / GIB:.1f}"
    )


def _retriever_bytes(config: ExperimentConfig) -> int:
    if config.world.name != "files" or config.retrieval.backend == "bm25":
        return 0
    return index_size(config.dense, WIKIPEDIA_PASSAGES, _E5_DIMENSION).memory


def _downloads(config: ExperimentConfig, shape: ModelShape) -> dict[str, int | None]:
    """Bytes by source as they end up on disk; None where only the hub knows."""
    known = {
        "encoder": _E5_BYTES,
        "corpus": SOURCES["corpus"].unpacked,
        "index": WIKIPEDIA_PASSAGES * _E5_DIMENSION * 4,
    }
    policies = [name for name, source in SOURCES.items() if source.folder.startswith("policy/")]
    known |= dict.fromkeys(policies, _PUBLISHED_HALF * shape.parameters)
    return {name: known.get(name) for name in needs(config.profile)}


def _gib(sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items()}


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}" if count else "the CPU"


def _row(title: str, values: Mapping[str, float | None], unit: str) -> str:
    return f"{title:12} " + ", ".join(_cells(values)) + f" {unit}"


def _cells(values: Mapping[str, float | None]) -> Iterable[str]:
    for name, value in values.items():
        number = "?" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
        yield f"{name.replace('_', ' ')} {number}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"
