"""One frozen `ExperimentConfig` owns every value a user can set.

It checks its values, alone and against each other, whenever one is made. Sizes are derived here and
nowhere else: a *step* is one rollout and all of its updates, an *update* is one optimizer step on
one mini-batch.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, StrictBool

from llds_core.config import sections
from llds_core.config.checked import Number, checked
from llds_core.config.given import Name


@checked
class LossConfig:
    """The objective, put together from these parts (docs/objectives.md): surrogate, KL, entropy
    bonus, and the penalties LLDS and Lp-Reg.
    """

    advantage_mean: Literal["group", "batch"] = "group"
    advantage_std: Literal["group", "batch", "none"] = "group"
    aggregate: Literal["token-mean", "token-mean-micro", "seq-mean-token-mean", "constant"] = (
        "token-mean"
    )
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    """`cispo` clips the weight of a token, from above only, and never its gradient."""
    clip_low: Number = Field(default=0.2, ge=0, le=1)
    clip_high: Number = Field(default=0.2, ge=0)
    dual_clip: Number | None = Field(default=None, ge=1)
    """Largest ratio at negative advantages; null does not bound it."""
    kl_weight: Number = Field(default=0.001, ge=0)
    kl_clamp: Number | None = Field(default=None, ge=1e-6)
    """k3 above this value pulls no more, as in the official code (10); null never lets go."""
    entropy_weight: Number = Field(default=0.0, ge=0)
    llds_weight: Number = Field(default=0.0, ge=0)
    gate: Literal["action", "response", "token"] = "action"
    normalizer: Literal["preserved", "all"] = "preserved"
    preserve: Literal["nonnegative", "positive"] = "nonnegative"
    gate_threshold: Number = Field(default=0.0, ge=0)
    answer_weight: Number = Field(default=1.0, ge=0, le=1)
    answer_ramp: Literal["none", "paper", "code"] = "none"
    """LLDS-MA: how the answer weight follows the mean number of searches."""
    negative_advantages: StrictBool = True
    """False sets negative advantages of the surrogate to zero: incorrect responses push nothing
    down."""
    mask_truncated: StrictBool = False
    """Overlong filtering: trajectories that a limit has ended, not an answer, leave the loss."""
    lp_reg_weight: Number = Field(default=0.0, ge=0)
    lp_reg_kl: Literal["full", "token"] = "full"
    """Divergence from the proxy: over the vocabulary (paper), or k3 of the token (code)."""
    lp_reg_share: Number = Field(default=0.01, ge=0, le=1)
    """Share of the tokens that count as unlikely."""
    lp_reg_min_p: Number = Field(default=0.02, ge=0, le=0.99)
    """Share of the largest probability up to which the proxy takes a token for noise."""

    def __post_init__(self) -> None:
        for problem in _wrong_objectives(self):
            raise ValueError(problem)


def _wrong_objectives(loss: LossConfig) -> Iterator[str]:
    """Parts of an objective that do not go together."""
    if loss.ratio == "sequence" and loss.aggregate != "seq-mean-token-mean":
        yield (
            f"loss.ratio=sequence (GSPO) with loss.aggregate={loss.aggregate} weights "
            "sequences by length: set loss.aggregate=seq-mean-token-mean"
        )
    if loss.surrogate == "cispo":
        needed = {"ratio": "token", "aggregate": "token-mean", "clip_low": 1, "dual_clip": None}
        for key, value in needed.items():
            if (seen := getattr(loss, key)) != value:
                yield (
                    f"loss.surrogate=cispo with loss.{key}={seen}: it caps the weights of single "
                    f"tokens, from above, and averages over tokens; set loss.{key}="
                    f"{'null' if value is None else value}"
                )
    if loss.dual_clip is not None and loss.dual_clip < 1 + loss.clip_high:
        yield (
            f"loss.dual_clip={loss.dual_clip} cuts into the clip range, which ends at 1 + "
            f"loss.clip_high={1 + loss.clip_high:g}: set at least that, or null"
        )
    if loss.advantage_mean == "batch" and loss.advantage_std == "group":
        yield (
            "loss.advantage_mean=batch with loss.advantage_std=group scales by a spread that a "
            "group of equal rewards does not have: set loss.advantage_std=batch or none"
        )
    if loss.mask_truncated and loss.aggregate in ("seq-mean-token-mean", "constant"):
        yield (
            f"loss.mask_truncated=true with loss.aggregate={loss.aggregate} would count what is "
            "left out as sequences: set loss.aggregate=token-mean"
        )


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
