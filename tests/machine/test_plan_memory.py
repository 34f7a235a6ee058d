"""The arithmetic of `plan` against bytes that are really there."""

import contextlib
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from llds_core.config import load_experiment
from llds_core.machine.model_shapes import policy_shape, shape_of
from llds_core.machine.plan_memory import (
    GIB,
    activations,
    checkpoint_bytes,
    gpu_memory,
    key_value_bytes,
    logits,
    model_states,
    update_parts,
)
from llds_core.training.policy_head import add_policy_head, policy_labels


def qwen(hidden=64, intermediate=176, layers=6, heads=4, key_heads=2, vocabulary=500):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    add_policy_head(model)
    return model.train(), shape_of(config)


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_gradients_and_moments_are_exact() -> None:
    model, shape = qwen()
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    optimizer.step()
    moments = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    assert model_states(shape.parameters) == {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters()),
        "optimizer": size(moments),
    }


def test_shards_are_a_process_share_each() -> None:
    whole, share = model_states(1000), model_states(1000, processes=4)
    assert share == {name: value // 4 for name, value in whole.items()}


def test_eight_bit_moments_are_bytes_with_a_scale_every_256() -> None:
    """1000 × 256 numbers: two moments of 256,000 bytes and 1000 scales of 4; the other 100 stay."""
    states = model_states(256_100, optimizer="adamw-8bit", small=100)
    assert states["optimizer"] == 2 * (256_000 + 4 * 1000) + 2 * 4 * 100
    assert states["weights"] == 4 * 256_100


CASES = [
    pytest.param(checkpointing, mixed, id=f"{'kept' if not checkpointing else 'again'}-{mixed}")
    for checkpointing in (False, True)
    for mixed in ("float32", "bfloat16")
]


def measured(model, rows: int, width: int, scored: int, mixed: bool) -> tuple[int, int]:
    """Bytes kept after a forward pass, and at the highest point of it and the backward pass."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (rows, width), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[0, :3] = 0
    labels = policy_labels(ids, torch.ones(rows, scored, dtype=torch.long))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    autocast = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
    options = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
    with profile(**options) as forward, autocast:
        out = model(input_ids=ids, attention_mask=attention, policy_labels=labels)
        loss = out.log_probs.sum()
        del out
    with profile(**options) as backward:
        loss.backward()
    kept, highest = sums(forward)
    return kept, max(highest, kept + sums(backward)[1])


def sums(profiled) -> tuple[int, int]:
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = highest = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return now, highest


@pytest.mark.parametrize(("checkpointing", "dtype"), CASES)
def test_activations_and_logits_are_within_the_stated_error(checkpointing, dtype) -> None:
    rows, width, scored, mixed = 4, 128, 64, dtype == "bfloat16"
    model, shape = qwen()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept, highest = measured(model, rows, width, scored, mixed)
    sizes = {"checkpointing": checkpointing, "mixed": mixed}
    predicted = activations(shape, rows, width, **sizes)
    casts = 2 * shape.layers * shape.layer_parameters if mixed else 0
    if not checkpointing:
        assert predicted + casts == pytest.approx(kept, rel=0.05)
    else:
        layers = activations(shape, rows, width, checkpointing=False, mixed=mixed)
        assert kept < predicted < layers / 2
    together = predicted + casts + logits(shape, rows * scored, mixed=mixed)
    assert 0.85 * highest < together < 1.4 * highest


def test_a_large_vocabulary_weighs_as_much_as_its_gradients() -> None:
    """The gradients of the one matrix as input and as output meet: 2 × 40,000 × 256 numbers."""
    model, shape = qwen(hidden=256, layers=1, vocabulary=40_000)
    _, highest = measured(model, rows=1, width=32, scored=4, mixed=False)
    predicted = activations(shape, 1, 32, checkpointing=False, mixed=False) + logits(
        shape, 4, mixed=False
    )
    assert 0.85 * highest < predicted < 1.4 * highest
    assert highest > 2 * 4 * 40_000 * 256


def test_the_cache_of_a_token_is_as_large_as_the_model_makes_it() -> None:
    model, _ = qwen()
    config = load_experiment(
        "smoke/grpo", ["policy.hidden_size=64", "policy.heads=4", "policy.key_value_heads=2"]
    )
    shape = policy_shape(config.policy)
    with torch.no_grad():
        cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    per_layer = size([cache.layers[0].keys, cache.layers[0].values]) // 10
    assert key_value_bytes(config, shape) == shape.layers * per_layer


# Where things are on GPUs


def parts(*overrides: str, name: str = "paper-3b/grpo", layout: str | None = None):
    config = load_experiment(name, overrides, layout)
    return config, policy_shape(config.policy)


def test_without_kl_there_is_no_reference() -> None:
    assert update_parts(*parts("loss.kl_weight=0"))["reference"] == 0
    config, shape = parts()
    assert update_parts(config, shape)["reference"] == math.ceil(4 * shape.parameters / 4)


@pytest.mark.parametrize(("layout", "gpus"), [("8x80", 8), ("2x8x80", 16)])
def test_gradients_are_shared_between_micro_batches_too(layout: str, gpus: int) -> None:
    config, shape = parts(layout=layout)
    assert update_parts(config, shape)["gradients"] == math.ceil(4 * shape.parameters / gpus)


def test_more_gpus_take_less_of_each_and_a_larger_share_more() -> None:
    four, eight = (gpu_memory(*parts(layout=name)) for name in ("4x80", "8x80"))
    assert eight.update < four.update and eight.rollout < four.rollout
    more = gpu_memory(*parts("sampler.memory_share=0.5", layout="4x80"))
    assert more.rollout - four.rollout == pytest.approx(0.1 * 79 * GIB, abs=2)
    assert more.update == four.update


def test_the_larger_moment_is_the_total() -> None:
    memory = gpu_memory(*parts(layout="1x80"))
    named = set(memory.parts) - {"vllm_weights", "kv_cache"}
    assert memory.update == sum(memory.parts[name] for name in named)
    assert memory.total == max(memory.update, memory.rollout)


def test_a_server_takes_nothing_of_the_trainers_gpus() -> None:
    config, shape = parts("sampler.mode=server")
    memory = gpu_memory(config, shape)
    assert memory.parts["vllm_weights"] == memory.parts["kv_cache"] == 0
    assert memory.rollout < gpu_memory(*parts()).rollout


@pytest.mark.parametrize(("sharding", "size"), [("none", 12), ("zero3", 12), ("fsdp2", 16)])
def test_a_checkpoint_holds_weights_and_moments(sharding: str, size: int) -> None:
    """Under FSDP2 the weights twice: for everyone, and in its own form."""
    config, shape = parts(f"hardware.sharding={sharding}")
    assert checkpoint_bytes(config, shape) == size * shape.parameters
