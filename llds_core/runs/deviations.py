"""What a configuration changes against its profile as printed.

A layout, an override or a smaller machine may change more than where the arithmetic happens. What
changes the mathematics, the data or the arithmetic's precision is a deviation; what only moves work
between devices is not, because objective and gradient do not depend on micro-batches, processes or
sharding.
"""

from pathlib import PurePosixPath
from typing import Any

from llds_core.config import ExperimentConfig, methods, printed_experiment, profiles, variants
from llds_core.runs.identity import FREE, flat

# Sections and keys that change nothing but speed, memory, or what is measured beside the run.
_NEUTRAL_SECTIONS = ("hardware", "sampler", "diagnostics", "service", "data", "profile", "method")
_NEUTRAL = {
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    "training.threads",
    "training.save_every",
    "training.keep_checkpoints",
    "training.trajectories_per_step",
    "training.max_nonfinite_updates",
    "dense.device",
    "dense.batch_size",
    "dense.path",
    "dense.vectors",
    "dense.shard_passages",
    "dense.engine",
    "evaluation.batch_size",
    "warmstart.threads",
    "warmstart.save_every",
}
_NAMES = {
    ("training.optimizer", "adamw-8bit"): "8-bit Adam: moments in 8 instead of 32 bits",
    ("training.dtype", "float32"): "float32 arithmetic instead of bfloat16",
    ("retrieval.backend", "bm25"): "BM25 searches instead of the dense retriever",
}


def deviations(config: ExperimentConfig) -> list[str]:
    """Name, one line each, what `config` changes against its profile, method and variant as
    printed; empty for a profile that does not ship with the package.
    """
    plain, _, variant = config.method.partition("@")
    shipped = config.profile in profiles() and plain in methods()
    if not shipped or (variant and variant not in variants()):
        return []
    before, after = flat(printed_experiment(config.name).to_dict()), flat(config.to_dict())
    return [
        _NAMES.get((key, value)) or f"{key} is {_shown(value)} instead of {_shown(before[key])}"
        for key, value in after.items()
        if value != before[key] and not _is_neutral(key, before[key], value, config)
    ]


def _is_neutral(key: str, before: Any, now: Any, config: ExperimentConfig) -> bool:
    if key == "service.on_failure":
        return False  # a lost search is no search of the paper's
    if key == "training.micro_batch_size" and config.loss.aggregate == "token-mean-micro":
        return False  # each micro-batch is a mean of its own
    if key in ("policy.path", "dense.encoder"):
        return _model(before) == _model(now)
    if key == "retrieval.backend":
        return {before, now} <= {"dense", "server"}
    return (
        key in _NEUTRAL
        or key in FREE - {"training.steps"}
        or key.split(".")[0] in (_NEUTRAL_SECTIONS)
    )


def _model(path: str | None) -> str | None:
    """The same model in a folder and on the hub has the same last name."""
    return PurePosixPath(path).name.lower() if path else None


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
