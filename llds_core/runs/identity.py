"""When two configurations make the same run, and when a run is a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llds_core.config.load import ExperimentConfig
from llds_core.errors import RunError, TrainingDivergedError

# Keys that may change when a run is continued.
FREE = {
    "training.steps",
    "training.keep_checkpoints",
    "training.trajectories_per_step",
    "diagnostics.stop_after_collapse",
    # How the same mini-batches are spread over processes and passes: rounding apart, the same run.
    # `hardware.sharding` is none of them, because it decides the form of the checkpoints.
    "hardware.nodes",
    "hardware.processes",
    "hardware.gpu_memory_gib",
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    # Where vLLM runs, how much memory it gets, and when its gap to the trainer is worth a warning.
    # What samples (`sampler.backend`) belongs to the run.
    "sampler.mode",
    "sampler.server_url",
    "sampler.tensor_parallel",
    "sampler.memory_share",
    "sampler.gap_alarm",
    # Where and how patiently the search service is asked; what it finds is checked by its corpus.
    "service.url",
    "service.timeout_seconds",
    "service.tries",
    "service.backoff_seconds",
    "service.request_queries",
    "service.cache_size",
    "service.batch_window_ms",
    "service.max_queries",
    "service.max_query_chars",
    "service.max_top_k",
    "service.max_hits",
    "service.max_body_mib",
}

# With a token mean per micro-batch these change the objective itself.
_COMPOSITION = {"hardware.nodes", "hardware.processes", "training.micro_batch_size"}


def same_run(manifest: Mapping[str, Any], config: ExperimentConfig, steps: int) -> bool:
    """Whether a run of `steps` steps is finished and what `config` asks for, whatever else changed.

    One that failed is finished only if it diverged: a full disk or a killed process is no result.
    """
    status = manifest["status"]
    ended_early = status == "collapsed" and config.diagnostics.stop_after_collapse
    long_enough = steps >= config.training.steps or ended_early
    finished = (status in ("complete", "collapsed") and long_enough) or diverged(manifest)
    return finished and not changed_keys(manifest, config)


def diverged(manifest: Mapping[str, Any]) -> bool:
    """Whether a run ended as its updates stayed non-finite: a result, which training repeats."""
    reason = manifest.get("reason") or ""
    return manifest["status"] == "failed" and reason.startswith(TrainingDivergedError.__name__)


def changed_keys(
    manifest: Mapping[str, Any], config: ExperimentConfig
) -> list[tuple[str, Any, Any]]:
    """What makes it another run: key, value before, value now.

    A key younger than the manifest had its default: that is what a new setting's default means.
    """
    free = FREE - _COMPOSITION if config.loss.aggregate == "token-mean-micro" else FREE
    defaults = flat(ExperimentConfig(config.profile, config.method).to_dict())
    before, after = defaults | flat(manifest["config"]), flat(config.to_dict())
    return [
        (key, before.get(key), value)
        for key, value in after.items()
        if before.get(key) != value and key not in free and "evaluation." not in key
    ]


def check_recorded(path: Path, manifest: Mapping[str, Any], what: str, now: str) -> None:
    """Check that what a run began with is what is there now; an older manifest may not say.

    Raises:
        RunError: when it is another one.
    """
    before = manifest.get(what, now)
    if before != now:
        raise RunError(
            f"{path} began with {what} {before}, now {now}: bring that one back, or choose another "
            "folder with --run-root"
        )


def check_same(path: Path, manifest: Mapping[str, Any], config: ExperimentConfig) -> None:
    """Check that a run directory holds the run that `config` asks for.

    Raises:
        RunError: naming the first key that differs.
    """
    if changed := changed_keys(manifest, config):
        key, before, now = changed[0]
        raise RunError(
            f"{path} was made with {key}={before!r}, now {now!r}: delete the "
            "folder, or choose another "
            "with --run-root"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of dotted keys from a nested mapping."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return result
