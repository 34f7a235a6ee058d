"""LLDS as a policy loss of SkyRL, over any loss that is registered there.

    python -m skyrl.train.entrypoints.main_base \\
      trainer.override_entrypoint=llds_core.integrations.skyrl trainer.algorithm.llds_weight=0.2 …

SkyRL adds up what a policy loss returns, over micro-batches and ranks; the advantages were divided
beforehand, by the trainer. The penalty is treated alike: the trainer counts the tokens of each
mini-batch and hands the count to the workers as `loss_fn_config`, SkyRL's own way to change a
loss's settings for one call. So every mini-batch gets its penalty exactly, however it is split.
"""

import copy
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
import torch
from skyrl.backends.skyrl_train.utils.off_policy_correction_utils import (
    off_policy_correction_enabled,
)
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
from skyrl.train.config import AlgorithmConfig, make_config

from llds_core.errors import ConfigError
from llds_core.integrations.adapters import (
    DISPLACEMENT,
    check_penalty,
    counted_tokens,
    displacement_metrics,
    one_per_response,
    penalty_and_sums,
)

_Trainer: Any = object  # what comes next in the order of a subclass, of which types know nothing
_REMEDY = "trainer.algorithm.advantage_estimator=grpo"
_base_loss = cache(PolicyLossRegistry.get)  # which asks a Ray actor at each call


@dataclass
class LldsAlgorithmConfig(AlgorithmConfig):
    """SkyRL's `AlgorithmConfig` with the options of `llds_core.losses.llds_penalty`, checked."""

    policy_loss_type: str = "llds"
    base_loss: str = "regular"  # a registered policy loss; its own settings stay where they are
    llds_weight: float = 0.2  # >= 0
    llds_gate: str = "action"
    llds_normalizer: str = "preserved"
    llds_preserve: str = "nonnegative"
    llds_gate_threshold: float = 0.0  # nats
    llds_denominator: float | None = None  # of the mini-batch; set by the trainer at each call

    def __post_init__(self) -> None:
        """Refuse what `llds_penalty` does not know."""
        check_penalty(self)


def llds_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    config: Any,
    loss_mask: torch.Tensor | None = None,
    rollout_logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The base loss plus weight × penalty, and its metrics plus `llds/penalty_loss`, which SkyRL
    adds up to the penalty of the mini-batch, and `llds/gated_fraction` and the sums of
    `displacement`, means over micro-batches.

    Args:
        log_probs, old_log_probs, advantages, loss_mask: (B, T), for one micro-batch. Of the
            advantages, which SkyRL has scaled, the penalty reads the sign.
        config: an `LldsAlgorithmConfig` with its denominator.
        rollout_logprobs: for the base loss.

    Raises:
        ConfigError: without a denominator, or for advantages that differ within a response.
    """
    if getattr(config, "llds_denominator", None) is None:
        raise ConfigError(
            "a worker got no llds_denominator: train with LldsTrainerMixin and "
            "LldsAlgorithmConfig, as trainer.override_entrypoint=llds_core.integrations.skyrl does"
        )
    base = copy.copy(config)
    base.policy_loss_type = config.base_loss  # SkyRL's losses read it
    tensors = {"loss_mask": loss_mask, "rollout_logprobs": rollout_logprobs}
    loss, metrics = _base_loss(config.base_loss)(
        log_probs, old_log_probs, advantages, config=base, **tensors
    )
    mask = torch.ones_like(log_probs) if loss_mask is None else loss_mask
    each = one_per_response(advantages, mask, _REMEDY)
    penalty, found = penalty_and_sums(
        config, log_probs, old_log_probs, mask, each, denominator=config.llds_denominator
    )
    if config.llds_weight > 0:
        loss = loss + config.llds_weight * penalty
    ours = {"penalty_loss": penalty}
    ours |= {name: found[name] for name in ("gated_fraction", *DISPLACEMENT)}
    return loss, metrics | {f"llds/{name}": value.detach().item() for name, value in ours.items()}


# Not as a decorator: where Ray runs, SkyRL pickles what it registers, and a function that has its
# name already is pickled as that name, so that a worker imports this file.
PolicyLossRegistry.register("llds", llds_policy_loss)


class LldsTrainerMixin(_Trainer):
    """Gives SkyRL's `RayPPOTrainer`, or a subclass of it, what `llds_policy_loss` divides by.

    Logs of each mini-batch what it says of responses of positive advantage: `llds/loglik_rewarded`
    (when they were sampled, nats per token), `llds/change_rewarded` (since then, nats per response)
    and `llds/displaced_fraction` (that became less likely). The last two and `llds/gated_fraction`
    have a name of their own on the first mini-batch of a rollout, `…_first`: nothing has changed
    yet, so that anything but 0 is numerical noise.

    Arguments are those of the trainer, by name, `cfg` with an `LldsAlgorithmConfig`; what
    `check_config` refuses is refused here.
    """

    def __init__(self, cfg: Any, **parts: Any) -> None:
        check_config(cfg)
        super().__init__(cfg=cfg, **parts)

    def build_models(self, *workers: Any) -> None:
        """As SkyRL does, then stand before its dispatch."""
        super().build_models(*workers)
        self.dispatch: Any = _CountingDispatch(self.dispatch, self.cfg.trainer.algorithm)


class _CountingDispatch:
    """SkyRL's `WorkerDispatch`, which hands each mini-batch's count down with its data."""

    def __init__(self, dispatch: Any, algorithm: LldsAlgorithmConfig) -> None:
        self._dispatch, self._algorithm = dispatch, algorithm
        self._counts: dict[str, float] = {}  # by the name of a mini-batch's first chunk
        self._is_first = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatch, name)

    def stage_data(self, model: str, data: Any, boundaries: list[tuple[int, int]]) -> Any:
        staged = self._dispatch.stage_data(model, data, boundaries)
        if model == "policy" and data.get("advantages") is not None:  # else for a forward pass
            self._counts = {
                chunks[0].hex(): self._tokens(data[start:end])
                for chunks, (start, end) in zip(staged, boundaries, strict=True)
            }
            self._is_first = True
        return staged

    def forward_backward_from_staged(self, model: str, chunks: list[Any], **options: Any) -> Any:
        if model != "policy":
            return self._dispatch.forward_backward_from_staged(model, chunks, **options)
        count = {"llds_denominator": self._counts[chunks[0].hex()]}
        options["loss_fn_config"] = (options.get("loss_fn_config") or {}) | count
        output = self._dispatch.forward_backward_from_staged(model, chunks, **options)
        suffix, prefix = "_first" * self._is_first, "loss_metrics/llds/"
        sums = {name: output.metrics.pop(prefix + name) for name in DISPLACEMENT}
        found = displacement_metrics(sums, suffix)
        if self._is_first:
            found["gated_fraction_first"] = output.metrics[f"{prefix}gated_fraction"]
        output.metrics.update({prefix + name: value for name, value in found.items()})
        self._is_first = False
        return output

    def _tokens(self, data: Any) -> float:
        """What the mini-batch `data` divides by."""
        advantages = one_per_response(data["advantages"], data["loss_mask"], _REMEDY)
        return float(counted_tokens(self._algorithm, data["loss_mask"], advantages))


def check_config(cfg: Any) -> None:
    """Raise a `ConfigError`, with what to set instead, for a configuration of SkyRL that leaves the
    penalty out, or makes it wrong.
    """
    trainer, algorithm = cfg.trainer, cfg.trainer.algorithm
    if not isinstance(algorithm, LldsAlgorithmConfig):
        raise ConfigError(
            f"trainer.algorithm is {type(algorithm).__name__}: build the configuration with "
            "make_config(algorithm_cls=LldsAlgorithmConfig), or with a subclass of it"
        )
    base, dropout = algorithm.base_loss, trainer.policy.model.lora.dropout
    losses = set(PolicyLossRegistry.list_available()) - {"llds", "cross_entropy"}
    batch, mini_batch = trainer.train_batch_size, trainer.policy_mini_batch_size
    epochs = trainer.update_epochs_per_batch
    for holds, message in (
        (
            algorithm.policy_loss_type != "llds",
            f"policy_loss_type={algorithm.policy_loss_type} leaves LLDS out: set it to llds, and "
            f"base_loss={algorithm.policy_loss_type}",
        ),
        (base not in losses, f"base_loss={base}: give one of {', '.join(sorted(losses))}"),
        (
            batch * epochs < 2 * mini_batch,
            f"train_batch_size={batch} × update_epochs_per_batch={epochs} / policy_mini_batch_size="
            f"{mini_batch} makes one update per rollout: LLDS is 0 on the first and needs a second",
        ),
        (
            trainer.fully_async.enabled,
            "fully_async.enabled=true: the old log-probabilities are not those of the policy that "
            "sampled; use the synchronous trainer",
        ),
        (
            algorithm.advantage_estimator in ("gae", "reinforce++"),
            f"advantage_estimator={algorithm.advantage_estimator} gives tokens their own "
            f"advantages: LLDS needs one per response, as of {_REMEDY}",
        ),
        (
            algorithm.advantage_batch_normalize,
            "advantage_batch_normalize=true shifts the advantages, whose sign says what is "
            "preserved: set it to false",
        ),
        (
            dropout > 0,
            f"policy.model.lora.dropout={dropout:g} moves log-probabilities more than an update "
            "does: set it to 0",
        ),
        (
            base in ("clip_cov", "kl_cov")
            and off_policy_correction_enabled(algorithm.off_policy_correction),
            f"base_loss={base} ignores off_policy_correction: take another base_loss",
        ),
    ):
        if holds:
            raise ConfigError(message)


def run(cfg: Any) -> None:
    """Train: SkyRL's own experiment with the trainer above. Runs in a Ray task."""
    from skyrl.train.entrypoints.main_base import BasePPOExp
    from skyrl.train.trainer import RayPPOTrainer

    class Trainer(LldsTrainerMixin, RayPPOTrainer):
        pass

    class Experiment(BasePPOExp):
        def get_trainer(self, **parts: Any) -> Any:
            return Trainer(**parts)

    Experiment(cfg).run()


def main() -> None:
    """What `trainer.override_entrypoint` calls: SkyRL's `main` with this configuration."""
    from skyrl.train.utils.utils import initialize_ray, validate_cfg

    own = "trainer.override_entrypoint="  # no field of any configuration
    arguments = [word for word in sys.argv[1:] if not word.startswith(own)]
    cfg = make_config(algorithm_cls=LldsAlgorithmConfig).from_cli_overrides(arguments)
    check_config(cfg)
    validate_cfg(cfg)
    initialize_ray(cfg)
    ray.get(ray.remote(num_cpus=1)(run).remote(cfg))
