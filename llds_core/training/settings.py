"""From an `ExperimentConfig` to the trainer's `SearchGRPOConfig`: the one place where TRL's options
are set, those included whose defaults would change the objective without a word.

`training.dtype=bfloat16` is mixed precision: products of the forward and backward passes run in
bfloat16 (autocast); weights, gradients and moments stay in float32, as under the official code's
FSDP, and log-probabilities are never rounded to 16 bits. Old, reference and new log-probabilities
come from the same modules, weights and autocast on the same rows and widths, so that the gate
canary (`gated_fraction_first`) is exactly 0 wherever a kernel gives equal outputs for equal inputs.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers.training_args import OptimizerNames
from trl import GRPOConfig

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError
from llds_core.seeding import child_seed

_OPTIMIZERS = {"adamw": OptimizerNames.ADAMW_TORCH_FUSED, "adamw-8bit": OptimizerNames.ADAMW_BNB}
_LOSS_TYPES = {
    "token-mean": "dapo",
    "token-mean-micro": "bnpo",
    "seq-mean-token-mean": "grpo",
    "constant": "dr_grpo",
}


class OneGPUMixin:
    """Arguments of a trainer that uses one GPU a process.

    transformers gives a lone process all visible GPUs and wraps the model in `nn.DataParallel`,
    which neither TRL nor a data set of whole batches allows.
    """

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one, or none."""
        return min(1, cast(Any, super()).n_gpu)


@dataclass
class SearchGRPOConfig(OneGPUMixin, GRPOConfig):
    """`GRPOConfig` with the LLDS penalty (see `LossConfig`) and rollout-level
    bookkeeping.
    """

    updates_per_rollout: int = 1
    """Optimizer steps per rollout, all epochs."""
    mini_batches: str = "groups"
    """Which rows share an update (see `TrainingConfig`)."""
    llds_weight: float = 0.0
    """Weight of the LLDS penalty; 0 measures it only."""
    llds_gate: str = "action"
    llds_normalizer: str = "preserved"
    llds_preserve: str = "nonnegative"
    llds_gate_threshold: float = 0.0
    llds_answer_weight: float = 1.0
    """Penalty weight of answer tokens (LLDS-MA)."""
    llds_answer_ramp: str = "none"
    negative_advantages: bool = True
    """False: the surrogate's advantages are cut at 0."""
    kl_clamp: float | None = None
    """k3 above this value has no gradient; None: never."""
    root_seed: int = 0
    max_nonfinite_updates: int = 5
    """Skipped updates in a row that end the run."""

    @property
    def micro_batch_means(self) -> bool:
        """Whether each micro-batch is a mean of its own, as in the official code."""
        return self.loss_type == _LOSS_TYPES["token-mean-micro"]

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device = super().device
        # accelerate numbers the CPUs of several processes, which `torch.load` does not understand.
        return torch.device("cpu") if device.type == "cpu" else device

    def __post_init__(self) -> None:
        super().__post_init__()
        steps_per_generation = cast(int, self.steps_per_generation)  # TRL has set it
        per_epoch, rest = divmod(steps_per_generation, self.gradient_accumulation_steps)
        if rest or per_epoch * self.num_iterations != self.updates_per_rollout:
            raise ConfigError(
                f"updates_per_rollout={self.updates_per_rollout}, but steps_per_generation="
                f"{self.steps_per_generation}, gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} and num_iterations={self.num_iterations} make "
                f"{per_epoch * self.num_iterations}: set them to agree"
            )
        if self.llds_weight > 0 and self.updates_per_rollout < 2:
            raise ConfigError(
                "llds_weight > 0 with updates_per_rollout=1 is always zero: set "
                "updates_per_rollout >= 2"
            )
        if self.save_strategy == "steps" and self.save_steps % self.updates_per_rollout:
            raise ConfigError(
                f"save_steps={self.save_steps} is not a multiple of updates_per_rollout="
                f"{self.updates_per_rollout}: a checkpoint inside a rollout could not be resumed "
                "exactly"
            )


def search_grpo_config(config: ExperimentConfig, seed: int, output_dir: Path) -> SearchGRPOConfig:
    """Derive the trainer's configuration from `config`; checkpoints go to `output_dir`."""
    training, loss, rollout = config.training, config.loss, config.rollout
    if training.optimizer == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.optimizer=adamw-8bit needs the package bitsandbytes: run pip install "
            "bitsandbytes, or set training.optimizer=adamw"
        )
    updates = training.updates_per_rollout
    # Trajectories that all processes together take through one forward and backward pass.
    micro_batch = training.micro_batch_size * config.world_size
    on_gpu = torch.cuda.is_available()
    return SearchGRPOConfig(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        bf16=training.dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        # torch advises against the reentrant variant, which needs an input with gradients.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        optim=_OPTIMIZERS[training.optimizer],
        # Gradients of a whole model in 32 bits would wait on each GPU for the last micro-batch.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if config.hardware.sharding == "fsdp2"
        else None,
        # batches
        num_generations=rollout.group_size,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=config.mini_batch_size // micro_batch,
        steps_per_generation=config.trajectories_per_rollout // micro_batch,
        num_iterations=training.epochs,
        mini_batches=training.mini_batches,
        updates_per_rollout=updates,
        shuffle_dataset=False,  # the data set arrives in the run's own order
        max_completion_length=rollout.max_action_tokens * (rollout.max_searches + 1),
        # objective
        loss_type=_LOSS_TYPES[loss.aggregate],
        importance_sampling_level=loss.ratio,
        scale_rewards=loss.advantage_std,
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        beta=loss.kl_weight,
        kl_clamp=loss.kl_clamp,
        use_bias_correction_kl=False,
        entropy_coef=loss.entropy_weight,
        vllm_importance_sampling_correction=False,
        mask_truncated_completions=False,
        temperature=1.0,  # of the objective's log-probabilities, whatever sampling uses
        llds_weight=loss.llds_weight,
        llds_gate=loss.gate,
        llds_normalizer=loss.normalizer,
        llds_preserve=loss.preserve,
        llds_gate_threshold=loss.gate_threshold,
        llds_answer_weight=loss.answer_weight,
        llds_answer_ramp=loss.answer_ramp,
        negative_advantages=loss.negative_advantages,
        # optimisation
        max_steps=training.steps * updates,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=training.warmup_steps * updates,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        max_nonfinite_updates=training.max_nonfinite_updates,
        # bookkeeping
        save_strategy="steps",
        save_steps=training.save_every * updates,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=child_seed(seed, "trainer") % 2**31,
        root_seed=seed,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **_sampler_settings(config, on_gpu=on_gpu),
    )


def _sampler_settings(config: ExperimentConfig, *, on_gpu: bool) -> dict[str, Any]:
    """TRL's options for its vLLM engine; none with the transformers sampler."""
    sampler = config.sampler
    if sampler.backend != "vllm":
        return {}
    chosen = {"use_vllm": True, "vllm_mode": sampler.mode}
    if sampler.mode == "server":
        return chosen | {"vllm_server_base_url": sampler.server_url}
    return chosen | {
        "vllm_gpu_memory_utilization": sampler.memory_share,
        "vllm_tensor_parallel_size": sampler.tensor_parallel,
        "vllm_max_model_length": config.rollout.max_total_tokens,
        # Sleeping frees GPU memory for the updates; vLLM cannot sleep on a CPU.
        "vllm_enable_sleep_mode": on_gpu,
    }
