"""One frozen `ExperimentConfig` owns every value a user can set.

It checks its values, alone and against each other, whenever one is made. Sizes are derived here and
nowhere else: a *step* is one rollout and all of its updates, an *update* is one optimizer step on
one mini-batch.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from operator import attrgetter
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


# What a value asks of another key, and why.
_ASKED = (
    ("loss.ratio=sequence", "loss.aggregate=seq-mean-token-mean", "GSPO weighs sequences alike"),
    ("loss.surrogate=cispo", "loss.ratio=token", "it bounds the weights of single tokens"),
    ("loss.surrogate=cispo", "loss.aggregate=token-mean", "it averages over tokens"),
    ("loss.surrogate=cispo", "loss.clip_low=1.0", "it bounds weights from above only"),
    ("loss.surrogate=cispo", "loss.dual_clip=null", "it bounds weights once"),
    (
        *("loss.advantage_mean=batch", "loss.advantage_std=batch or none"),
        "a group of equal rewards has no spread",
    ),
    (
        *("loss.mask_truncated=true", "loss.aggregate=token-mean or token-mean-micro"),
        "what is left out would count as sequences",
    ),
    (
        *("loss.aggregate=token-mean-micro", "training.max_tokens_per_micro_batch=null"),
        "the objective is a mean of each micro-batch",
    ),
    ("sampler.backend=vllm", "sampler.rounding=none", "its weights are its own"),
    ("world.name=files", "training.warmstart=false", "such questions have no scripted traces"),
)
_VLLM_MAX_TEMPERATURE = 2


def _misfits(config: ExperimentConfig) -> Iterator[str]:
    """Values that do not fit together."""
    for given, asked, why in _ASKED:
        (key, _, value), (other, _, fitting) = given.partition("="), asked.partition("=")
        before, seen = (json.dumps(attrgetter(k)(config)).strip('"') for k in (key, other))
        if before == value and seen not in fitting.split(" or "):
            yield f"{given} with {other}={seen}: {why}; set {asked}"
    for what, size, of, divisor in _multiples(config):
        if size % divisor:
            yield f"{what}={size} is not a multiple of {of}={divisor}: change one of them"
    rollout, loss, updates = config.rollout, config.loss, config.training.updates_per_rollout
    if rollout.max_searches < 1:
        yield "rollout.max_searches is 0: an agent in training needs at least 1"
    if rollout.max_total_tokens <= rollout.max_action_tokens:
        yield (
            f"rollout.max_total_tokens={rollout.max_total_tokens} leaves no room beside "
            f"rollout.max_action_tokens={rollout.max_action_tokens}: raise it"
        )
    if loss.dual_clip is not None and loss.dual_clip < 1 + loss.clip_high:
        yield (
            f"loss.dual_clip={loss.dual_clip} cuts into the clip range, which ends at 1 + "
            f"loss.clip_high={1 + loss.clip_high:g}: set at least that, or null"
        )
    if config.sampler.backend == "vllm" and rollout.temperature > _VLLM_MAX_TEMPERATURE:
        yield (
            f"rollout.temperature={rollout.temperature} with sampler.backend=vllm: vLLM "
            f"takes at most {_VLLM_MAX_TEMPERATURE}"
        )
    if loss.llds_weight > 0 and updates < 2:
        yield (
            f"loss.llds_weight > 0 with training.updates_per_rollout={updates} is always zero (no "
            "update has moved the policy yet): set training.updates_per_rollout >= 2"
        )


def _multiples(config: ExperimentConfig) -> list[tuple[str, int, str, int]]:
    """Sizes, and what each has to be a multiple of: of 1 where a rule does not apply."""
    policy, rollout, sampler = config.policy, config.rollout, config.sampler
    training, per_update, world = config.training, config.mini_batch_size, config.world_size
    sampled = config.trajectories_per_rollout * training.epochs
    group = rollout.group_size if training.mini_batches == "groups" else 1
    at_once = 1 if training.max_tokens_per_micro_batch else training.micro_batch_size
    colocated = sampler.backend == "vllm" and sampler.mode == "colocate"
    shared = sampler.tensor_parallel if colocated else 1
    sharing = world if rollout.sampling_rounds > 1 else 1
    updates, resumable = training.updates_per_rollout, training.resumable_every or 0
    update = "trajectories per update (set by training.updates_per_rollout)"
    return [
        ("policy.heads", policy.heads, "policy.key_value_heads", policy.key_value_heads),
        # Rotary positions pair the numbers of a head up.
        ("policy.hidden_size", policy.hidden_size, "2 × policy.heads", 2 * policy.heads),
        ("trajectories × training.epochs", sampled, "training.updates_per_rollout", updates),
        ("training.updates_per_rollout", updates, "training.epochs", training.epochs),
        (update, per_update, "rollout.group_size (or set training.mini_batches=shuffled)", group),
        (update, per_update, "training.micro_batch_size × processes", at_once * world),
        ("processes", world, "sampler.tensor_parallel", shared),
        ("rollout.prompts_per_rollout", rollout.prompts_per_rollout, "processes", sharing),
        ("training.resumable_every", resumable, "training.save_every", training.save_every),
    ]
