"""The arithmetic of memory against bytes that are really there."""

import json

import numpy as np
import pytest
import torch
from run_helpers import refused
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2ForCausalLM

from llds_core.config import DenseConfig, ExperimentConfig, PolicyConfig, load_experiment
from llds_core.errors import CheckpointError, ConfigError
from llds_core.machine import memory
from llds_core.machine.memory import GIB, gpu_memory, index_bytes, policy_shape, update_parts
from llds_core.runs.policies import policy_architecture
from llds_core.training.policy_head import add_policy_head, policy_labels

ROWS, WIDTH, SCORED = 4, 128, 64
SIZES = [
    *("policy.hidden_size=64", "policy.intermediate_size=176", "policy.layers=6"),
    *("policy.heads=4", "policy.key_value_heads=2", "policy.vocab_size=500"),
    *(f"training.micro_batch_size={ROWS}", f"rollout.max_total_tokens={WIDTH}"),
    *("rollout.max_searches=1", f"rollout.max_action_tokens={SCORED // 2}"),
]


def tiny(*overrides: str) -> tuple[ExperimentConfig, Qwen2ForCausalLM]:
    config = load_experiment("smoke/grpo", [*SIZES, *overrides])
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(policy_architecture(config.policy, config.policy.vocab_size))
    add_policy_head(model)
    return config, model.train()


def parts(*overrides: str, layout: str | None = None):
    config = load_experiment("paper-3b/grpo", overrides, layout)
    return config, policy_shape(config.policy)


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_gradients_moments_and_cache_are_exact() -> None:
    config, model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    optimizer.step()
    states = optimizer.state.values()
    with torch.no_grad():
        cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    layers = size([layer for one in cache.layers for layer in (one.keys, one.values)])
    shape = policy_shape(config.policy)
    assert memory.key_value_bytes(config, shape) == layers // 10
    predicted = update_parts(config, shape)
    assert predicted["weights"] == size(model.parameters())
    assert predicted["gradients"] == size(p.grad for p in model.parameters())
    assert predicted["optimizer"] == size(s[name] for s in states for name in s if name != "step")


def measured(config: ExperimentConfig, model) -> tuple[int, int]:
    """Bytes kept after a forward pass, and at the highest point of it and the backward pass."""
    shape = config.training.micro_batch_size, config.rollout.max_total_tokens
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, shape, generator=random)
    attention = torch.ones_like(ids)
    attention[0, :3] = 0
    scored = 2 * config.rollout.max_action_tokens
    labels = policy_labels(ids, torch.ones(len(ids), scored, dtype=torch.long))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    mixed = config.training.dtype == "bfloat16"
    options = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
    with profile(**options) as forward, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_and_logits_are_within_the_stated_error(checkpointing, dtype) -> None:
    recompute = f"training.gradient_checkpointing={str(checkpointing).lower()}"
    config, model = tiny(recompute, f"training.dtype={dtype}")
    shape = policy_shape(config.policy)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept, highest = measured(config, model)
    predicted = update_parts(config, shape)
    # Autocast copies the matrices of the layers alone.
    casts = predicted["casts"] - 2 * shape.matrix if dtype == "bfloat16" else 0
    if not checkpointing:
        assert predicted["activations"] + casts == pytest.approx(kept, rel=0.05)
    else:
        plain = load_experiment("smoke/grpo", [*SIZES, f"training.dtype={dtype}"])
        assert kept < predicted["activations"] < update_parts(plain, shape)["activations"] / 2
    assert 0.85 < (predicted["activations"] + predicted["logits"] + casts) / highest < 1.4


@pytest.mark.parametrize(("layout", "gpus"), [("4x80", 4), ("2x8x80", 16)])
def test_processes_that_shard_share_each_state(layout: str, gpus: int) -> None:
    config, shape = parts(layout=layout)
    found = update_parts(config, shape)
    share = shape.parameters // gpus
    assert [found[name] // share for name in ("weights", "gradients", "reference")] == [4, 4, 4]
    assert found["optimizer"] == pytest.approx(8 * share)
    assert update_parts(*parts("loss.kl_weight=0", layout=layout))["reference"] == 0


def test_what_competes_for_a_gpu() -> None:
    four_parts, four = gpu_memory(*parts())
    others = {*four_parts} - {"vllm_weights", "kv_cache", "total"}
    assert four["update"] == sum(four_parts[name] for name in others)
    assert four_parts["total"] == max(four["update"], four["rollout"])
    more = gpu_memory(*parts("sampler.memory_share=0.5"))[1]
    assert more["rollout"] - four["rollout"] == pytest.approx(0.1 * 79 * GIB, abs=2)
    assert more["update"] == four["update"]
    found, moments = gpu_memory(*parts("sampler.mode=server"))
    assert found["vllm_weights"] == found["kv_cache"] == 0
    assert moments["rollout"] < four["rollout"]


@pytest.mark.parametrize(("sharding", "size"), [("none", 12), ("fsdp2", 16)])
def test_a_checkpoint_holds_weights_and_moments(sharding: str, size: int) -> None:
    """Under FSDP2 the weights twice: for everyone, and in its own form."""
    setting = f"hardware.sharding={sharding}"
    config, shape = parts(setting)
    assert memory.checkpoint_bytes(config, shape) == size * shape.parameters
    eight_bits = memory.checkpoint_bytes(*parts(setting, "training.optimizer=adamw-8bit"))
    assert eight_bits == (size - 6) * shape.parameters + 6 * shape.matrix


# Parameters, and those outside of the embeddings, in 10^9, as the model cards print them
# (Qwen/Qwen2.5-3B, Qwen/Qwen2.5-7B, meta-llama/Llama-3.2-3B, HuggingFaceTB/SmolLM2-135M).
@pytest.mark.parametrize(
    ("path", "parameters", "rest"),
    [
        ("data/policy/qwen2.5-3b", 3.09, 2.77),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09, 2.77),
        ("data/policy/qwen2.5-7b", 7.61, 6.53),
        ("data/policy/llama-3.2-3b", 3.21, None),
        ("smollm2", 0.135, None),
    ],
)
def test_parameters_are_as_many_as_published(path, parameters, rest) -> None:
    shape = policy_shape(PolicyConfig(path=path))
    found = round(shape.parameters / 1e9, 2 if parameters > 1 else 3)
    assert found in (parameters, round(parameters + 0.01, 2))
    if rest:
        embeddings = shape.matrix * (1 if shape.tied else 2)
        assert round((shape.parameters - embeddings) / 1e9, 2) == rest


def test_a_folder_speaks_for_itself_and_unknown_models_are_named(tmp_path) -> None:
    config, _ = tiny()
    policy_architecture(config.policy, 500).save_pretrained(tmp_path / "model")
    assert policy_shape(PolicyConfig(path=str(tmp_path / "model"))) == policy_shape(config.policy)
    unknown = PolicyConfig(path="my/mistral-7b")
    refused(ConfigError, r"mistral-7b.*qwen2\.5-3b", policy_shape, unknown)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    refused(CheckpointError, "cannot be read", policy_shape, PolicyConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Flat", {}),
        ("HNSW16", {"index": "hnsw", "hnsw_neighbours": 16}),
        ("HNSW64", {"index": "hnsw"}),
    ],
)
def test_an_index_is_as_large_as_faiss_makes_it(name: str, settings: dict) -> None:
    """To 3 %: the levels of a graph are drawn."""
    faiss = pytest.importorskip("faiss", reason="needs faiss")
    vectors = np.random.default_rng(0).normal(size=(4_000, 32)).astype(np.float32)
    index = faiss.index_factory(32, name)
    if "HNSW" in name:
        index.hnsw.efConstruction = 8
    index.add(vectors)
    found = len(faiss.serialize_index(index))
    assert index_bytes(DenseConfig(**settings), 4_000, 32) == pytest.approx(found, rel=0.03)
    # 21,015,324 × 768 × 4 bytes: the flat index that Search-R1 distributes.
    assert index_bytes(DenseConfig()) == 64_559_075_328
