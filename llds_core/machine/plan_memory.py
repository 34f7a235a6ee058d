"""Memory of a run by arithmetic, in bytes: what stands on each GPU, on each host, on disk.

    weights       4 N / W            float32, whatever the arithmetic's type; N parameters. ZeRO-3
                                     keeps a bfloat16 copy, 2 N / W
    gradients     4 N / W            reduced after every micro-batch; twice with several processes
                                     and no sharding, for the buckets of DDP
    optimizer     8 N / W            AdamW's two moments; about 2 N / W in 8 bits, embeddings and
                                     norms in 32
    reference     4 N / W            only with a KL weight; TRL loads it in the policy's type
    casts         2 N                bfloat16 copies of the layers' weights: all of them while
                                     autocast holds them; with sharding those gathered at a time,
                                     two layers and both matrices of the vocabulary, and the largest
                                     of their gradients in 32 bits while it is reduced
    activations   see `activations`
    logits        see `logits`
    vLLM          its share of the GPU: weights in bfloat16, working space, KV cache

W is the number of processes when the model is sharded, else 1. Two moments compete for the GPU: the
update, with vLLM asleep, and the rollout, without gradients and activations. TRL shards the
reference policy as a whole, so scoring with it gathers all of its weights; that is counted in the
update although no gradients exist then.

Tests hold this against a CPU: weights, gradients and optimizer are exact, activations within 5 % of
what is kept, and the sum of activations, logits and casts between 15 % below and 40 % above the
highest point of a forward and backward pass, because layers and logits peak one after the other.
Working memory of GPU kernels, fragmentation and CUDA itself are not known here: a GPU is full at
`USABLE` of its memory.
"""

import math
from dataclasses import dataclass

from llds_core.config import ExperimentConfig
from llds_core.machine.model_shapes import ModelShape

GIB = 2**30
USABLE = 0.95
"""Share of a GPU's memory a plan may fill; the rest is fragmentation."""

_FLOAT, _HALF = 4, 2
_CONTEXT = round(1.5 * GIB)  # CUDA, cuBLAS and NCCL of one process
_VLLM_WORKSPACE = round(1.5 * GIB)  # CUDA graphs and activations of the engine
_HOST_PROCESS = 1 * GIB  # Python with torch, transformers and TRL, as measured on a CPU
_HOST_GPU_PROCESS = 4 * GIB  # the same with CUDA and vLLM
_VOCABULARY_TILE, _TOKEN_TILE = 32_768, 4_096  # of TRL's chunked log-probabilities
_ADAM_8BIT_BLOCK = 256  # numbers that share a float32 scale in bitsandbytes
_ADAM_8BIT_SMALLEST = 4_096  # tensors below keep moments of 32 bits


@dataclass(frozen=True)
class GPUMemory:
    """Bytes on one GPU.

    Attributes:
        parts: by name; `kv_cache` and `vllm_weights` stand there during rollouts only.
        update: together during updates.
        rollout: together during rollouts.
    """

    parts: dict[str, int]
    update: int
    rollout: int

    @property
    def total(self) -> int:
        """The larger of the two moments."""
        return max(self.update, self.rollout)


def model_states(
    parameters: int, *, optimizer: str = "adamw", processes: int = 1, small: int = 0
) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer moments on one of `processes` that shard them.

    Args:
        parameters: of the model.
        optimizer: `adamw` or `adamw-8bit`.
        processes: that share the states.
        small: parameters whose moments keep 32 bits: embeddings and small tensors, of `parameters`.
    """
    moments = 2 * _FLOAT * parameters
    if optimizer == "adamw-8bit":
        large = parameters - small
        scales = _FLOAT * math.ceil(large / _ADAM_8BIT_BLOCK)
        moments = 2 * (large + scales) + 2 * _FLOAT * small
    share = {
        "weights": _FLOAT * parameters,
        "gradients": _FLOAT * parameters,
        "optimizer": moments,
    }
    return {name: math.ceil(size / processes) for name, size in share.items()}


def activations(
    shape: ModelShape,
    rows: int,
    width: int,
    *,
    checkpointing: bool,
    mixed: bool,
    padded: bool = True,
) -> int:
    """Bytes that one forward pass keeps for the backward pass.

    A layer keeps, for each token, 6 h + 4 q + 4 i numbers (inputs of both norms before and after
    scaling, inputs of the projections, queries, keys and values of all heads, four of the gated
    network), one softmax sum a head, and its copy of the attention mask, `width` numbers a token.
    Under mixed precision the norms' numbers, 4 h, stay in 32 bits and the inputs of six projections
    are copied. With checkpointing each layer keeps its input alone, and one layer at a time is
    computed again.

    Args:
        shape: of the model.
        rows: sequences of a micro-batch.
        width: tokens of the longest of them.
        checkpointing: recompute layers in the backward pass.
        mixed: bfloat16 arithmetic on float32 weights.
        padded: rows of different lengths, whose attention takes a mask.
    """
    h, q, i = shape.hidden, shape.query_width, shape.intermediate
    if mixed:
        numbers = _FLOAT * 4 * h + _HALF * (5 * h + 4 * q + 4 * i)
        mask = _HALF * width
    else:
        numbers = _FLOAT * (6 * h + 4 * q + 4 * i)
        mask = _FLOAT * width
    layer = numbers + _FLOAT * (shape.heads + 2) + (mask if padded else 0)
    ends = _FLOAT * 3 * h  # final norm and the states that are scored
    kept = shape.layers * _FLOAT * h + layer if checkpointing else shape.layers * layer
    return rows * width * (kept + ends)


def logits(shape: ModelShape, tokens: int, *, mixed: bool) -> int:
    """Bytes that scoring `tokens` policy tokens takes at its highest point, in the backward pass.

    TRL's chunked log-probabilities hold one tile of the logits, as wide as a tile even where the
    vocabulary is smaller, the cast part of the output matrix, and sums for its gradient and that of
    the states in 32 bits. Where input and output matrix are one, the gradients of both meet.
    """
    size = _HALF if mixed else _FLOAT
    tile = min(tokens, _TOKEN_TILE) * _VOCABULARY_TILE * size
    matrices = 2 if shape.tied else 1
    gradients = _FLOAT * shape.hidden * (matrices * shape.vocabulary + tokens)
    cast = min(shape.vocabulary, _VOCABULARY_TILE) * shape.hidden * size if mixed else 0
    return tile + gradients + cast


def gpu_memory(config: ExperimentConfig, shape: ModelShape) -> GPUMemory:
    """Return the memory of each GPU of `config`; `hardware.gpu_memory_gib` must be set."""
    capacity = round((config.hardware.gpu_memory_gib or 0) * GIB)
    parts = update_parts(config, shape)
    parts["context"] = _CONTEXT
    sampler = config.sampler
    engine = cache = vllm_weights = 0
    if sampler.backend == "transformers":
        engine = cache = _transformers_cache(config, shape)
    elif sampler.mode == "colocate":
        vllm_weights = _HALF * shape.parameters // sampler.tensor_parallel
        share = round(sampler.memory_share * capacity)
        cache = max(0, share - vllm_weights - _VLLM_WORKSPACE)
        engine = max(share, vllm_weights + _VLLM_WORKSPACE)
    update = sum(parts.values())
    resident = sum(parts[name] for name in ("weights", "optimizer", "reference", "context"))
    sync = 0
    if config.hardware.sharding != "none":
        # A push of the weights gathers one matrix at a time, the embedding being the largest;
        # transformers samples from the whole policy.
        whole = sampler.backend == "transformers"
        sync = _FLOAT * (shape.parameters if whole else shape.vocabulary * shape.hidden)
    parts |= {"vllm_weights": vllm_weights, "kv_cache": cache}
    return GPUMemory(parts, update, resident + engine + sync)


def update_parts(config: ExperimentConfig, shape: ModelShape) -> dict[str, int]:
    """Bytes by part while a micro-batch of the longest trajectories is trained on."""
    training = config.training
    sharded = config.hardware.sharding != "none"
    processes = config.world_size if sharded else 1
    mixed = training.dtype == "bfloat16"
    parts = model_states(
        shape.parameters,
        optimizer=training.optimizer,
        processes=processes,
        small=shape.vocabulary * shape.hidden + (2 * shape.layers + 1) * shape.hidden,
    )
    if config.hardware.sharding == "zero3":
        parts["weights"] += math.ceil(_HALF * shape.parameters / processes)
    elif not sharded and config.world_size > 1:
        parts["gradients"] *= 2
    compute = _HALF if mixed else _FLOAT
    parts["reference"] = 0
    if config.loss.kl_weight > 0:
        parts["reference"] = math.ceil(_FLOAT * shape.parameters / processes)
    if sharded:
        gathered = 2 * shape.layer_parameters + 2 * shape.vocabulary * shape.hidden
        whole_reference = shape.parameters if config.loss.kl_weight > 0 else 0
        # Gathering the reference and gradients are never there together.
        extra = max(0, whole_reference * compute - parts["gradients"])
        reduced = max(shape.layer_parameters, shape.vocabulary * shape.hidden)
        parts["casts"] = compute * gathered + _FLOAT * reduced + extra
    else:
        parts["casts"] = _HALF * shape.layers * shape.layer_parameters if mixed else 0
    rows, width = training.micro_batch_size, config.rollout.max_total_tokens
    parts["activations"] = activations(
        shape, rows, width, checkpointing=training.gradient_checkpointing, mixed=mixed
    )
    policy_tokens = min(width, config.rollout.max_action_tokens * (config.rollout.max_searches + 1))
    parts["logits"] = logits(shape, rows * policy_tokens, mixed=mixed)
    return parts


def key_value_bytes(config: ExperimentConfig, shape: ModelShape) -> int:
    """Bytes of the KV cache for one token, on all GPUs that share a copy of the policy."""
    half = config.sampler.backend == "vllm" or config.training.dtype == "bfloat16"
    return 2 * shape.layers * shape.key_value_width * (_HALF if half else _FLOAT)


def host_memory(config: ExperimentConfig, shape: ModelShape, retriever: int) -> dict[str, int]:
    """Bytes of main memory by part, on the node that needs most.

    Args:
        config: the experiment.
        shape: of the policy.
        retriever: bytes of the search engine, which stands on one node.
    """
    if config.hardware.gpu_memory_gib is None:
        update = update_parts(config, shape) | {"kv_cache": _transformers_cache(config, shape)}
        return {"process": _HOST_PROCESS, **update, "retriever": retriever}
    model, sharded = _FLOAT * shape.parameters, config.hardware.sharding != "none"
    copies = 2 if config.loss.kl_weight > 0 else 1
    return {
        "process": config.hardware.processes * _HOST_GPU_PROCESS,
        # Where weights are sharded one process reads them for all, and gathers checkpoints.
        "loading": copies * model * (1 if sharded else config.hardware.processes),
        "checkpoint": checkpoint_bytes(config, shape) if sharded else 0,
        "retriever": retriever,
    }


def checkpoint_bytes(config: ExperimentConfig, shape: ModelShape) -> int:
    """Bytes of one checkpoint: weights in 32 bits and the optimizer's moments; under FSDP2 the
    weights in its own form, too.
    """
    states = model_states(shape.parameters, optimizer=config.training.optimizer)
    copies = 2 if config.hardware.sharding == "fsdp2" else 1
    return copies * states["weights"] + states["optimizer"]


def _transformers_cache(config: ExperimentConfig, shape: ModelShape) -> int:
    """The transformers sampler keeps the whole rollout in one cache."""
    rows = config.trajectories_per_rollout // config.world_size
    return rows * config.rollout.max_total_tokens * key_value_bytes(config, shape)
