"""LLDS in verl, on its real wheel (`make test-verl` builds an environment for it)."""

import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="needs verl: `make test-verl` installs it and runs this")

from omegaconf import OmegaConf
from slow_llds import four_responses
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss

from llds_core.errors import ConfigError
from llds_core.losses import llds_penalty

TARGET = "llds_core.integrations.verl.LldsPolicyLossConfig"
SIZES = {"ppo_mini_batch_size": 4, "ppo_micro_batch_size_per_gpu": 4, "rollout_n": 4}
SIZES["strategy"] = "fsdp"
BASES = ("vanilla", "gspo", "sapo", "gpg", "geo_mean", "cispo", "dppo_tv", "dppo_kl", "kl_cov")


def actor(**policy_loss: Any) -> FSDPActorConfig:
    """As verl makes it of a command line."""
    given = {"_target_": TARGET, "loss_mode": "llds", "llds_weight": 0.5, **policy_loss}
    return FSDPActorConfig(**SIZES, policy_loss=omega_conf_to_dataclass(OmegaConf.create(given)))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    new, old, mask, advantages = four_responses()
    tensors = {"old_log_prob": old, "log_prob": new, "advantages": advantages * mask}
    return tensors | {"response_mask": mask.bool()}


def compute(
    config: FSDPActorConfig, name: str, batch: dict[str, torch.Tensor], **options: Any
) -> tuple:
    """Loss, gradient and metrics of one micro-batch."""
    new = batch["log_prob"].clone().requires_grad_()
    options = {**batch, "log_prob": new, "loss_agg_mode": "token-mean", **options}
    loss, metrics = get_policy_loss_fn(name)(config=config, **options)
    loss.backward()
    return loss.detach(), new.grad, metrics


def penalty_of(batch: dict[str, torch.Tensor], **options: Any) -> tuple:
    new = batch["log_prob"].clone().requires_grad_()
    advantages = batch["advantages"].sum(1).sign()
    args = (new, batch["old_log_prob"], batch["response_mask"], advantages)
    penalty, metrics = llds_penalty(*args, **options)
    penalty.backward()
    return penalty.detach(), new.grad, metrics


def test_verl_finds_the_loss_by_itself() -> None:
    code = "import verl, sys; from verl.trainer.ppo import core_algos as c; "
    code += "assert 'llds' in c.POLICY_LOSS_REGISTRY"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"llds", *BASES} <= set(POLICY_LOSS_REGISTRY)


@pytest.mark.parametrize("normalizer", ["all", "preserved"])
@pytest.mark.parametrize("base", BASES)
def test_it_is_the_base_loss_plus_weight_times_the_pure_function(batch, base, normalizer) -> None:
    config = actor(base_loss=base, llds_normalizer=normalizer)
    loss, gradient, _ = compute(config, base, batch)
    penalty, pull, counts = penalty_of(batch, normalizer=normalizer)
    ours, our_gradient, metrics = compute(config, "llds", batch)
    assert penalty > 0
    torch.testing.assert_close(ours, loss + 0.5 * penalty)
    torch.testing.assert_close(our_gradient, gradient + 0.5 * pull)
    assert metrics["actor/llds/penalty"] == pytest.approx(float(penalty))
    assert metrics["actor/llds/gated_fraction"] == pytest.approx(float(counts["gated_fraction"]))
    moved = ((batch["log_prob"] - batch["old_log_prob"]) * batch["response_mask"]).sum(1)
    assert metrics["actor/llds/change"] == pytest.approx(float(moved[[0, 3]].sum()), rel=1e-5)
    assert metrics["actor/llds/rewarded"] == 2
    assert metrics["actor/llds/displaced"] == (moved[[0, 3]] < 0).sum()
    off, gradient_off, _ = compute(actor(base_loss=base, llds_weight=0.0), "llds", batch)
    assert torch.equal(off, loss) and torch.equal(gradient_off, gradient)


def test_every_option_reaches_the_base_loss_and_the_penalty(batch) -> None:
    """verl's way of averaging and its weights of tokens; gate, threshold and what is preserved."""
    theirs = {"loss_agg_mode": "seq-mean-token-sum"}
    theirs["rollout_is_weights"] = torch.linspace(0.5, 1.5, 10).expand(4, 10)
    loss, gradient, _ = compute(actor(base_loss="vanilla"), "vanilla", batch, **theirs)
    options = {"gate": "token", "preserve": "positive", "gate_threshold": 0.05}
    penalty, pull, _ = penalty_of(batch, normalizer="preserved", **options)
    given = {f"llds_{name}": value for name, value in options.items()}
    config = actor(base_loss="vanilla", llds_normalizer="preserved", **given)
    ours, our_gradient, _ = compute(config, "llds", batch, **theirs)
    assert penalty > 0 and not torch.equal(loss, compute(actor(), "vanilla", batch)[0])
    torch.testing.assert_close(ours, loss + 0.5 * penalty)
    torch.testing.assert_close(our_gradient, gradient + 0.5 * pull)


def test_verl_s_own_step_on_ranks_and_micro_batches_is_the_whole_mini_batch(batch) -> None:
    """Through `ppo_loss`, which the workers call: two ranks, on each two micro-batches of a row."""
    config = actor()
    new = batch["log_prob"].clone().requires_grad_()
    # A prompt of one token; the model's output stands one position before the token it predicts.
    outputs = torch.cat([new, torch.zeros(4, 1)], 1)
    losses = []
    for row in range(4):
        data = TensorDict(
            {
                "prompts": torch.zeros(1, 1, dtype=torch.long),
                "responses": torch.zeros(1, 10, dtype=torch.long),
                "attention_mask": torch.ones(1, 11, dtype=torch.long),
                "response_mask": batch["response_mask"][row : row + 1],
                "old_log_probs": batch["old_log_prob"][row : row + 1],
                "advantages": batch["advantages"][row : row + 1],
            },
            batch_size=1,
        )
        tokens = batch["response_mask"].sum().item()
        tensordict_utils.assign_non_tensor(
            data, dp_size=2, batch_num_tokens=tokens, global_batch_size=4
        )
        loss, metrics = ppo_loss(config, {"log_probs": outputs[row]}, data)
        losses.append(loss)
        assert "actor/llds/penalty" in metrics
    (sum(losses) / 2).backward()  # gradients are averaged over ranks
    loss, gradient, _ = compute(actor(), "llds", batch)
    torch.testing.assert_close((sum(losses) / 2).detach(), loss)
    torch.testing.assert_close(new.grad, gradient)


def test_old_equal_to_new_does_nothing_and_shows_it(batch: dict[str, torch.Tensor]) -> None:
    batch["log_prob"] = batch["old_log_prob"]
    _, gradient, _ = compute(actor(), "vanilla", batch)
    _, ours, metrics = compute(actor(llds_weight=100.0), "llds", batch)
    assert torch.equal(ours, gradient)
    assert metrics["actor/llds/penalty"] == metrics["actor/llds/gated_fraction"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_mode": "vanilla"}, "loss_mode=vanilla"),
        ({"loss_mode": "bypass_mode"}, "bypass_mode"),
        ({"base_loss": "llds"}, "over another loss"),
        ({"llds_gate": "actions"}, "gate is"),
        ({"llds_weight": -0.1}, "llds_weight is -0.1"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as error:
        actor(**options)
    cause = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, ValueError)


def test_advantages_per_token_are_refused(batch: dict[str, torch.Tensor]) -> None:
    batch["advantages"][0, 0] = 2.0
    with pytest.raises(ConfigError, match="adv_estimator=grpo"):
        compute(actor(), "llds", batch)


def test_loss_mode_llds_alone_has_the_defaults(batch: dict[str, torch.Tensor]) -> None:
    """The paper's weight on the vanilla loss."""
    plain = FSDPActorConfig(**SIZES)
    loss, _, _ = compute(plain, "vanilla", batch)
    ours, _, _ = compute(plain, "llds", batch)
    torch.testing.assert_close(ours, loss + 0.2 * penalty_of(batch, normalizer="all")[0])
