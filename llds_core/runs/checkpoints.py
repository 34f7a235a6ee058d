"""Policies on disk: building, loading, and checkpoints that are either whole or absent.

A checkpoint is written into a hidden folder and renamed when it is complete, so that a killed
process leaves at most
a hidden leftover behind. Names count rollout steps: `step-000012`.
"""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.utils import logging as transformers_logging

from llds_core.config.load import PolicyConfig
from llds_core.errors import CheckpointError, RunError
from llds_core.seeding import child_seed

# A bar per file of weights says nothing about a training run.
transformers_logging.disable_progress_bar()

PAD, END = "<|endoftext|>", "<|im_end|>"
_PREFIX = "step-"
_CHECKPOINT = re.compile(rf"{_PREFIX}(\d{{6,}})")
# What transformers reads of a folder; optimizer states and results may lie beside it.
POLICY_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("pytorch_model*.bin", "tokenizer*.json", "*.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "*.model"),
)
_LOADING_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def build_tokenizer(
    texts: Iterable[str], vocab_size: int, tags: Iterable[str]
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on `texts`; each of `tags` is one ordinary, decodable token.

    It is Qwen2's tokenizer class with a vocabulary of its own: `AutoTokenizer` picks the class by
    the model's type, and any other one would come back from disk splitting text differently.
    """
    tag_tokens = [AddedToken(tag, normalized=False, special=False) for tag in tags]
    empty = Qwen2Tokenizer(pad_token=PAD, eos_token=END, unk_token=PAD)
    trained = empty.train_new_from_iterator(
        texts,
        vocab_size - len(tag_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.add_tokens(tag_tokens)
    return trained


def policy_architecture(
    config: PolicyConfig, vocab_size: int, **special_tokens: int | None
) -> Qwen2Config:
    """The architecture that `config` describes; `special_tokens` are ids as `Qwen2Config` names
    them.
    """
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=config.initializer_range,
        **special_tokens,
    )


def build_policy(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Return a randomly initialised Qwen2 policy for `tokenizer`, deterministic in `seed`."""
    architecture = policy_architecture(
        config,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    # transformers initialises from the global generator; fork it so that nothing else sees the
    # seed.
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "policy", "init"))
        return Qwen2ForCausalLM(architecture)


def load_policy(
    path: str | Path, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy and its tokenizer.

    Raises:
        CheckpointError: when the folder is missing, truncated or not a causal language model.
    """
    if Path(path).exists():
        for name in ("config.json", "tokenizer.json"):
            if not (Path(path) / name).is_file():
                raise CheckpointError(
                    f"{path} holds no {name}: name a checkpoint folder such as "
                    "…/checkpoint/step-000012"
                )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"checkpoint {path} cannot be loaded ({reason}): delete it to fall back to an earlier "
            "one, or name another"
        ) from error
    # transformers draws missing weights at random and only warns.
    absent = set(report["missing_keys"]) - set(model.all_tied_weights_keys)
    if absent:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(absent)} weights, {min(absent)} first: it is damaged or "
            "of another architecture; name another"
        )
    return model, tokenizer


def policy_digest(folder: Path) -> str:
    """Sixteen hex digits that change with any file of a policy: weights, settings, tokenizer.

    Raises:
        CheckpointError: when the folder holds no weights.
    """
    files = sorted({file for pattern in POLICY_FILES for file in folder.glob(pattern)})
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise CheckpointError(f"{folder} holds no weights: name a checkpoint folder")
    return digest_files(files)


def digest_files(files: Iterable[Path]) -> str:
    """Sixteen hex digits of names, sizes and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return folder / f"{_PREFIX}{step:06d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    names = (path.name for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save or deletion left; only for the process that holds the run."""
    for leftover in folder.glob(".partial*"):
        shutil.rmtree(leftover)


def rotate_checkpoints(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the latest `keep` checkpoints and the one of step `best`."""
    steps = checkpoint_steps(folder)
    for step in steps[:-keep]:
        if step != best:
            # Rename first: a killed deletion must not leave half a checkpoint under a valid name.
            doomed = folder / f".partial-delete-{step}"
            os.replace(checkpoint_path(folder, step), doomed)
            shutil.rmtree(doomed)


def check_checkpoint(path: Path) -> None:
    """Check that a run could continue from `path`, without loading it.

    Raises:
        CheckpointError: when a file is missing or truncated.
    """
    # Several processes store one generator each. FSDP names the moments differently, DeepSpeed
    # keeps them in folders of its own, to which `latest` points.
    generators = "rng_state_0.pth" if (path / "rng_state_0.pth").exists() else "rng_state.pth"
    names = ["model.safetensors", "scheduler.pt", generators]
    if not (path / "latest").exists():
        names += ["optimizer.bin" if (path / "optimizer.bin").exists() else "optimizer.pt"]
    for name in names:
        file = path / name
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    continue
            # torch saves zip archives, whose directory stands at the end.
            if zipfile.is_zipfile(file):
                continue
            reason = "truncated" if file.exists() else "missing"
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{file} cannot be read ({reason}): delete {path.name} to resume from an earlier one"
        )


class AtomicCheckpointMixin:
    """For `transformers.Trainer`: writes `checkpoint/step-N` whole or not at all.

    The class it is mixed into sets `updates_per_step`, and may override `checkpoint_extra` to add
    state to the checkpoint's `extra.json`, read back by `read_checkpoint_extra`.
    """

    updates_per_step = 1
    _saving_to: Path | None = None

    def checkpoint_extra(self) -> dict:
        """State to store beside the weights, JSON-compatible."""
        return {}

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """No model card per checkpoint: the manifest of the run says more."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied weight is stored under one of its names: the other is not missing."""
        tied = self.model.all_tied_weights_keys
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_output_dir(self, trial: object) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: object, trial: object) -> None:
        folder = Path(self.args.output_dir)
        step = self.state.global_step // self.updates_per_step
        self._saving_to = folder / f".partial-{step}"
        try:
            super()._save_checkpoint(model, trial)
            written = self._saving_to / f"checkpoint-{self.state.global_step}"
        except (OSError, RuntimeError, SafetensorError) as error:
            # A full disk speaks through whichever library was writing.
            reason = " ".join(str(error).split())[:120]
            raise RunError(
                f"checkpoint of step {step} cannot be written to {folder} ({reason}): free space "
                "and issue the same command again; earlier checkpoints are intact"
            ) from error
        finally:
            self._saving_to = None
        # Every process has put its part there before the folder gets its name.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (written / "extra.json").write_text(json.dumps(self.checkpoint_extra()), "utf-8")
            final = checkpoint_path(folder, step)
            if final.exists():
                shutil.rmtree(final)
            os.replace(written, final)
            shutil.rmtree(written.parent)


def read_checkpoint_extra(path: Path) -> dict:
    """Return what `checkpoint_extra` stored.

    Raises:
        CheckpointError: when it is missing or not JSON.
    """
    try:
        return json.loads((path / "extra.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({error}): delete it to resume from an earlier one"
        ) from error
