"""LLDS as a policy loss of verl, over any loss that is registered there.

    actor_rollout_ref.actor.policy_loss._target_=llds_core.integrations.verl.LldsPolicyLossConfig
    actor_rollout_ref.actor.policy_loss.loss_mode=llds
    +actor_rollout_ref.actor.policy_loss.llds_weight=0.2

verl 0.9 finds this file by the entry point group `verl.plugins`, 0.7 and 0.8 by the environment
variable VERL_USE_EXTERNAL_MODULES=llds_core.integrations.verl. The loss is called once per
micro-batch. The penalty of a micro-batch counts by its share of the mini-batch's tokens, so that
with the normalizer `all` a mini-batch gets its penalty exactly, however it is split. The tokens
that `preserved` divides by are known for the micro-batch only: it is exact where that is the
mini-batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss
from verl.workers.config.actor import PolicyLossConfig

from llds_core.errors import ConfigError
from llds_core.integrations.adapters import (
    DISPLACEMENT,
    check_penalty,
    one_per_response,
    penalty_and_sums,
)


@dataclass
class LldsPolicyLossConfig(PolicyLossConfig):
    """verl's `PolicyLossConfig` with the options of `llds_core.losses.llds_penalty`, checked."""

    loss_mode: str = "llds"
    base_loss: str = "vanilla"  # a registered policy loss; its own settings stay where they are
    llds_weight: float = 0.2  # >= 0
    llds_gate: str = "action"
    llds_normalizer: str = "all"
    llds_preserve: str = "nonnegative"
    llds_gate_threshold: float = 0.0  # nats

    def __post_init__(self) -> None:
        """Refuse what would leave the penalty out, or cannot work."""
        if self.loss_mode != "llds" or self.base_loss in ("llds", "bypass_mode"):
            raise ConfigError(
                f"policy_loss.loss_mode={self.loss_mode} base_loss={self.base_loss}: LLDS needs "
                "loss_mode=llds over another loss, without rollout_correction.bypass_mode"
            )
        if self.rollout_correction.get("bypass_mode"):
            raise ConfigError(
                "rollout_correction.bypass_mode=True makes the rollout engine's log-probabilities "
                "the old ones, whose noise opens gates: set it to False"
            )
        check_penalty(self)


@register_policy_loss("llds")
def llds_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The base loss plus weight × penalty, and its metrics plus `actor/llds/penalty`,
    `actor/llds/gated_fraction` and the sums of `displacement`; verl logs means over micro-batches.

    Args:
        old_log_prob, log_prob, advantages, response_mask: (B, T), for one micro-batch.
        loss_agg_mode, rollout_is_weights: for the base loss.
        config: verl's `ActorConfig`; a `policy_loss` of another type means all defaults.

    Raises:
        ConfigError: for advantages that differ within a response.
    """
    settings = config.policy_loss
    if not isinstance(settings, LldsPolicyLossConfig):
        settings = LldsPolicyLossConfig()
    loss, metrics = get_policy_loss_fn(settings.base_loss)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    each = one_per_response(advantages, response_mask, "algorithm.adv_estimator=grpo")
    penalty, found = penalty_and_sums(settings, log_prob, old_log_prob, response_mask, each)
    if settings.llds_weight > 0:
        batch = config.global_batch_info
        share = 1.0  # of a worker that takes a mean per micro-batch, as the default one of verl 0.7
        if batch.get("batch_num_tokens") is not None:
            # verl averages gradients over its dp_size ranks.
            share = found["response_tokens"] / batch["batch_num_tokens"] * batch["dp_size"]
        loss = loss + settings.llds_weight * share * penalty
    ours = {"penalty": penalty} | {name: found[name] for name in ("gated_fraction", *DISPLACEMENT)}
    # Of a name with "sum" the aggregators of verl's asynchronous trainers add values up.
    ours = {name.removesuffix("_sum"): value for name, value in ours.items()}
    # Workers of verl 0.7 log the names as they are, later ones under `actor/` in any case.
    return loss, metrics | {f"actor/llds/{name}": x.detach().item() for name, x in ours.items()}
