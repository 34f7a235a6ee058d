"""Policies: building one from nothing, finding one that is given, loading one from disk, and the
digest of its files.

A given policy is a folder, a model of the hub, or the packaged SmolLM2. All of them become a folder
on this machine before anything is loaded, so that the policy, TRL's reference policy and a vLLM
server read the same files, and a digest of them says what a run began with.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
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

from llds_core.config import ExperimentConfig, PolicyConfig
from llds_core.config.seeding import child_seed
from llds_core.errors import CheckpointError, DownloadError, one_line
from llds_core.files import hub_errors
from llds_core.runs.smollm2 import PACKAGE, SMOLLM2, VERSION, unpack_smollm2

# A bar per file of weights says nothing about a training run.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

PAD, END = "<|endoftext|>", "<|im_end|>"
# What transformers reads of a folder; optimizer states and results may lie beside it.
POLICY_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("pytorch_model*.bin", "tokenizer*.json", "*.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "*.model"),
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
    trained: PreTrainedTokenizerBase = empty.train_new_from_iterator(  # type: ignore[no-untyped-call]
        texts,
        vocab_size - len(tag_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.add_tokens(tag_tokens)
    return trained


def policy_architecture(config: PolicyConfig, vocab_size: int) -> Qwen2Config:
    """The architecture that `config` describes, without special tokens."""
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
    )


def build_policy(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Return a randomly initialised Qwen2 policy for `tokenizer`, deterministic in `seed`."""
    architecture = policy_architecture(config, len(tokenizer))
    architecture.pad_token_id = tokenizer.pad_token_id
    architecture.eos_token_id = tokenizer.eos_token_id
    # transformers initialises from the global generator; fork it so that nothing else sees the
    # seed.
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "policy", "init"))
        return Qwen2ForCausalLM(architecture)  # type: ignore[no-untyped-call]


def given_policy(config: ExperimentConfig, root: Path) -> Path:
    """Folder of the policy that `policy.path` names, unpacked or fetched first where it has to be.

    SmolLM2 is unpacked below `root`, the folder of all runs; a model of the hub lies in the hub's
    own cache.
    """
    path = str(config.policy.path)
    if path == SMOLLM2:
        return unpack_smollm2(root / "policies" / f"{PACKAGE}-{VERSION}")
    if Path(path).is_dir():
        return Path(path)
    patterns = [pattern for pattern in POLICY_FILES if not pattern.endswith(".bin")]
    try:
        with hub_errors(path, "model", None):
            return Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
    except HFValidationError:
        # The hub allows `owner/model`, or `model` alone.
        raise CheckpointError(
            f"policy.path={path} is not a folder: run make data PROFILE={config.profile}, or set "
            "policy.path to a checkpoint folder"
        ) from None
    except DownloadError as error:
        raise DownloadError(f"policy.path={path} is not a folder here, and {error}") from error


def avoid_cudnn_attention() -> None:
    """Let torch attend without cuDNN, whose backward pass through a mask, as of padding, gives NaN
    on H100 and H200 at lengths of 64 over a multiple of 128 (PyTorch issue 196678, from 2.11 on).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_policy(
    path: str | Path, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy and its tokenizer; see `avoid_cudnn_attention`."""
    avoid_cudnn_attention()
    for name in ("config.json", "tokenizer.json"):
        if not (Path(path) / name).is_file():
            raise CheckpointError(
                f"{path} holds no {name}: name a checkpoint folder such as …/checkpoint/step-000012"
            )
    tokenizer = load_tokenizer(path)
    with _loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True
        )
        model, report = loaded
    # transformers draws missing weights at random and only warns.
    absent = set(report["missing_keys"]) - set(model.all_tied_weights_keys)
    if absent:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(absent)} weights, {min(absent)} first: it is damaged or "
            "of another architecture; name another"
        )
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a policy."""
    with _loading(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        return tokenizer


@contextmanager
def _loading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # transformers meets damage in many ways
        raise CheckpointError(
            f"checkpoint {path} cannot be loaded ({one_line(error, 160)}): delete it to fall back "
            "to an earlier one, or name another"
        ) from error


def policy_digest(folder: Path) -> str:
    """Sixteen hex digits that change with any file of a policy: weights, settings, tokenizer."""
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
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()[:16]
