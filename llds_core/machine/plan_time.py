"""How long a run takes: from measured runs where there are some, else from a stated throughput.

Measured are stored runs of the same profile, sizes and hardware; their mean seconds a step count,
with the fastest and slowest run as bounds. Without any, seconds follow from floating-point
operations and bytes moved:

    scored tokens   2 N each: old policy, reference policy (with a KL weight), after the updates
    trained tokens  6 N each and epoch, 8 N with gradient checkpointing
    sampled tokens  the weights and the cache of all running trajectories are read for each of them
    searches        a constant each

The constants below are assumptions, not measurements of this program; whoever reads a plan is told
so, and gets bounds a factor `UNCERTAINTY` apart. They can be held against what Search-R1's users
report for 3B on eight H100: 200 steps in 2 or 3 hours (its author), in 6 or 7 (a user), both in
github.com/PeterGriffinJin/Search-R1/issues/1, whose algorithm and batch are not named there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.config import ExperimentConfig
from llds_core.machine.model_shapes import ModelShape
from llds_core.machine.plan_memory import key_value_bytes
from llds_core.reporting.store import PUBLISHED, StoredRun, load_run, read_published
from llds_core.runs.identity import flat

UNCERTAINTY = 2.5
"""Factor between a stated time and each of its bounds."""

_GPU_FLOPS = 0.3 * 989e12  # a third of what an H100's datasheet gives for dense bfloat16
_GPU_BYTES = 0.5 * 3.35e12  # half of its memory bandwidth, a second
_GPU_SEQUENCES = 256  # that vLLM decodes together
_CPU_FLOPS = 5e10  # about what `make bench` finds for updates of desk on one core
_SEARCH_SECONDS = 0.015  # exact search in main memory, in large batches
_PROMPT = {"search-r1": 200, "short": 20}  # tokens
_SEARCHES, _ACTION, _OBSERVATION = 1.5, 60, 450  # mean searches, and tokens of each part
# Sections and keys that decide how long a step takes.
_TIMED = ("policy.", "rollout.", "sampler.backend", "hardware.processes", "hardware.nodes")
_TIMED_TRAINING = ("updates_per_rollout", "epochs", "micro_batch_size", "dtype", "threads")


@dataclass(frozen=True)
class Throughput:
    """What a step costs.

    Attributes:
        kind: `measured` or `stated`.
        source: of the numbers, in words.
        tokens: that a step trains on, prompts and retrieved text included.
        seconds: of a step.
        fastest: lower bound of `seconds`.
        slowest: upper bound.
    """

    kind: str
    source: str
    tokens: int
    seconds: float
    fastest: float
    slowest: float


def throughput(config: ExperimentConfig, shape: ModelShape, run_root: Path) -> Throughput:
    """Return what is known about the time of a step of `config`."""
    return _measured(config, run_root) or _stated(config, shape)


def step_tokens(config: ExperimentConfig) -> int:
    """Expected tokens of all trajectories of a step, by the assumed means within the limits."""
    rollout = config.rollout
    action = min(_ACTION, rollout.max_action_tokens)
    observation = min(_OBSERVATION, rollout.max_observation_tokens)
    searches = min(_SEARCHES, rollout.max_searches)
    length = _PROMPT[rollout.prompt] + searches * (action + observation) + action
    return round(config.trajectories_per_rollout * min(length, rollout.max_total_tokens))


def _stated(config: ExperimentConfig, shape: ModelShape) -> Throughput:
    tokens = step_tokens(config)
    training = config.training
    scored = 2 + (config.loss.kl_weight > 0)
    trained = (4 if training.gradient_checkpointing else 3) * training.epochs
    operations = 2 * shape.parameters * tokens * (scored + trained)
    action = min(_ACTION, config.rollout.max_action_tokens)
    searches = min(_SEARCHES, config.rollout.max_searches)
    count = config.trajectories_per_rollout
    sampled = count * action * (searches + 1)
    prefill = 2 * shape.parameters * tokens
    if config.hardware.gpu_memory_gib is None:
        seconds = (operations + prefill + 2 * shape.parameters * sampled) / _CPU_FLOPS
        source = f"{_CPU_FLOPS:.0e} operations a second on one core"
    else:
        gpus = config.world_size
        running = min(_GPU_SEQUENCES, count / gpus)
        cache = running * tokens / count * key_value_bytes(config, shape)
        read = (2 * shape.parameters + cache) / running
        seconds = (operations + prefill) / (gpus * _GPU_FLOPS) + sampled * read / (
            gpus * _GPU_BYTES
        )
        source = "arithmetic for H100s at 30 % of peak operations and 50 % of bandwidth"
    if config.retrieval.backend != "bm25":
        seconds += count * searches * _SEARCH_SECONDS
    return Throughput(
        "stated",
        f"{source}; not measured, bounds a factor {UNCERTAINTY} apart",
        tokens,
        seconds,
        seconds / UNCERTAINTY,
        seconds * UNCERTAINTY,
    )


def _measured(config: ExperimentConfig, run_root: Path) -> Throughput | None:
    runs = [run for run in _stored(config.profile, run_root) if _is_alike(run.manifest, config)]
    steps = [
        (run.metrics["rollout_seconds"] + run.metrics["update_seconds"]).dropna() for run in runs
    ]
    means = pd.Series([seconds.mean() for seconds in steps if len(seconds)], dtype=float)
    if means.empty:
        return None
    lengths = [run.metrics["response_length"] + run.metrics["observation_length"] for run in runs]
    length = pd.concat(lengths).mean() + _PROMPT[config.rollout.prompt]
    return Throughput(
        "measured",
        f"mean of {len(means)} stored runs of {config.profile} with these sizes",
        round(config.trajectories_per_rollout * length),
        float(means.mean()),
        float(means.min()),
        float(means.max()),
    )


def _stored(profile: str, run_root: Path) -> list[StoredRun]:
    runs = [load_run(path.parent) for path in run_root.glob(f"{profile}/*/seed*/metrics.jsonl")]
    if not (PUBLISHED / profile / "runs").is_dir():
        return runs
    return runs + read_published(profile, PUBLISHED)


def _is_alike(manifest: dict[str, Any], config: ExperimentConfig) -> bool:
    """Whether a step of the run costs what a step of `config` does."""
    defaults = flat(ExperimentConfig(config.profile, config.method).to_dict())
    before = defaults | flat(manifest["config"])
    timed = [f"training.{key}" for key in _TIMED_TRAINING]
    return all(
        before.get(key) == value
        for key, value in flat(config.to_dict()).items()
        if key.startswith(_TIMED) or key in timed
    )
