"""Every objective by name: one step on `smoke`, against TRL and against `losses/`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, run
from rounding import PASS
from scripted import largest_difference, policy, settings, stock, trajectories, weights
from trl.trainer import grpo_trainer as trl_module

from llds_core import losses
from llds_core.config import laid_over, load_experiment, methods
from llds_core.config.seeding import torch_generator
from llds_core.training.micro_batches import add_columns

IN_TRL = ("dr-grpo", "gspo", "cispo", "lite-ppo", "clip-higher", "sequence-mean")
NAMES = [*methods(), "gspo+llds-action", "lp-reg+llds-action", "lp-reg@official", "dapo+llds-ma"]
# One mini-batch of one epoch, where nothing has moved; two where a penalty needs it.
SHORT = ("training.steps=1", "training.epochs=1", "training.updates_per_rollout=2")
PLAIN = (
    "loss.aggregate={} training.mini_batches={} loss.kl_weight={} training.updates_per_rollout={} "
    "training.steps=2 training.epochs=2 training.micro_batch_size=4"
)
ONES = dict.fromkeys(("completion_ids", "tool_mask", "completion_mask"), torch.ones(16, 3).long())
LP_REG = ("loss.lp_reg_share=0.9", "loss.lp_reg_min_p=0.02", "training.learning_rate=5e-3")


def short(folder: Path, name: str, *overrides: str, **direct: Any) -> Any:
    fixed = ("training.micro_batch_size=8", "training.mini_batches=groups")
    return settings(folder, *laid_over((*SHORT, *fixed), overrides), method=name, **direct)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_TRL])  # see below
def test_every_name_trains_a_step(tmp_path: Path, name: str) -> None:
    trainer = run(short(tmp_path, name))
    assert trainer.state.global_step == 2 and trainer.rows[0]["nonfinite_updates"] == 0
    assert largest_difference(weights(trainer.model), weights(policy())) > 1e-5
    assert (trainer.rows[0]["held_fraction"] is None) == ("lp-reg" not in name)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, "training.learning_rate=1e-2") for name in IN_TRL),
        ("lp-reg", "training.learning_rate=1e-2 loss.lp_reg_weight=0"),
        *(
            ("grpo", PLAIN.format(*values))
            for values in (  # every pair of values, once
                *(("token-mean", "shuffled", 0.0, 2), ("token-mean", "shuffled", 0.05, 4)),
                *(("token-mean", "groups", 0.0, 4), ("token-mean", "groups", 0.05, 2)),
                ("seq-mean-token-mean", "shuffled", 0.0, 2),
                ("seq-mean-token-mean", "shuffled", 0.05, 4),
            )
        ),
    ],
)
def test_what_trl_has_is_trl_configured(tmp_path, monkeypatch, name, overrides) -> None:
    """The same loss on the same batch and the same weights at the end; of Lp-Reg the surrogate."""
    # Where a gradient is mere rounding, Adam divides rounding by rounding: its epsilon keeps that
    # out of the weights.
    options = {"adam_epsilon": 1e-5}
    ours = run(short(tmp_path / "ours", name, *overrides.split(), **options))
    assert ours.rows[0]["nonfinite_updates"] == 0
    theirs = stock(short(tmp_path / "stock", name, *overrides.split(), **options))
    seen: list[float] = []
    compute = theirs._compute_loss

    def kept(model: Any, inputs: Any) -> torch.Tensor:
        seen.append((loss := compute(model, inputs)).item())
        return loss

    def same_composition(batch: dict[str, Any]) -> dict[str, Any]:
        step = theirs.state.global_step // ours.updates_per_step + 1
        unit = 1 if ours.args.training.mini_batches == "shuffled" else 4
        units = torch.randperm(16 // unit, generator=torch_generator(0, "mini-batches", step))
        order = (units[:, None] * unit + torch.arange(unit)).flatten()
        # A count is no sequence; TRL leaves it alone too.
        return {k: v[order] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}

    monkeypatch.setattr(theirs, "_compute_loss", kept)
    monkeypatch.setattr(trl_module, "shuffle_sequence_dict", same_composition)
    theirs.train()
    assert theirs.state.global_step == ours.state.global_step == ours.args.max_steps
    difference = largest_difference(weights(ours.model), weights(theirs.model))
    assert difference < (1e-6 if name == "grpo" else 1e-5)
    assert largest_difference(weights(ours.model), weights(policy())) > 1e-4
    if name != "grpo":
        assert seen == pytest.approx([r["loss"].item() for r in ours.records], abs=1e-6)
        assert max(map(abs, seen)) > 1e-3


@pytest.mark.parametrize("std", ["batch", "none"])
def test_the_batch_is_the_baseline_where_trl_has_none(std: str) -> None:
    made = trajectories(1)
    loss = load_experiment("smoke/reinforce", [f"loss.advantage_std={std}"]).loss
    batch = dict(ONES)
    add_columns(batch, made, loss, 4)
    rewards = torch.tensor([t.reward for t in made])
    expected = losses.group_advantages(rewards, torch.arange(16), mean="batch", std=std, eps=1e-4)
    assert torch.equal(batch["advantages"], expected)
    assert batch["advantages"].sum().abs() < 1e-5 and batch["advantages"][-1] < 0


def test_equal_rewards_that_no_float_holds_have_no_advantage() -> None:
    """Eight of 0.2 have another mean in TRL's float32."""
    made = [replace(t, reward=0.2) for t in trajectories(1)[:8]] + trajectories(1)[8:]
    given = torch.linspace(-1, 1, 16)
    batch = ONES | {"advantages": torch.cat([torch.full((8,), -1.5e-4), given[8:]])}
    add_columns(batch, made, load_experiment("smoke/grpo").loss, 8)
    assert not batch["group_advantages"][:8].any()
    assert torch.equal(batch["group_advantages"][8:], given[8:])


def test_what_a_limit_ended_leaves_numerator_and_denominator(tmp_path: Path) -> None:
    made = trajectories(1)
    for trajectory in made[::3]:
        trajectory.stop_reason = "turns"
    loss = load_experiment("smoke/overlong-filter").loss
    width = max(len(t.completion_ids) for t in made)
    mask = torch.tensor([t.response_mask + [0] * (width - len(t.response_mask)) for t in made])
    batch = {"completion_ids": mask, "tool_mask": mask, "completion_mask": torch.ones_like(mask)}
    batch |= {"advantages": torch.ones(16), "num_items_in_batch": mask.sum()}
    add_columns(batch, made, loss, 4)
    assert not batch["policy_mask"][::3].any() and batch["policy_mask"][1].any()
    kept = [sum(t.response_mask) for i, t in enumerate(made) if i % 3]
    assert batch["num_items_in_batch"] == batch["policy_mask"].sum() == sum(kept)


@pytest.mark.parametrize(("variant", "unpadded"), [("", "true"), ("@official", "false")])
def test_sparse_proxies_give_the_penalty_of_whole_distributions(
    tmp_path: Path, variant: str, unpadded: str
) -> None:
    """Value and gradient by the weights, from the logits of the whole vocabulary."""
    more = (*LP_REG, f"training.remove_padding={unpadded}")
    name = f"lp-reg{variant}"
    without = run(short(tmp_path / "without", name, *more, "loss.lp_reg_weight=0"))
    trainer = run(short(tmp_path, name, *more, "loss.lp_reg_weight=50"), WithLogits)
    (value, held, gradient), second = trainer.expected
    added = trainer.records[0]["loss"] - without.records[0]["loss"]
    assert added == pytest.approx(50 * value, abs=1e-5)
    assert trainer.found == pytest.approx([value, second[0]], abs=1e-6, rel=1e-4)
    row, tokens = trainer.rows[0], sum(sum(t.response_mask) for t in trajectories(1))
    assert row["lp_reg_penalty"] == pytest.approx(sum(trainer.found) / 2)
    assert row["held_fraction"] == (held + second[1]) / tokens
    assert second[0] > value > 0 and min(held, second[1]) > 3  # the proxy is that of the rollout
    expected = {n: g + 50 * gradient[n] for n, g in without.gradients[0].items()}
    # Three passes round; parts may cancel, so that the size of the terms is that of the parts.
    parts = (without.gradients[0].values(), [50 * g for g in gradient.values()])
    size = sum(max(g.abs().max().item() for g in part) for part in parts)
    for n, found in trainer.gradients[0].items():
        torch.testing.assert_close(found, expected[n], atol=3 * PASS * size, rtol=0)


class WithLogits(Recorded):
    """Computes the penalty beside the trainer's, from logits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.expected: list[tuple] = []
        self.found: list[float] = []
        super().__init__(*args, **kwargs)

    def _logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        output = self.model(input_ids=ids, attention_mask=attention)
        width = inputs["completion_ids"].shape[1]
        return output.logits[:, -width - 1 : -1]

    def _micro_batches(self, batch: Any) -> Any:
        windows = super()._micro_batches(batch)
        made = [micro for window in windows for micro in window]
        is_token = self.args.loss.lp_reg_kl == "token"
        with torch.no_grad():
            for micro in made:
                logits = self._logits(micro)
                min_p = self.args.loss.lp_reg_min_p
                micro["dense"] = losses.min_p_proxy(logits, min_p, inclusive=is_token)
        sampled = torch.cat([m["old_per_token_logps"][m["policy_mask"].bool()] for m in made])
        share = self.args.loss.lp_reg_share
        self.bound = losses.low_probability_bound(sampled, torch.ones_like(sampled), share)
        return windows

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        now = self._logits(inputs).log_softmax(-1)
        dense, ids = inputs["dense"], inputs["completion_ids"][..., None]
        kind = self.args.loss.lp_reg_kl
        options = {"kl": kind, "bound": self.bound, "share": self.args.loss.lp_reg_share}
        if kind == "full":
            terms = dense.exp() * (dense.masked_fill(dense == -torch.inf, 0) - now)
            options["divergence_BT"] = terms.sum(-1)
        tokens = [logprobs.gather(2, ids)[..., 0] for logprobs in (now, dense)]
        rows = inputs["policy_mask"], inputs["group_advantages"]
        value, counts = losses.lp_reg_penalty(*tokens, *rows, **options)
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(value, parameters)
        held = int(counts["held_tokens"])
        self.expected.append((value.item(), held, dict(zip(names, gradients, strict=True))))
        before = self.metrics.part.sums["lp_reg_penalty"]
        loss = super()._compute_loss(model, inputs)
        self.found.append(self.metrics.part.sums["lp_reg_penalty"] - before)
        return loss
