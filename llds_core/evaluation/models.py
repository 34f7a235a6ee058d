"""The model an evaluation asks for: its weights, and digits that change with any of its files."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.checkpoints import load_policy
from llds_core.diagnostics.smollm2 import load_smollm2, quantization, smollm2_file
from llds_core.errors import CheckpointError

SMOLLM2 = "smollm2"
# What transformers reads of a folder; optimizer states and results may lie beside it.
_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("pytorch_model*.bin", "tokenizer*.json", "*.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "*.model"),
)


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
        return Model(SMOLLM2, _digest([smollm2_file()]), load)
    folder = Path(checkpoint)
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise CheckpointError(f"{folder} holds no weights: name a checkpoint folder")
    return Model(folder.resolve().name, _digest(files), load)


def describe(model: Model) -> dict[str, object]:
    """What a manifest says about a model."""
    packaged = {"quantization": quantization(smollm2_file())} if model.name == SMOLLM2 else {}
    return {"model": model.name, "model_digest": model.digest} | packaged


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]
