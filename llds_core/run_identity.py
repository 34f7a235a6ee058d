"""When two configurations make the same run."""

from collections.abc import Mapping
from typing import Any

from llds_core.config import ExperimentConfig

# Keys that may change when a run is continued.
FREE = {
    "training.steps",
    "training.keep_checkpoints",
    "training.trajectories_per_step",
    "diagnostics.stop_after_collapse",
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


def same_run(manifest: Mapping[str, Any], config: ExperimentConfig, steps: int) -> bool:
    """Whether a finished run of `steps` steps is what `config` asks for, whatever else changed."""
    ended_early = manifest["status"] == "collapsed" and config.diagnostics.stop_after_collapse
    long_enough = steps >= config.training.steps or ended_early or manifest["status"] == "failed"
    return long_enough and not changed_keys(manifest, config)


def changed_keys(
    manifest: Mapping[str, Any], config: ExperimentConfig
) -> list[tuple[str, Any, Any]]:
    """What makes it another run: key, value before, value now.

    A key younger than the manifest had its default: that is what a new setting's default means.
    """
    defaults = _flat(ExperimentConfig(config.profile, config.method).to_dict())
    before, after = defaults | _flat(manifest["config"]), _flat(config.to_dict())
    return [
        (key, before.get(key), value)
        for key, value in after.items()
        if before.get(key) != value and key not in FREE and "evaluation." not in key
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat
