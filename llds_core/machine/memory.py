"""Bytes that a run takes, by arithmetic: on each GPU, in main memory, on disk.

On each GPU, for N parameters on W processes that shard the model (1 when it is not sharded):

    weights      4 N / W   float32 whatever the arithmetic's type
    gradients    4 N / W   twice with several processes and no sharding, for the buckets of DDP
    optimizer    8 N / W   AdamW's two moments; 2 N / W in 8 bits, the embedding staying in 32
    reference    4 N / W   with a KL weight only
    casts        2 N       in bfloat16: autocast holds all weights, and scoring with a sharded
                           reference gathers all; without either, the matrices in use
    activations            what a layer keeps for each token of a micro-batch: inputs of norms,
                           projections and attention, a row of the mask; with checkpointing the
                           layer's input, and one layer at a time is computed again
    logits                 one tile of TRL's chunked log-probabilities (seven copies more without
                           Triton, on a CPU), and 32-bit gradients of the scored states and of the
                           output matrix, twice where it is the input's
    vLLM                   its share of the GPU: weights in bfloat16, working space, KV cache

Tests hold activations and logits against a CPU. What kernels need and fragmentation wastes is not
known here, so a GPU counts as full at `USABLE` of its memory.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import yaml

from llds_core.config import DenseConfig, ExperimentConfig, PolicyConfig, RolloutConfig
from llds_core.errors import CheckpointError, ConfigError, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
USABLE = 0.95
"""Share of a GPU's memory that a run may fill."""
WIKIPEDIA_PASSAGES, E5_DIMENSION = 21_015_324, 768
"""Passages of 100 words in the dump of December 2018, and the length of their vectors."""

PROMPT = {"data": 200, "search-r1": 200, "short": 20}
"""Tokens of a prompt, by its template."""
SEARCHES = 1.5
"""Mean searches of a trajectory."""
_ACTION, _OBSERVATION = 60, 450  # mean tokens
_CONTEXT = round(1.5 * GIB)  # CUDA, cuBLAS and NCCL of one process
_SEARCH_PROCESS = 2 * GIB  # on each GPU: CUDA again and FAISS's working space; not measured
_EVALUATION_SHARE = 0.8  # of a GPU that holds nothing else
_VLLM_WORKSPACE = round(1.5 * GIB)  # CUDA graphs and activations of the engine
_CPU_PROCESS, _GPU_PROCESS = 1 * GIB, 4 * GIB  # main memory: Python with TRL; with CUDA and vLLM
_TOKEN_TILE, _VOCABULARY_TILE = 4_096, 32_768


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; tied parameters count once, widths are numbers per token."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_value_width: int
    matrix: int  # numbers of the embedding
    tied: bool


def known_models() -> dict[str, dict[str, Any]]:
    """Architectures of `presets/models.yaml`: the last part of a path or hub id, in lower case."""
    known: dict[str, dict[str, Any]] = yaml.safe_load(
        (files("llds_core") / "presets/models.yaml").read_text("utf-8")
    )
    return known


@lru_cache
def policy_shape(policy: PolicyConfig) -> ModelShape:
    """Return the shape of the policy that `policy` names or describes.

    A folder with a `config.json` speaks for itself; a model that is not there yet is looked up in
    `presets/models.yaml`.
    """
    # It brings torch: seconds of a command that only asks `plan` for the overrides of a layout.
    from transformers import AutoConfig

    if policy.path is None:
        from llds_core.runs.policies import policy_architecture

        return shape_of(policy_architecture(policy, policy.vocab_size))
    if (Path(policy.path) / "config.json").is_file():
        try:
            return shape_of(AutoConfig.from_pretrained(policy.path))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{policy.path}/config.json cannot be read ({one_line(error)}): fetch it again"
            ) from error
    known = known_models()
    name = PurePosixPath(policy.path).name.lower()
    if name not in known:
        raise ConfigError(
            f'policy.path is "{policy.path}", which is neither a folder with a config.json nor a '
            f"model whose shape is known: fetch it first, or name one of {', '.join(known)}"
        )
    return shape_of(AutoConfig.for_model(**known[name]))


def shape_of(model: "PretrainedConfig") -> ModelShape:
    """Return the shape of a causal language model, counted on the `meta` device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(model).parameters()
    head = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in parameters),
        layers=model.num_hidden_layers,
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        key_value_width=model.num_key_value_heads * head,
        matrix=model.vocab_size * model.hidden_size,
        tied=model.tie_word_embeddings,
    )


def check_buildable(policy: PolicyConfig) -> None:
    """Refuse a policy that is made here, before anything is allocated, when its weights, gradients
    and moments alone are more than this machine's memory.
    """
    if policy.path is None:
        count = policy_shape(policy).parameters
        needed, here = 16 * count / GIB, psutil.virtual_memory().total / GIB
        if needed > here:
            raise ConfigError(
                f"policy.hidden_size={policy.hidden_size}, layers={policy.layers} make "
                f"{count:.3g} parameters, which take {needed:.3g} GiB in training; this machine "
                f"has {here:.1f}: lower them"
            )


def usual_length(rollout: RolloutConfig) -> float:
    """Tokens of a mean trajectory, as far as they are known before a run."""
    action = min(_ACTION, rollout.max_action_tokens)
    turn = action + min(_OBSERVATION, rollout.max_observation_tokens)
    length = PROMPT[rollout.prompt] + min(SEARCHES, rollout.max_searches) * turn + action
    return min(length, rollout.max_total_tokens)


def update_parts(config: ExperimentConfig, shape: ModelShape) -> dict[str, int]:
    """Bytes by part while a process trains on a micro-batch of the longest trajectories."""
    training, rollout = config.training, config.rollout
    is_sharded, has_reference = config.hardware.sharding != "none", config.loss.kl_weight > 0
    mixed = training.dtype == "bfloat16"
    size = 2 if mixed else 4
    shards = config.world_size if is_sharded else 1
    share = shape.parameters // shards
    whole = has_reference or not is_sharded
    gathered = shape.parameters if whole else 2 * (shape.matrix + shape.parameters // shape.layers)
    width = rollout.max_total_tokens
    tokens = training.micro_batch_size * width
    if training.max_tokens_per_micro_batch:
        tokens = max(training.max_tokens_per_micro_batch, width)
    kept = _kept(config, shape, width, recomputed=training.gradient_checkpointing)
    spoken = min(width, rollout.max_action_tokens * (rollout.max_searches + 1))
    scored = tokens * spoken // width
    tile = min(scored, _TOKEN_TILE) * _VOCABULARY_TILE * size
    if config.hardware.gpu_memory_gib is None:
        vocabulary = min(shape.matrix // shape.hidden, _VOCABULARY_TILE)
        tile += 7 * 4 * min(scored, _TOKEN_TILE) * vocabulary
    gradients = shape.matrix * (2 if shape.tied else 1) + shape.hidden * scored
    return {
        "weights": 4 * share,
        "gradients": (8 if config.world_size > shards else 4) * share,
        "optimizer": _moments(config, shape) // shards,
        "reference": 4 * share if has_reference else 0,
        "casts": size * gathered if is_sharded or mixed else 0,
        "activations": tokens * kept,
        "logits": tile + 4 * gradients,
    }


def _kept(config: ExperimentConfig, shape: ModelShape, width: int, *, recomputed: bool) -> int:
    """Bytes of activations for each token of rows of `width`."""
    h, i = shape.hidden, shape.intermediate
    mixed = config.training.dtype == "bfloat16"
    layer = 34 * h + 8 * i + 2 * width if mixed else 40 * h + 16 * i + 4 * width
    layers = shape.layers * 4 * h + layer if recomputed else shape.layers * layer
    return layers + 12 * h  # the final norm, the scored states


def gpu_memory(
    config: ExperimentConfig, shape: ModelShape
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes on each GPU by part, with their `total`, and at the two moments that compete for it:
    `update` with vLLM asleep, `rollout` without gradients and activations; `limit` bounds both.
    """
    capacity, sampler = (config.hardware.gpu_memory_gib or 0) * GIB, config.sampler
    parts = update_parts(config, shape) | {"context": _CONTEXT, "vllm_weights": 0, "kv_cache": 0}
    parts["index"] = gpu_index_bytes(config)
    update = sum(parts.values())
    engine = 0
    if sampler.backend == "transformers":
        engine = parts["kv_cache"] = _rollout_cache(config, shape)
    elif sampler.mode == "colocate":
        parts["vllm_weights"] = 2 * shape.parameters // sampler.tensor_parallel
        fixed = parts["vllm_weights"] + _VLLM_WORKSPACE
        engine = max(fixed, round(sampler.memory_share * capacity))
        parts["kv_cache"] = engine - fixed
    if config.hardware.sharding != "none":
        # Weights reach vLLM one matrix at a time; transformers samples from the whole policy.
        engine += 4 * (shape.parameters if sampler.backend == "transformers" else shape.matrix)
    resident = ("weights", "optimizer", "reference", "context", "index")
    rollout = sum(parts[name] for name in resident) + engine
    parts["total"] = max(update, rollout)
    return parts, {"update": update, "rollout": rollout, "limit": round(USABLE * capacity)}


def gpu_index_bytes(config: ExperimentConfig) -> int:
    """Bytes of the search service on each GPU: an exact index is divided among those of its node, a
    graph stays in main memory; beside it the process needs a context of its own.
    """
    dense = config.dense
    if config.world.name != "files" or dense.device == "cpu" or dense.index != "flat":
        return 0
    return index_bytes(dense) // config.hardware.processes // (1 + dense.half) + _SEARCH_PROCESS


def evaluation_share(config: ExperimentConfig) -> float:
    """Share of a GPU that vLLM may take for an evaluation: what the search index leaves."""
    if config.hardware.gpu_memory_gib is None:
        return _EVALUATION_SHARE
    taken = (gpu_index_bytes(config) + _CONTEXT) / (config.hardware.gpu_memory_gib * GIB)
    return min(_EVALUATION_SHARE, USABLE - taken)


def host_memory(config: ExperimentConfig, shape: ModelShape) -> dict[str, int]:
    """Bytes of main memory by part, on the node that needs most: that of the search engine."""
    has_index = config.world.name == "files" and config.retrieval.backend != "bm25"
    retriever = index_bytes(config.dense) if has_index else 0
    if config.hardware.gpu_memory_gib is None:
        update = update_parts(config, shape) | {"kv_cache": _rollout_cache(config, shape)}
        if config.warm_starts:
            update = max(update, _warmstart_parts(config, shape), key=lambda p: sum(p.values()))
        return {"process": _CPU_PROCESS, **update, "retriever": retriever}
    processes, is_sharded = config.hardware.processes, config.hardware.sharding != "none"
    # Every process reads a policy; where weights are sharded all but one drop it before they read
    # the reference. Checkpoints are gathered later.
    has_reference = config.loss.kl_weight > 0
    copies = processes + has_reference if is_sharded else processes * (1 + has_reference)
    moments = {"loading": copies * 4 * shape.parameters}
    moments["checkpoint"] = checkpoint_bytes(config, shape) if is_sharded else 0
    largest = max(moments, key=lambda name: moments[name])
    return {"process": processes * _GPU_PROCESS, largest: moments[largest], "retriever": retriever}


def _warmstart_parts(config: ExperimentConfig, shape: ModelShape) -> dict[str, int]:
    """Bytes by part while the start policy is trained: a batch at once, and its logits, their copy
    in 32 bits and two gradients.
    """
    width = round(usual_length(config.rollout))
    tokens = config.warmstart.batch_size * width
    kept = tokens * _kept(config, shape, width, recomputed=False)
    logits = 16 * tokens * (shape.matrix // shape.hidden)
    update = update_parts(config, shape)
    return update | {"reference": 0, "activations": kept, "logits": logits}


def checkpoint_bytes(config: ExperimentConfig, shape: ModelShape) -> int:
    """Bytes of one checkpoint: weights in 32 bits, under FSDP2 in its own form too, and moments."""
    copies = 2 if config.hardware.sharding == "fsdp2" else 1
    return copies * 4 * shape.parameters + _moments(config, shape)


def _moments(config: ExperimentConfig, shape: ModelShape) -> int:
    if config.training.optimizer == "adamw-8bit":
        return 2 * shape.parameters + 6 * shape.matrix
    return 8 * shape.parameters


def key_value_bytes(config: ExperimentConfig, shape: ModelShape) -> int:
    """Bytes of the KV cache for one token, on all GPUs that share a copy of the policy."""
    half = config.sampler.backend == "vllm" or config.training.dtype == "bfloat16"
    return 2 * shape.layers * shape.key_value_width * (2 if half else 4)


def _rollout_cache(config: ExperimentConfig, shape: ModelShape) -> int:
    """The transformers sampler keeps the whole rollout in one cache."""
    rows = config.trajectories_per_rollout // config.world_size
    return rows * config.rollout.max_total_tokens * key_value_bytes(config, shape)


def index_bytes(
    settings: DenseConfig, passages: int = WIKIPEDIA_PASSAGES, dimension: int = E5_DIMENSION
) -> int:
    """Bytes of the FAISS index of `settings`, in memory and as a file.

    Numbers take 4 bytes. A node of `hnsw` has about 2 M + 1 links of 4 bytes and 12 of its own.
    """
    links = 4 * (2 * settings.hnsw_neighbours + 1) + 12 if settings.index == "hnsw" else 0
    return passages * (4 * dimension + links)
