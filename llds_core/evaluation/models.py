"""The model an evaluation asks: its weights, and digits that change with any of its files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.errors import ConfigError
from llds_core.rollout.environment import Environment, build_environment, insisting
from llds_core.rollout.samplers import StopAtTag, end_of_sequence_ids
from llds_core.rollout.vllm_sampler import ColocatedEngine, own_engine
from llds_core.runs import Run
from llds_core.runs.policies import digest_files, load_policy, load_tokenizer, policy_digest
from llds_core.runs.smollm2 import SMOLLM2, load_smollm2, quantization, smollm2_file

_MEMORY_SHARE = 0.8  # of a GPU on which nothing else is at work
_MOST_SEQUENCES = 512  # decoded at a time; the rest waits


@dataclass(frozen=True)
class Model:
    """A model, named as the folder of its checkpoint or `smollm2`, that `load` loads once, onto a
    GPU where there is one.
    """

    name: str
    digest: str  # sixteen hex digits of its files
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    folder: Path | None = None  # where vLLM finds it; None for the packaged one

    @property
    def about(self) -> dict[str, object]:
        """What a manifest says."""
        about: dict[str, object] = {"model": self.name, "model_digest": self.digest}
        if self.name == SMOLLM2:
            about["quantization"] = quantization()
        return about


def open_model(checkpoint: Path | str, dtype: str) -> Model:
    """Find a model: a folder of a causal language model, or `smollm2` for the packaged one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @cache
    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        packaged = checkpoint == SMOLLM2
        model, tokenizer = load_smollm2(dtype) if packaged else load_policy(checkpoint, dtype)
        return model.eval().to(device=device), tokenizer

    if checkpoint == SMOLLM2:
        return Model(SMOLLM2, digest_files([smollm2_file()]), load)
    folder = Path(checkpoint)
    return Model(folder.resolve().name, policy_digest(folder), load, folder)


@contextmanager
def serve(folder: Path, config: ExperimentConfig) -> Iterator["VLLMModel"]:
    """Load the model in `folder` into a vLLM engine in this process, for as long as the context
    lasts; `sampler.mode` does not matter, for a server holds the weights of its trainer.
    """
    options: dict[str, Any] = {
        "dtype": config.training.dtype,
        "tensor_parallel_size": config.sampler.tensor_parallel,
        "max_num_seqs": min(config.evaluation.batch_size, _MOST_SEQUENCES),
    }
    if torch.cuda.is_available():
        options["gpu_memory_utilization"] = _MEMORY_SHARE
    tokenizer = load_tokenizer(folder)
    try:
        settings = GenerationConfig.from_pretrained(folder)
    except OSError:  # a checkpoint without settings of its own
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    ends = end_of_sequence_ids(settings, tokenizer)
    with own_engine(folder, **options) as engine:
        yield VLLMModel(engine, tokenizer, StopAtTag(tokenizer), ends)


@dataclass(frozen=True)
class VLLMModel:
    """A model in a vLLM engine, and what its sampler needs."""

    engine: ColocatedEngine
    tokenizer: PreTrainedTokenizerBase
    stop: StopAtTag
    eos_ids: set[int]


def open_asked(
    profile: str,
    overrides: Sequence[str],
    method: str | None,
    checkpoint: str,
    seed: int,
    root: Path,
) -> tuple[Environment, Model]:
    """The world of a profile, and the model that a command asks about it: a checkpoint of the run
    of `method`, any folder, or `smollm2`.
    """
    if checkpoint in ("best", "last") and method is None:
        raise ConfigError(
            f"--checkpoint {checkpoint} of which run? give --method, or a folder, or smollm2"
        )
    name = f"{profile}/{method or 'grpo'}"
    config = load_experiment(name, overrides)
    policy: Path | str = checkpoint
    if checkpoint != SMOLLM2:
        # Overrides change how questions are asked, not which run is meant.
        policy = Run.load(name, seed, root).checkpoint(checkpoint)
    return build_environment(insisting(config)), open_model(policy, config.training.dtype)
