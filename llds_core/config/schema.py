"""One frozen `ExperimentConfig` owns every value a user can set.

It checks its values, alone and against each other, whenever one is made. Sizes are derived here and
nowhere else: a *step* is one rollout and all of its updates, an *update* is one optimizer step on
one mini-batch.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from llds_core.config import sections
from llds_core.config.checked import checked
from llds_core.config.given import Name
from llds_core.config.objective import LossConfig

_VLLM_MAX_TEMPERATURE = 2


@checked
class ExperimentConfig:
    """A whole experiment."""

    profile: Name
    method: Name
    world: sections.WorldConfig = sections.WorldConfig()
    data: sections.DataConfig = sections.DataConfig()
    retrieval: sections.RetrievalConfig = sections.RetrievalConfig()
    dense: sections.DenseConfig = sections.DenseConfig()
    service: sections.ServiceConfig = sections.ServiceConfig()
    policy: sections.PolicyConfig = sections.PolicyConfig()
    warmstart: sections.WarmstartConfig = sections.WarmstartConfig()
    rollout: sections.RolloutConfig = sections.RolloutConfig()
    sampler: sections.SamplerConfig = sections.SamplerConfig()
    reward: sections.RewardConfig = sections.RewardConfig()
    loss: LossConfig = LossConfig()
    training: sections.TrainingConfig = sections.TrainingConfig()
    hardware: sections.HardwareConfig = sections.HardwareConfig()
    diagnostics: sections.DiagnosticsConfig = sections.DiagnosticsConfig()
    evaluation: sections.EvaluationConfig = sections.EvaluationConfig()

    def __post_init__(self) -> None:
        for problem in _misfits(self):
            raise ValueError(problem)

    @property
    def name(self) -> str:
        """`<profile>/<method>`."""
        return f"{self.profile}/{self.method}"

    @property
    def warm_starts(self) -> bool:
        """Whether runs start from a policy that is first trained on scripted traces."""
        return not self.policy.path or self.training.warmstart

    @property
    def trajectories_per_rollout(self) -> int:
        """Trajectories sampled per step."""
        return self.rollout.prompts_per_rollout * self.rollout.group_size

    @property
    def world_size(self) -> int:
        """Processes of all nodes together."""
        return self.hardware.nodes * self.hardware.processes

    @property
    def mini_batch_size(self) -> int:
        """Trajectories per optimizer step."""
        sampled = self.trajectories_per_rollout * self.training.epochs
        return sampled // self.training.updates_per_rollout

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict; `ExperimentConfig(**values)` makes the same configuration of it."""
        return dataclasses.asdict(self)

    def hash(self, *names: str) -> str:
        """Twelve hex digits that change with any value, or any of the sections `names` if given."""
        values = self.to_dict()
        chosen = {key: values[key] for key in names or values}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def _misfits(config: ExperimentConfig) -> Iterator[str]:
    """Values of several sections that do not fit together."""
    training, sampler, world = config.training, config.sampler, config.world_size
    updates, total = training.updates_per_rollout, config.trajectories_per_rollout * training.epochs
    if config.rollout.max_searches < 1:
        yield "rollout.max_searches is 0: an agent in training needs at least 1"
    if total % updates:
        yield (
            f"{config.trajectories_per_rollout} trajectories × {training.epochs} epochs do not "
            f"divide into training.updates_per_rollout={updates}: choose a divisor of {total}"
        )
    if updates % training.epochs:
        yield (
            f"training.updates_per_rollout={updates} is not a multiple of training.epochs="
            f"{training.epochs}: every epoch makes the same number of updates"
        )
    if training.mini_batches == "groups" and config.mini_batch_size % config.rollout.group_size:
        yield (
            f"mini-batches of {config.mini_batch_size} trajectories do not hold whole groups of "
            f"rollout.group_size={config.rollout.group_size}: choose training.updates_per_rollout "
            "so that they do, or set training.mini_batches=shuffled"
        )
    budget = training.max_tokens_per_micro_batch
    if config.mini_batch_size % ((1 if budget else training.micro_batch_size) * world):
        size = "" if budget else f"training.micro_batch_size={training.micro_batch_size} × "
        yield (
            f"{size}{world} processes does not divide the mini-batch of trajectories: choose a "
            f"divisor of {config.mini_batch_size}"
        )
    if budget and config.loss.aggregate == "token-mean-micro":
        yield (
            f"training.max_tokens_per_micro_batch={budget} with loss.aggregate=token-mean-micro "
            "changes the objective, whose means are those of micro-batches: set it to null"
        )
    if config.rollout.prompt == "data" and config.world.name != "files":
        yield (
            f"rollout.prompt=data with world.name={config.world.name}: only downloaded files bring "
            "a prompt; set rollout.prompt=search-r1"
        )
    if sampler.backend == "vllm" and sampler.rounding != "none":
        yield (
            f"sampler.rounding={sampler.rounding} with sampler.backend=vllm: its weights are its "
            "own; set sampler.rounding=none"
        )
    if sampler.backend == "vllm" and config.rollout.temperature > _VLLM_MAX_TEMPERATURE:
        yield (
            f"rollout.temperature={config.rollout.temperature} with sampler.backend=vllm: vLLM "
            f"takes at most {_VLLM_MAX_TEMPERATURE}"
        )
    colocated = sampler.backend == "vllm" and sampler.mode == "colocate"
    if colocated and world % sampler.tensor_parallel:
        yield (
            f"sampler.tensor_parallel={sampler.tensor_parallel} does not divide the {world} "
            "training processes that a colocated vLLM shares: choose a divisor of "
            f"{world} or sampler.mode=server"
        )
    if training.warmstart and config.world.name == "files":
        yield (
            "training.warmstart=true with world.name=files: questions from files have no scripted "
            "traces; set training.warmstart=false"
        )
    if config.rollout.sampling_rounds > 1 and config.rollout.prompts_per_rollout % world:
        yield (
            f"rollout.sampling_rounds={config.rollout.sampling_rounds} replaces groups, which "
            f"{world} processes do not share evenly: choose a multiple of {world} for "
            f"rollout.prompts_per_rollout={config.rollout.prompts_per_rollout}"
        )
    if config.loss.llds_weight > 0 and updates < 2:
        yield (
            f"loss.llds_weight > 0 with training.updates_per_rollout={updates} is always zero (no "
            "update has moved the policy yet): set training.updates_per_rollout >= 2"
        )
