"""Shapes of models that are not there, against what their publishers say."""

import json

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from llds_core.config import PolicyConfig, load_experiment
from llds_core.errors import CheckpointError, ConfigError
from llds_core.machine.model_shapes import policy_shape

# Parameters, and those outside of the embeddings, in 10^9, as the model cards print them
# (Qwen/Qwen2.5-3B, Qwen/Qwen2.5-7B, meta-llama/Llama-3.2-3B, HuggingFaceTB/SmolLM2-135M).
PUBLISHED = {
    "data/policy/qwen2.5-3b": (3.09, 2.77),
    "Qwen/Qwen2.5-3B-Instruct": (3.09, 2.77),
    "data/policy/qwen2.5-7b": (7.61, 6.53),
    "data/policy/llama-3.2-3b": (3.21, None),
    "smollm2": (0.135, None),
}


@pytest.mark.parametrize(("path", "published"), PUBLISHED.items())
def test_parameters_are_as_many_as_published(path, published) -> None:
    shape = policy_shape(PolicyConfig(path=path))
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    digits = 2 if published[0] > 1 else 3
    assert round(shape.parameters / 1e9, digits) in (published[0], round(published[0] + 0.01, 2))
    if published[1]:
        assert round((shape.parameters - embeddings) / 1e9, 2) == published[1]


def test_layers_make_up_what_is_not_embedding() -> None:
    shape = policy_shape(PolicyConfig(path="data/policy/qwen2.5-7b"))
    rest = shape.parameters - 2 * shape.vocabulary * shape.hidden
    assert shape.layers * shape.layer_parameters == pytest.approx(rest, rel=1e-3)


def test_a_policy_made_here_is_counted_as_it_is_built() -> None:
    policy = load_experiment("smoke/grpo").policy
    built = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=policy.vocab_size,
            hidden_size=policy.hidden_size,
            intermediate_size=policy.intermediate_size,
            num_hidden_layers=policy.layers,
            num_attention_heads=policy.heads,
            num_key_value_heads=policy.key_value_heads,
            tie_word_embeddings=True,
        )
    )
    assert policy_shape(policy).parameters == sum(p.numel() for p in built.parameters())


def test_a_folder_speaks_for_itself(tmp_path) -> None:
    Qwen2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=100,
    ).save_pretrained(tmp_path)
    assert policy_shape(PolicyConfig(path=str(tmp_path))).hidden == 32


def test_unknown_models_and_broken_folders_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"mistral-7b.*qwen2\.5-3b"):
        policy_shape(PolicyConfig(path="my/mistral-7b"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        policy_shape(PolicyConfig(path=str(tmp_path)))
