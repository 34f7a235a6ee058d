"""From an `ExperimentConfig` to the trainer's `SearchGRPOConfig`: the one place where TRL's options
are set, those included whose defaults would change the objective without a word.

`training.dtype=bfloat16` is mixed precision: products of the forward and backward passes run in
bfloat16 (autocast); weights, gradients and moments stay in float32, as under the official code's
FSDP: of eight bits, updates of 1e-6 would be rounded away. Log-probabilities are never rounded to
16 bits. Old, reference and new ones come from the same modules, weights and autocast on the same
rows and widths, so that the gate canary (`gated_fraction_first`) is exactly 0 wherever a kernel
gives equal outputs for equal inputs.

What TRL leaves open about its vLLM engine stands here too: whether it can start, its dtype and
log-prob mode.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers.training_args import OptimizerNames
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from llds_core.config import ExperimentConfig, LossConfig, SamplerConfig, TrainingConfig
from llds_core.config.sections import DiagnosticsConfig
from llds_core.config.seeding import child_seed
from llds_core.errors import ConfigError, SamplerError
from llds_core.machine.vllm_server import logprobs_mode, server_command, spare_loopback
from llds_core.retrieval.client import ask_health
from llds_core.rollout.vllm_sampler import (
    MOST_SEQUENCES,
    ColocatedEngine,
    Engine,
    ServerEngine,
    require_vllm,
)

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
    """`GRPOConfig` with the sections it was made from, of which TRL knows a part."""

    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    root_seed: int = 0

    @property
    def micro_batch_means(self) -> bool:
        """Whether each micro-batch is a mean of its own, as in the official code."""
        return self.loss.aggregate == "token-mean-micro"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device = super().device
        # accelerate numbers the CPUs of several processes, which `torch.load` does not understand.
        return torch.device("cpu") if device.type == "cpu" else device


def search_grpo_config(config: ExperimentConfig, seed: int, output_dir: Path) -> SearchGRPOConfig:
    """Derive the trainer's configuration from `config`; checkpoints go to `output_dir`."""
    training, loss, rollout, sampler = config.training, config.loss, config.rollout, config.sampler
    if training.optimizer == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.optimizer=adamw-8bit needs the package bitsandbytes: run pip install "
            "bitsandbytes, or set training.optimizer=adamw"
        )
    updates = training.updates_per_rollout
    # Trajectories that all processes together train on before TRL counts a micro-batch: all of a
    # mini-batch where the trainer itself cuts it by tokens.
    by_tokens = training.max_tokens_per_micro_batch is not None
    rows = training.micro_batch_size * config.world_size
    micro_batch = config.mini_batch_size if by_tokens else rows
    on_gpu, is_cispo = torch.cuda.is_available(), loss.surrogate == "cispo"
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
        per_device_train_batch_size=micro_batch // config.world_size,
        gradient_accumulation_steps=config.mini_batch_size // micro_batch,
        steps_per_generation=config.trajectories_per_rollout // micro_batch,
        training=training,
        sampler=sampler,
        diagnostics=config.diagnostics,
        shuffle_dataset=False,  # the data set arrives in the run's own order
        max_completion_length=rollout.max_action_tokens * (rollout.max_searches + 1),
        # objective
        loss=loss,
        num_iterations=training.epochs,
        loss_type="cispo" if is_cispo else _LOSS_TYPES[loss.aggregate],
        importance_sampling_level=loss.ratio,
        scale_rewards=loss.advantage_std,
        epsilon=loss.clip_low,
        # TRL's cispo takes the largest weight itself.
        epsilon_high=1 + loss.clip_high if is_cispo else loss.clip_high,
        delta=loss.dual_clip,
        beta=loss.kl_weight,
        entropy_coef=loss.entropy_weight,
        use_bias_correction_kl=False,
        vllm_importance_sampling_correction=False,  # the trainer's own weighs any sampler
        disable_dropout=True,
        # optimisation
        max_steps=training.steps * updates,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=training.warmup_steps * updates,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        # bookkeeping
        save_steps=training.save_every * updates,
        logging_strategy="no",
        disable_tqdm=True,
        seed=child_seed(seed, "trainer") % 2**31,
        root_seed=seed,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        # TRL looks at these where vLLM samples
        use_vllm=sampler.backend == "vllm",
        vllm_mode=sampler.mode,
        vllm_server_base_url=sampler.server_url,
        vllm_gpu_memory_utilization=sampler.memory_share,
        vllm_tensor_parallel_size=sampler.tensor_parallel,
        vllm_max_model_length=rollout.max_total_tokens,
        # Sleeping frees GPU memory for the updates; vLLM cannot sleep on a CPU.
        vllm_enable_sleep_mode=on_gpu,
    )


def check_vllm(config: ExperimentConfig, policy: Path) -> None:
    """Refuse, before anything is loaded, a vLLM sampler that could not start; the advice starts a
    server with the start policy `policy`.
    """
    sampler = config.sampler
    if sampler.backend != "vllm":
        return
    require_vllm()
    if sampler.mode == "server":
        spare_loopback()  # TRL's client, too, asks whatever proxy the environment names
        if ask_health(sampler.server_url).state == "silent":
            raise SamplerError(
                f"no vLLM server answers at sampler.server_url={sampler.server_url}: start it "
                f"with {server_command(config, policy)}"
            )


@contextmanager
def engine_options(config: ExperimentConfig) -> Iterator[None]:
    """Add to the colocated engine that a trainer builds inside this context what TRL does not pass.

    Left alone, vLLM takes the dtype from the checkpoint's file and makes half precision of
    float32, and TRL fixes the log-prob mode for an importance correction that is not used here.
    """
    if config.sampler.backend != "vllm" or config.sampler.mode != "colocate":
        yield
        return
    made = vllm_generation.LLM
    options = {
        "dtype": config.training.dtype,
        "logprobs_mode": logprobs_mode(config.rollout),
        "enable_prefix_caching": True,
    }

    def make(**theirs: Any) -> Any:
        # TRL asks for the whole rollout at once: vLLM would reserve gigabytes for its logits, and
        # refuses more sequences than the tokens it takes in a pass.
        most = min(theirs.get("max_num_seqs", MOST_SEQUENCES), MOST_SEQUENCES)
        return made(**theirs | options | {"max_num_seqs": most})

    vllm_generation.LLM = make
    try:
        yield
    finally:
        vllm_generation.LLM = made


def open_engine(trainer: GRPOTrainer) -> Engine:
    """The engine that TRL built for `trainer`."""
    generation: Any = trainer.vllm_generation
    if generation.mode == "colocate":
        return ColocatedEngine(generation)
    accelerator = trainer.accelerator
    client = (
        generation.vllm_client
        if accelerator.is_main_process
        else VLLMClient(base_url=generation.server_base_url)
    )
    return ServerEngine(client, accelerator.wait_for_everyone)
