"""The model an evaluation asks: its weights, and digits that change with any of its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.rollout.environment import Environment, build_environment, insisting
from llds_core.runs import Run
from llds_core.runs.policies import digest_files, load_policy, policy_digest
from llds_core.runs.smollm2 import SMOLLM2, load_smollm2, smollm2_file


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
    def about(self) -> dict[str, str]:
        """What a manifest says."""
        return {"model": self.name, "model_digest": self.digest}


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
