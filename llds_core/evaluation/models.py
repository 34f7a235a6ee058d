"""The model an evaluation asks for: its weights, and digits that change with any of its files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.runs.policies import digest_files, load_policy, policy_digest
from llds_core.runs.smollm2 import SMOLLM2, load_smollm2, quantization, smollm2_file


@dataclass(frozen=True)
class Model:
    """A model by name; nothing is loaded before `load` is called.

    Attributes:
        name: of the checkpoint's folder, or `smollm2`.
        digest: sixteen hex digits of its files.
        load: returns model and tokenizer, on a GPU where there is one; loads once.
    """

    name: str
    digest: str
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]

    @property
    def label(self) -> str:
        """Name and first digits, for folders."""
        return f"{self.name}-{self.digest[:8]}"


def open_model(checkpoint: Path | str, dtype: str) -> Model:
    """Find a model: a folder of a causal language model, or `smollm2` for the packaged one.

    Raises:
        CheckpointError: when the folder holds no weights.
        ConfigError: when SmolLM2 is wanted and not installed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @cache
    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        packaged = checkpoint == SMOLLM2
        model, tokenizer = load_smollm2(dtype) if packaged else load_policy(checkpoint, dtype)
        return model.to(device).eval(), tokenizer

    if checkpoint == SMOLLM2:
        return Model(SMOLLM2, digest_files([smollm2_file()]), load)
    folder = Path(checkpoint)
    return Model(folder.resolve().name, policy_digest(folder), load)


def describe(model: Model) -> dict[str, object]:
    """What a manifest says about a model."""
    packaged = {"quantization": quantization(smollm2_file())} if model.name == SMOLLM2 else {}
    return {"model": model.name, "model_digest": model.digest} | packaged
