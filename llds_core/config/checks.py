"""What a configuration must fulfil: the range of every number, and sizes that fit together."""

from typing import TYPE_CHECKING

from llds_core.errors import ConfigError

if TYPE_CHECKING:
    from llds_core.config.load import ExperimentConfig

_VLLM_MAX_TEMPERATURE = 2


def validate(config: "ExperimentConfig") -> None:
    """Check every number against its range, and sizes against each other.

    Raises:
        ConfigError: naming the key, the value seen and what to do.
    """
    _check_ranges(config)
    training, loss = config.training, config.loss
    total = config.trajectories_per_rollout * training.epochs
    if total % training.updates_per_rollout:
        raise ConfigError(
            f"{config.trajectories_per_rollout} trajectories × {training.epochs} epochs do not "
            "divide into "
            f"training.updates_per_rollout={training.updates_per_rollout}: choose a divisor of "
            f"{total}"
        )
    if training.updates_per_rollout % training.epochs:
        raise ConfigError(
            f"training.updates_per_rollout={training.updates_per_rollout} is not a multiple of "
            f"training.epochs={training.epochs}: every epoch makes the same number of updates"
        )
    world = config.world_size
    if config.mini_batch_size % (training.micro_batch_size * world):
        processes = f" on {world} processes" if world > 1 else ""
        share = "its quotient by the processes" if world > 1 else f"{config.mini_batch_size}"
        raise ConfigError(
            f"training.micro_batch_size={training.micro_batch_size}{processes} does not divide the "
            f"mini-batch of {config.mini_batch_size} trajectories: choose a divisor of {share}"
        )
    if config.hardware.sharding == "zero3" and config.sampler.backend == "transformers":
        raise ConfigError(
            "hardware.sharding=zero3 with sampler.backend=transformers has no whole policy to "
            "sample from: set sampler.backend=vllm, or hardware.sharding=fsdp2"
        )
    sampler = config.sampler
    colocated = sampler.backend == "vllm" and sampler.mode == "colocate"
    if sampler.backend == "vllm" and config.rollout.temperature > _VLLM_MAX_TEMPERATURE:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature} with sampler.backend=vllm: vLLM "
            f"takes at most {_VLLM_MAX_TEMPERATURE}"
        )
    if colocated and world % sampler.tensor_parallel:
        raise ConfigError(
            f"sampler.tensor_parallel={sampler.tensor_parallel} does not divide the {world} "
            "training processes that a colocated vLLM shares: choose a divisor of "
            f"{world} or sampler.mode=server"
        )
    if training.warmstart and config.world.name == "files":
        raise ConfigError(
            "training.warmstart=true with world.name=files: questions from files have no scripted "
            "traces; set training.warmstart=false"
        )
    if loss.llds_weight > 0 and training.updates_per_rollout < 2:
        raise ConfigError(
            "loss.llds_weight > 0 with training.updates_per_rollout=1 is always zero (no update "
            "has moved the policy "
            "yet): set training.updates_per_rollout >= 2"
        )
    if loss.ratio == "sequence" and loss.aggregate != "seq-mean-token-mean":
        raise ConfigError(
            f"loss.ratio=sequence (GSPO) with loss.aggregate={loss.aggregate} weights sequences by "
            "length: set "
            "loss.aggregate=seq-mean-token-mean"
        )
    if (
        config.policy.hidden_size % config.policy.heads
        or config.policy.heads % config.policy.key_value_heads
    ):
        raise ConfigError(
            f"policy.hidden_size={config.policy.hidden_size}, heads={config.policy.heads} and "
            "key_value_heads="
            f"{config.policy.key_value_heads} do not divide: hidden_size by heads, heads by "
            "key_value_heads"
        )
    if config.policy.hidden_size // config.policy.heads % 2:
        raise ConfigError(
            f"policy.hidden_size={config.policy.hidden_size} / heads={config.policy.heads} is odd, "
            "and rotary positions pair numbers up: choose sizes with an even quotient"
        )
    if config.rollout.max_total_tokens <= config.rollout.max_action_tokens:
        raise ConfigError(
            f"rollout.max_total_tokens={config.rollout.max_total_tokens} leaves no room beside "
            f"rollout.max_action_tokens={config.rollout.max_action_tokens}: raise it"
        )


# Closed ranges (low, high) of every numeric value; None leaves a side open. A test holds this
# complete.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "world.seed": (0, None),
    "world.cities": (1, None),
    "world.dev_fraction": (0, 0.5),
    "world.test_fraction": (0, 0.5),
    "retrieval.top_k": (1, 100),
    "retrieval.title_weight": (1, 10),
    "retrieval.failure_rate": (0, 1),
    "dense.max_tokens": (8, 8192),
    "dense.batch_size": (1, None),
    "dense.hnsw_neighbours": (4, 256),
    "dense.hnsw_build_depth": (8, None),
    "dense.hnsw_search_depth": (1, None),
    "dense.ivf_lists": (1, None),
    "dense.ivf_probes": (1, None),
    "dense.pq_bytes": (1, 1024),
    "dense.pq_rescore": (1, 100),
    "dense.shard_passages": (1, None),
    "service.timeout_seconds": (0.01, 3600),
    "service.tries": (1, 100),
    "service.backoff_seconds": (0, 60),
    "service.request_queries": (1, None),
    "service.cache_size": (0, None),
    "service.batch_window_ms": (0, 1000),
    "service.max_queries": (1, None),
    "service.max_query_chars": (1, None),
    "service.max_top_k": (1, 10_000),
    "service.max_hits": (1, None),
    "service.max_body_mib": (0.001, 1024),
    "policy.vocab_size": (300, None),
    "policy.hidden_size": (8, None),
    "policy.intermediate_size": (8, None),
    "policy.layers": (1, None),
    "policy.heads": (1, None),
    "policy.key_value_heads": (1, None),
    "policy.initializer_range": (0, 1),
    "warmstart.seed": (0, None),
    "warmstart.steps": (1, None),
    "warmstart.batch_size": (1, None),
    "warmstart.learning_rate": (0, 1),
    "warmstart.warmup_steps": (0, None),
    "warmstart.weight_decay": (0, 1),
    "warmstart.observation_weight": (0, 1),
    "warmstart.early_answer_rate": (0, 1),
    "warmstart.wrong_answer_rate": (0, 1),
    "warmstart.failure_rate": (0, 1),
    "warmstart.retry_rate": (0, 0.95),
    "warmstart.save_every": (1, None),
    "warmstart.threads": (1, 256),
    "rollout.prompts_per_rollout": (1, None),
    "rollout.group_size": (2, None),
    "rollout.max_searches": (1, 20),
    "rollout.max_action_tokens": (1, None),
    "rollout.max_observation_tokens": (1, None),
    "rollout.max_total_tokens": (2, None),
    "rollout.temperature": (0.01, 10),
    "rollout.top_p": (0.01, 1),
    "sampler.tensor_parallel": (1, 64),
    "sampler.memory_share": (0.01, 0.95),
    "sampler.gap_alarm": (0, None),
    "reward.structure": (0, 1),
    "reward.final": (0, 1),
    "reward.retrieval": (0, 1),
    "loss.clip_low": (0, 1),
    "loss.clip_high": (0, None),
    "loss.kl_weight": (0, None),
    "loss.kl_clamp": (1e-6, None),
    "loss.entropy_weight": (0, None),
    "loss.llds_weight": (0, None),
    "loss.gate_threshold": (0, None),
    "loss.answer_weight": (0, 1),
    "training.steps": (1, None),
    "training.updates_per_rollout": (1, None),
    "training.epochs": (1, None),
    "training.micro_batch_size": (1, None),
    "training.learning_rate": (0, 1),
    "training.warmup_steps": (0, None),
    "training.weight_decay": (0, 1),
    "training.max_grad_norm": (1e-9, None),
    "training.save_every": (1, None),
    "training.keep_checkpoints": (1, None),
    "training.max_nonfinite_updates": (1, None),
    "training.trajectories_per_step": (0, None),
    "training.threads": (1, 256),
    "hardware.nodes": (1, 1024),
    "hardware.processes": (1, 64),
    "hardware.gpu_memory_gib": (1, 1024),
    "diagnostics.window": (1, 100),
    "evaluation.questions": (1, None),
    "evaluation.batch_size": (1, None),
    "evaluation.samples": (0, None),
    "evaluation.max_searches": (1, 20),
}


def _check_ranges(config: "ExperimentConfig") -> None:
    for path, (low, high) in RANGES.items():
        section, key = path.split(".")
        value = getattr(getattr(config, section), key)
        if value is None:
            continue
        # Written so that NaN fails too.
        if not (
            (low is None or value >= low) and (high is None or value <= high)
        ) or value == float("inf"):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{path} is {value}: it takes a number {bounds}")
