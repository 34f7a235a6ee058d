"""Shapes of the policies, known before anything is downloaded.

Architectures are those of the `config.json` in each model's repository on the hub. Parameters are
counted on the model that transformers builds from them on the `meta` device, which holds no
numbers; a test compares the counts with the published ones.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llds_core.config import PolicyConfig
from llds_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_QWEN_3B = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
_QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
_LLAMA_3B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
_SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
# By the last part of a path or hub id, in lower case.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2.5-3b": _QWEN_3B,
    "qwen2.5-3b-instruct": _QWEN_3B,
    "qwen2.5-7b": _QWEN_7B,
    "qwen2.5-7b-instruct": _QWEN_7B,
    "llama-3.2-3b": _LLAMA_3B,
    "smollm2": _SMOLLM2_135M,
    "smollm2-135m-instruct": _SMOLLM2_135M,
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder that memory and time follow from.

    Attributes:
        parameters: numbers to learn, tied ones once.
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the gated feed-forward network.
        query_width: query heads × numbers a head.
        key_value_width: key heads × numbers a head.
        heads: query heads.
        vocabulary: rows of the output matrix.
        tied: whether input and output matrix are one.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_value_width: int
    heads: int
    vocabulary: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer, without biases and norms, which are less than a thousandth."""
        attention = self.hidden * (2 * self.query_width + 2 * self.key_value_width)
        return attention + 3 * self.hidden * self.intermediate


def policy_shape(policy: PolicyConfig) -> ModelShape:
    """Return the shape of the policy that `policy` names or describes.

    A folder with a `config.json` speaks for itself; models that are not there yet are looked up in
    `ARCHITECTURES`.

    Raises:
        ConfigError: for a model that is neither here nor known.
        CheckpointError: when a folder's `config.json` cannot be read.
    """
    if policy.path is None:
        from llds_core.runs.policies import policy_architecture

        return shape_of(policy_architecture(policy, policy.vocab_size))
    folder = Path(policy.path)
    if (folder / "config.json").is_file():
        return shape_of(_stored(folder))
    name = PurePosixPath(policy.path).name.lower()
    if name not in ARCHITECTURES:
        raise ConfigError(
            f'policy.path is "{policy.path}", which is neither a folder with a config.json nor a '
            f"model whose shape is known: fetch it first, or name one of {', '.join(ARCHITECTURES)}"
        )
    return _known_shape(name)


@lru_cache
def _known_shape(name: str) -> ModelShape:
    return shape_of(model_config(name))


def model_config(name: str) -> "PretrainedConfig":
    """The configuration transformers builds the known model `name` from."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**ARCHITECTURES[name])


def shape_of(config: "PretrainedConfig") -> ModelShape:
    """Return the shape of the causal language model of `config`, counted on the `meta` device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        query_width=config.num_attention_heads * head,
        key_value_width=config.num_key_value_heads * head,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
    )


def _stored(folder: Path) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{folder}/config.json cannot be read ({reason}): fetch the model again"
        ) from error
