"""`plan`: what a run takes, before anything starts, and which layout of GPUs it fits on.

Arithmetic only: no GPU, no network. Evaluation and the start policy are not counted. Time is that
of stored runs with the same profile, sizes and hardware, else a stated speed with wide bounds.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

from llds_core.config import ExperimentConfig, laid_over, layouts_for, load_experiment
from llds_core.errors import ConfigError, DataError
from llds_core.machine.memory import (
    E5_DIMENSION,
    GIB,
    PROMPT,
    SEARCHES,
    WIKIPEDIA_PASSAGES,
    ModelShape,
    checkpoint_bytes,
    gpu_memory,
    host_memory,
    index_bytes,
    key_value_bytes,
    policy_shape,
    usual_length,
)
from llds_core.runs import DEFAULT_ROOT, deviations, read_manifest, read_metrics
from llds_core.runs.identity import flat
from llds_core.worlds.downloads import SOURCES, needs

UNCERTAINTY = 2.5
"""Factor between a stated time and each of its bounds."""
# Operations per second of a whole step, sampling and searches included. GPU: a fifth of what an
# H100's datasheet gives for dense bfloat16, by which 200 steps of 3B take 4.5 hours on eight; users
# of Search-R1 report 2 to 7 (github.com/PeterGriffinJin/Search-R1/issues/1); updates alone reached
# 2.2e14 to 3.2e14 on an H200 (results/published/gpu). CPU, per thread: desk and SmolLM2 in float32,
# SmolLM2 in bfloat16 on a processor with units for it (results/published/smol).
GPU_SPEED, CPU_SPEED = 2e14, {"float32": 5e10, "bfloat16": 1.5e11}
# Seconds that a GPU waits for Python at each layer of a pass, however small the pass is: on an H200
# with four cores for two runs, SmolLM2's 30 layers took about 39 ms per token. For vLLM, which
# replays graphs, the number is assumed.
_LAUNCH = {"transformers": 1e-3, "vllm": 2e-4}
# Bytes per second, assumed: a checkpoint to a disk; weights of all shards to every GPU; weights to
# vLLM, which sleeps and wakes meanwhile. None of it is thought to overlap with anything.
_DISK, _GATHER, _PUSH = 1e9, 2e11, 4e9
# Core-seconds of an exact search of Wikipedia's 21 M vectors: 137 queries per second and core for
# 1 M of half the length (results/published/desk/bench_retrieval.csv). On GPUs it takes no time.
_SEARCH, _SEARCH_CORES = 21 * 2 / 137, 32
_PEER = (
    "SkyRL reports 330 steps of Qwen2.5-3B-Instruct with two updates per rollout, average 0.42 and "
    "0.40 over the seven sets (its recipe overview)"
)
# Sections and keys that decide how long a step takes.
_TIMED = (
    *("policy.", "rollout.", "sampler.backend", "hardware.processes", "hardware.nodes"),
    *("training.updates_per_rollout", "training.epochs", "training.micro_batch_size"),
    "training.max_tokens_per_micro_batch",
    *("training.dtype", "training.threads"),
)
_COLUMNS = ("rollout_seconds", "update_seconds", "response_length", "observation_length")
_PUBLISHED = Path("results/published")
_E5_BYTES = 437_955_512  # model.safetensors of intfloat/e5-base-v2
_VECTORS = WIKIPEDIA_PASSAGES * E5_DIMENSION * 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """What a run takes; `downloads_gb` in 10^9 bytes, None where only the hub knows.

    Parts of updates and of rollouts are not on a GPU together: `gpu_moments_gib` has the sum of
    each. Main memory is that of the node that needs most.
    """

    experiment: str
    fits: bool
    reason: str  # why it does not fit
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

    def text(self) -> str:
        """Lines for a terminal: the same names, without what is empty."""
        shown = {name: _shown(value) for name, value in asdict(self).items()}
        if self.experiment.startswith("paper-"):
            shown["without a penalty"] = _PEER
        return "\n".join(f"{name:22} {text}" for name, text in shown.items() if text)


def estimate(config: ExperimentConfig, run_root: Path = DEFAULT_ROOT) -> Estimate:
    """Work out what `config` takes, and how long by the runs under `run_root`."""
    shape = policy_shape(config.policy)
    gpus = 0 if config.hardware.gpu_memory_gib is None else config.world_size
    parts, moments = gpu_memory(config, shape) if gpus else ({}, {})
    host = host_memory(config, shape)
    downloads = _downloads(config, shape)
    disk = {name: size for name, size in downloads.items() if size is not None}
    if config.world.name == "files":
        # Vectors, unless published ones are searched where they lie, and files of other kinds.
        disk["own index"] = 0 if config.dense.vectors else _VECTORS // (1 + config.dense.half)
        disk["own index"] += 0 if config.dense.index == "flat" else index_bytes(config.dense)
    # The best one and the one being written come on top of the latest; so does the one before it
    # that a run can be continued from, where that is not among these.
    training = config.training
    kept = whole = training.keep_checkpoints + 2
    if training.resumable_every:
        among = training.keep_checkpoints * training.save_every // training.resumable_every + 1
        kept, whole = kept + (among < 2), 1 + max(2, among)
    disk["checkpoints"] = whole * checkpoint_bytes(config, shape)
    disk["checkpoints"] += (kept - whole) * 4 * shape.parameters
    tokens, seconds, throughput = _measured(config, run_root) or _stated(config, shape)
    beside = _beside(config, shape, tokens)  # a part of the seconds, checkpoints of measured apart
    low, hours, high = (config.training.steps * value / 3600 for value in seconds)
    needed, here = sum(host.values()) / GIB, psutil.virtual_memory().total / GIB
    reason = ""
    if gpus:
        reason = _gpu_reason(config, shape, parts, moments)
    elif needed > here:
        reason = (
            f"{config.name} needs {needed:.1f} GiB of main memory, and this machine has {here:.1f}"
        )
    return Estimate(
        experiment=config.name,
        fits=not reason,
        reason=reason,
        gpus=gpus,
        gpu_memory_gib=_gib(parts),
        gpu_moments_gib=_gib(moments),
        host_memory_gib=needed,
        host_memory_parts_gib=_gib(host),
        disk_gib=sum(disk.values()) / GIB,
        disk_parts_gib=_gib(disk),
        downloads_gb={n: None if size is None else size / 1e9 for n, size in downloads.items()},
        tokens_per_step=tokens,
        hours=hours,
        hours_range=(low, high),
        gpu_hours=hours * gpus,
        throughput=throughput | {"seconds_per_step": seconds[1], "seconds_of_it": beside},
        deviations=deviations(config),
    )


def _beside(config: ExperimentConfig, shape: ModelShape, tokens: int) -> dict[str, float]:
    """Seconds of a step for checkpoints, and on GPUs for gathering sharded weights and for pushing
    them to vLLM.
    """
    training, weights = config.training, 4 * shape.parameters
    stored = checkpoint_bytes(config, shape) / training.save_every
    if training.resumable_every:
        share = training.save_every / training.resumable_every
        stored = stored * share + weights * (1 - share) / training.save_every
    parts = {"checkpoints": stored / _DISK}
    if config.hardware.gpu_memory_gib is None:
        return parts
    if config.hardware.sharding != "none":
        # In 16 bits for each forward and backward pass, and gradients back in 32.
        scored = 1 + (config.loss.kl_weight > 0) + config.diagnostics.final_share
        moved = weights / 2 * scored + 2 * weights * training.epochs
        parts["gather"] = _micro_batches(config, tokens) * moved / _GATHER
    if config.sampler.backend == "vllm":
        parts["push"] = weights / _PUSH
    return parts


def _micro_batches(config: ExperimentConfig, tokens: int) -> int:
    """Micro-batches of a rollout of `tokens` on each GPU."""
    budget = config.training.max_tokens_per_micro_batch
    rows = config.trajectories_per_rollout / config.training.micro_batch_size
    return math.ceil((tokens / budget if budget else rows) / config.world_size)


def _gpu_reason(
    config: ExperimentConfig, shape: ModelShape, parts: dict[str, int], moments: dict[str, int]
) -> str:
    """Why the GPUs are too small; empty when they are not."""
    if parts["total"] > moments["limit"]:
        moment = "updates" if moments["update"] >= moments["rollout"] else "rollouts"
        return (
            f"{config.name} needs {parts['total'] / GIB:.1f} GiB on each GPU during {moment}, and "
            f"{moments['limit'] / GIB:.1f} of {config.hardware.gpu_memory_gib:g} GiB may be filled"
        )
    longest = config.rollout.max_total_tokens * key_value_bytes(config, shape)
    cache = parts["kv_cache"] * config.sampler.tensor_parallel
    if config.sampler.backend == "vllm" and config.sampler.mode == "colocate" and cache < longest:
        return (
            f"{config.name} leaves vLLM {cache / GIB:.2f} GiB of KV cache, and one longest "
            f"trajectory takes {longest / GIB:.2f}: raise sampler.memory_share"
        )
    return ""


def _downloads(config: ExperimentConfig, shape: ModelShape) -> dict[str, int | None]:
    """Bytes by source as they end up on disk; policies are published in two bytes per number."""
    known = {"encoder": _E5_BYTES, "corpus": SOURCES["corpus"].unpacked, "index": _VECTORS}
    policies = [name for name, source in SOURCES.items() if source.folder.startswith("policy/")]
    known |= dict.fromkeys(policies, 2 * shape.parameters)
    return {name: known.get(name) for name in needs(config.profile)}


Rate = tuple[int, tuple[float, float, float], dict[str, str]]
"""Tokens per step, seconds per step (lowest, expected, highest), and where they are from."""


def _stated(config: ExperimentConfig, shape: ModelShape) -> Rate:
    """Sampling and scoring take 2 operations per parameter and token, training 6 per epoch, 8 where
    activations are computed again.
    """
    rollout, training = config.rollout, config.training
    tokens = round(config.trajectories_per_rollout * usual_length(rollout))
    # Before and after the updates.
    scored = (2 if config.loss.kl_weight > 0 else 1) + config.diagnostics.final_share
    passes = 1 + scored + (4 if training.gradient_checkpointing else 3) * training.epochs
    gpus = 0 if config.hardware.gpu_memory_gib is None else config.world_size
    speed = gpus * GPU_SPEED or training.threads * CPU_SPEED[training.dtype]
    seconds = 2 * shape.parameters * tokens * passes / speed
    source = f"{speed:.0e} operations/s assumed, bounds a factor {UNCERTAINTY} apart"
    if gpus:
        # Every micro-batch is scored and trained on; every turn waits for its longest action.
        trained = _micro_batches(config, tokens) * (passes - 1) * _LAUNCH["transformers"]
        sampled = (rollout.max_searches + 1) * rollout.max_action_tokens
        waits = shape.layers * sampled * _LAUNCH[config.sampler.backend]
        seconds = max(seconds, shape.layers * trained) + waits
        source += f", and {waits:.1f} s of waiting for the longest action"
        exact = config.world.name == "files" and config.dense.index == "flat"
        if exact and config.dense.device == "cpu":
            searches = config.trajectories_per_rollout * min(SEARCHES, rollout.max_searches)
            seconds += searches * _SEARCH / _SEARCH_CORES
            source += f", searches on {_SEARCH_CORES} cores"
    seconds += sum(_beside(config, shape, tokens).values())
    bounds = (seconds / UNCERTAINTY, seconds, seconds * UNCERTAINTY)
    return tokens, bounds, {"kind": "stated", "source": source}


def _measured(config: ExperimentConfig, run_root: Path) -> Rate | None:
    """From stored and published runs whose steps cost what those of `config` do."""
    tables = []
    for path in sorted(run_root.glob(f"{config.profile}/*/seed*/metrics.jsonl")):
        with suppress(DataError):  # a damaged folder says so when it is asked for
            if _is_alike(read_manifest(path.parent), config):
                tables.append(pd.DataFrame(read_metrics(path.parent)))
    tables += [
        pd.read_csv(path.with_suffix(".csv.gz"))
        for path in sorted((_PUBLISHED / config.profile / "runs").glob("*.json"))
        if _is_alike(json.loads(path.read_text("utf-8")), config)
    ]
    steps = [t.reindex(columns=_COLUMNS).apply(pd.to_numeric, errors="coerce") for t in tables]
    totals = [(table["rollout_seconds"] + table["update_seconds"]).mean() for table in steps]
    if not (means := [float(mean) for mean in totals if not math.isnan(mean)]):
        return None
    lengths = pd.concat([table["response_length"] + table["observation_length"] for table in steps])
    tokens = config.trajectories_per_rollout * (lengths.mean() + PROMPT[config.rollout.prompt])
    source = f"mean of {len(means)} stored runs of {config.profile} with these sizes"
    bounds = (min(means), fmean(means), max(means))
    return round(tokens), bounds, {"kind": "measured", "source": source}


def _is_alike(manifest: dict[str, Any], config: ExperimentConfig) -> bool:
    defaults = flat(ExperimentConfig(config.profile, config.method).to_dict())
    before = defaults | flat(manifest["config"])
    on_gpu = [before["hardware.gpu_memory_gib"], config.hardware.gpu_memory_gib]
    return (on_gpu[0] is None) == (on_gpu[1] is None) and all(
        before.get(key) == value
        for key, value in flat(config.to_dict()).items()
        if key.startswith(_TIMED)
    )


def _gib(sizes: Mapping[str, int]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items()}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"
    return "?" if value is None else str(value)


def _laid_out(experiment: str, overrides: Iterable[str] = ()) -> dict[str, ExperimentConfig]:
    """`experiment` on every layout whose processes its mini-batch divides among."""
    configs = {}
    for name in layouts_for(experiment.partition("/")[0]):
        with suppress(ConfigError):
            configs[name] = load_experiment(experiment, list(overrides), layout=name)
    return configs


def advice(config: ExperimentConfig, overrides: Sequence[str] = ()) -> str:
    """Which layouts `config` fits on, for a message that says why it does not fit on its own."""
    laid_out = _laid_out(config.name, overrides).items()
    fitting = [name for name, laid in laid_out if estimate(laid).fits]
    return f"it fits on layout {' or '.join(fitting)}" if fitting else "it fits on no layout"


def load_laid_out(
    experiment: str,
    overrides: Sequence[str] = (),
    layout: str | None = None,
    *,
    gpus: int | None = None,
    gpu_memory_gib: float | None = None,
    nodes: int = 1,
) -> ExperimentConfig:
    """Load `experiment` on `layout`, or on `nodes` machines of `gpus` GPUs each with the layout for
    that many: of several, the one for the largest memory that these have.
    """
    config = load_experiment(experiment, overrides, layout)
    if gpus is None and gpu_memory_gib is None:
        return config
    if layout:
        raise ConfigError(f'--layout is "{layout}" and names the GPUs already: leave out --gpus')
    if gpus is None or gpu_memory_gib is None:
        raise ConfigError("--gpus and --gpu-memory-gib belong together: give both")
    suited = {
        laid.hardware.gpu_memory_gib or 0.0: name
        for name, laid in _laid_out(experiment, overrides).items()
        if (laid.hardware.nodes, laid.hardware.processes) == (nodes, gpus)
    }
    if not suited:
        raise ConfigError(
            f"no layout of {experiment} is for {nodes} × {gpus} GPUs: choose one of "
            f"{', '.join(layouts_for(experiment.partition('/')[0]))} with --layout"
        )
    memory = max((gib for gib in suited if gib <= gpu_memory_gib), default=min(suited))
    machines = [f"hardware.gpu_memory_gib={gpu_memory_gib}"]
    return load_experiment(experiment, [*overrides, *machines], layout=suited[memory])


def layout_overrides(
    experiment: str, layout: str | None, overrides: Sequence[str] = ()
) -> list[str]:
    """What `layout` changes against the layout of the profile, as overrides for every process and
    notebook of a job, nothing for None; then the given `overrides`.
    """
    if layout is None:
        return [*overrides]
    before = flat(load_experiment(experiment).to_dict())
    after = flat(load_experiment(experiment, layout=layout).to_dict())
    changed = [f"{key}={json.dumps(after[key])}" for key in after if after[key] != before[key]]
    return laid_over(changed, overrides)


def say_costs(
    configs: Sequence[ExperimentConfig], run_root: Path, left: int, overrides: Sequence[str] = ()
) -> None:
    """Print what `left` runs of `configs` take; refuse GPUs that are too small. `overrides` are
    those of the user, which other layouts would have, too.
    """
    planned = estimate(configs[0], run_root)
    if planned.gpus and not planned.fits:
        raise ConfigError(f"{planned.reason}: {advice(configs[0], overrides)}")
    low, high = (left * hours for hours in planned.hours_range)
    gpu_hours = f", {left * planned.gpu_hours:,.0f} GPU-hours" if planned.gpus else ""
    print(planned.text())
    runs = f"{left} run{'' if left == 1 else 's'} left: {left * planned.hours:,.1f} h"
    print(f"{runs} ({low:,.1f} to {high:,.1f}){gpu_hours}, without evaluation", flush=True)
    for deviation in sorted({line for config in configs for line in deviations(config)}):
        print(f"deviates from the paper: {deviation}")
