"""When two configurations make the same run, when a run is a result, and what a configuration
changes against its profile as printed.

A layout, an override or a smaller machine may change more than where the arithmetic happens. What
changes the mathematics, the data or the arithmetic's precision is a deviation. What only moves work
between devices is not: objective and gradient do not depend on micro-batches or processes.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from llds_core.config import FEEDBACK, ExperimentConfig, load_experiment
from llds_core.errors import ConfigError, RunError, TrainingDivergedError


def _keys(sections: Mapping[str, str]) -> set[str]:
    return {f"{section}.{key}" for section, keys in sections.items() for key in keys.split()}


# Keys that may change when a run is continued.
FREE = _keys(
    {
        "diagnostics": "stop_after_collapse",
        "data": "cache",
        # How the same mini-batches are spread over processes and passes: rounding apart, the same
        # run. `hardware.sharding` is none of them, because it decides the form of the checkpoints.
        "training": "steps keep_checkpoints trajectories_per_step micro_batch_size"
        " max_tokens_per_micro_batch resumable_every gradient_checkpointing",
        "hardware": "nodes processes gpu_memory_gib",
        # Where vLLM runs, how much memory it gets, and when its gap to the trainer is worth a
        # warning. What samples (`sampler.backend`) belongs to the run.
        "sampler": "mode server_url tensor_parallel memory_share gap_alarm",
        # Where and how patiently the search service is asked; what it finds is checked by its
        # corpus.
        "service": "url timeout_seconds tries backoff_seconds request_queries batch_window_ms"
        " max_queries max_query_chars max_top_k max_hits max_body_mib",
    }
)
# With a token mean per micro-batch these change the objective itself.
_COMPOSITION = {"hardware.nodes", "hardware.processes", "training.micro_batch_size"}

# What runs were before the key was there, where that is not its default.
_OLDEST = {"training.mini_batches": "shuffled"}


def same_run(manifest: Mapping[str, Any], config: ExperimentConfig, steps: int) -> bool:
    """Whether a run of `steps` steps is finished and what `config` asks for, whatever else changed.

    One that failed is finished only if it diverged: a full disk or a killed process is no result.
    """
    ended = complete(manifest, config, steps) or diverged(manifest)
    return ended and not changed_keys(manifest, config)


def complete(manifest: Mapping[str, Any], config: ExperimentConfig, steps: int) -> bool:
    """Whether a run of `steps` steps has all of them, or ended early because it collapsed."""
    if manifest["status"] == "collapsed" and config.diagnostics.stop_after_collapse:
        return True
    return manifest["status"] in ("complete", "collapsed") and steps >= config.training.steps


def diverged(manifest: Mapping[str, Any]) -> bool:
    """Whether a run ended as its updates stayed non-finite, or as dynamic sampling found too few
    groups: a result, which training repeats.
    """
    reason = manifest.get("reason") or ""
    return manifest["status"] == "failed" and reason.startswith(TrainingDivergedError.__name__)


def changed_keys(
    manifest: Mapping[str, Any], config: ExperimentConfig
) -> list[tuple[str, Any, Any]]:
    """What makes it another run: key, value before, value now.

    A key younger than the manifest had its default, or the value under which such runs were made.
    The name of the profile is none: a profile is its values.
    """
    free = free_keys(config)
    defaults = flat(ExperimentConfig(config.profile, config.method).to_dict())
    before, after = defaults | _OLDEST | flat(manifest["config"]), flat(config.to_dict())
    return [
        (key, before.get(key), value)
        for key, value in after.items()
        if before.get(key) != value
        and key not in free
        and key != "profile"
        and "evaluation." not in key
    ]


def free_keys(config: ExperimentConfig) -> set[str]:
    """Keys that leave a run with the settings of `config` itself unchanged."""
    free = FREE
    if config.loss.aggregate == "token-mean-micro":
        free = free - _COMPOSITION
    if config.training.mini_batches == "balanced":  # over the processes
        free = free - {"hardware.nodes", "hardware.processes"}
    return free


def check_recorded(path: Path, manifest: Mapping[str, Any], what: str, now: str | int) -> None:
    """Check that what a run began with is what is there now; an older manifest may not say."""
    before = manifest.get(what, now)
    if before != now:
        raise RunError(
            f"{path} began with {what} {before}, now {now}: bring that one back, or choose another "
            "folder with --run-root"
        )


def check_same(path: Path, manifest: Mapping[str, Any], config: ExperimentConfig) -> None:
    """Check that a run directory holds the run that `config` asks for."""
    if changed := changed_keys(manifest, config):
        key, before, now = changed[0]
        raise RunError(
            f"{path} was made with {key}={before!r}, now {now!r}: delete the folder, or choose "
            "another with --run-root"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of dotted keys from a nested mapping."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result


# Sections and keys that change nothing but speed, memory, or what is measured beside the run.
_NEUTRAL_SECTIONS = ("hardware", "sampler", "diagnostics", "service", "data", "profile", "method")
_NEUTRAL = FREE - {"training.steps"} | _keys(
    {
        "training": "threads save_every max_nonfinite_updates",
        "dense": "device batch_size path vectors",
        "evaluation": "batch_size",
        "warmstart": "threads save_every",
    }
)
# Of these sections what does change a result: a lost search is none of the paper's.
_COUNTS = {"sampler.rounding", "sampler.correction", "sampler.correction_cap"}
_COUNTS |= {"service.on_failure", "data.too_long"}


def index_command(config: ExperimentConfig) -> str:
    """The command that builds the dense index of `config`."""
    usual = flat(load_experiment(config.name).to_dict())
    made_of = {k: v for k, v in flat(config.to_dict()).items() if k.startswith(("data.", "dense."))}
    options = [f"{k}={_shown(v)}" for k, v in made_of.items() if v != usual[k]]
    return f"python -m llds_core index {shlex.join([config.profile, *options])}"


def deviations(config: ExperimentConfig) -> list[str]:
    """Name, one line each, what `config` changes against its profile, method and variant as
    printed; empty for a profile that does not ship with the package.
    """
    try:
        printed = load_experiment(config.name, layout="")
    except ConfigError:
        return []
    before, after = flat(printed.to_dict()), flat(config.to_dict())
    named = []
    if config.world.name == "files":
        if config.rollout.prompt != "data":
            named.append("prompt in our own words")
        if config.rollout.feedback == FEEDBACK:
            named.append("corrective message in our own words")
        is_single = config.hardware.gpu_memory_gib and config.hardware.sharding == "none"
        if is_single and config.training.dtype == "bfloat16":
            named.append("activations between layers in float32 instead of bfloat16")
    return named + [
        f"{key} is {_shown(value)} instead of {_shown(before[key])}"
        for key, value in after.items()
        if value != before[key] and not _is_neutral(key, before[key], value, config)
    ]


def _is_neutral(key: str, before: Any, now: Any, config: ExperimentConfig) -> bool:
    if key in _COUNTS:
        return False
    if key == "training.micro_batch_size" and config.loss.aggregate == "token-mean-micro":
        return False  # each micro-batch is a mean of its own
    if key in ("policy.path", "dense.encoder"):
        return _model(before) == _model(now)
    if key == "dense.half":
        return config.dense.device == "cuda"  # as the official code searches on GPUs
    if key == "retrieval.backend":
        return {before, now} <= {"dense", "server"}
    return key in _NEUTRAL or key.split(".")[0] in _NEUTRAL_SECTIONS


def _model(path: str | None) -> str | None:
    """The same model in a folder and on the hub has the same last name."""
    return PurePosixPath(path).name.lower() if path else None


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
