"""The trainer against TRL and `losses/`; masks, micro-batches and non-finite updates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import (
    TOKENIZER,
    build,
    largest_difference,
    policy,
    settings,
    stock,
    trajectories,
    weights,
)
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer import grpo_trainer as trl_module

from llds_core.errors import ConfigError, TrainingDivergedError
from llds_core.losses import aggregate, answer_weight_ramp, kl_k3, llds_penalty, policy_loss
from llds_core.rollout.loop import Rollout
from llds_core.seeding import torch_generator
from llds_core.training.trainer import SearchGRPOTrainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class NoPenaltyCode(SearchGRPOTrainer):
    """The trainer as it would be had nobody ever written the penalty."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return GRPOTrainer._compute_loss(self, model, inputs)


class Recorded(SearchGRPOTrainer):
    """Keeps inputs, log-probabilities, loss and its gradient by them of every micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self.live = result[0]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        (gradient,) = torch.autograd.grad(loss, self.live, retain_graph=True)
        self.records.append(
            {
                "update": self.state.global_step,
                "inputs": dict(inputs),
                "logprobs": self.live.detach(),
                "loss": loss.detach(),
                "gradient": gradient,
            }
        )
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        return super()._clip_grad_norm(model)


def run(args: Any, cls: type[SearchGRPOTrainer] = Recorded, **options: Any) -> Any:
    trainer = build(args, cls, **options)
    trainer.train()
    return trainer


# --- against TRL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [0.0, 0.05])
def test_weight_zero_is_the_trainer_without_penalty_code_bit_for_bit(
    tmp_path: Path, kl: float
) -> None:
    results = []
    for name, cls in (("with", SearchGRPOTrainer), ("without", NoPenaltyCode)):
        args = settings(tmp_path / name, f"loss.kl_weight={kl}", "training.steps=2")
        results.append(weights(run(args, cls).model))
    assert largest_difference(*results) == 0.0
    assert largest_difference(results[0], weights(policy())) > 1e-4


@pytest.mark.parametrize("kl", [0.0, 0.05])
@pytest.mark.parametrize("mini_batches", [1, 2])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_weight_zero_is_stock_trl(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kl: float,
    mini_batches: int,
    aggregation: str,
) -> None:
    overrides = (
        f"loss.kl_weight={kl}",
        f"loss.aggregate={aggregation}",
        "training.steps=2",
        f"training.updates_per_rollout={2 * mini_batches}",
    )
    # Where a gradient is mere rounding, Adam divides rounding by rounding: its epsilon keeps that
    # out of the weights.
    ours = run(settings(tmp_path / "ours", *overrides, adam_epsilon=1e-5), SearchGRPOTrainer)
    theirs = stock(settings(tmp_path / "stock", *overrides, adam_epsilon=1e-5))

    def same_composition(batch: dict[str, Any]) -> dict[str, Any]:
        step = theirs.state.global_step // (2 * mini_batches) + 1
        order = torch.randperm(16, generator=torch_generator(0, "mini-batches", step))
        # A count is no sequence; TRL leaves it alone too.
        return {k: v[order] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}

    monkeypatch.setattr(trl_module, "shuffle_sequence_dict", same_composition)
    theirs.train()
    assert theirs.state.global_step == ours.state.global_step == 4 * mini_batches
    assert largest_difference(weights(ours.model), weights(theirs.model)) < 1e-6
    assert largest_difference(weights(ours.model), weights(policy())) > 1e-4


# --- against losses/ ------------------------------------------------------------------------------

LOSSES = {
    "token-mean": ("loss.aggregate=token-mean",),
    "seq-mean-token-mean": ("loss.aggregate=seq-mean-token-mean",),
    "constant": ("loss.aggregate=constant",),
    "token-mean-micro": ("loss.aggregate=token-mean-micro",),
    "gspo": ("loss.aggregate=seq-mean-token-mean", "loss.ratio=sequence"),
}


def reference_loss(record: dict[str, Any], args: Any, logprobs: torch.Tensor) -> torch.Tensor:
    """The objective from `losses/` alone, with the trainer's denominators."""
    batch = record["inputs"]
    mask = batch["tool_mask"] * batch["completion_mask"]
    windows = args.gradient_accumulation_steps
    mode, denominator = {
        # TRL: the rollout's tokens, shared equally among its mini-batches.
        "dapo": ("token-mean", batch["num_items_in_batch"] * windows / args.steps_per_generation),
        "bnpo": ("token-mean", mask.sum() * windows),
        "grpo": ("seq-mean-token-mean", len(mask) * windows),
        "dr_grpo": ("constant", len(mask) * args.max_completion_length * windows),
    }[args.loss_type]
    loss, _ = policy_loss(
        logprobs,
        batch["old_per_token_logps"],
        batch["advantages"],
        mask,
        clip_low=args.epsilon,
        clip_high=args.epsilon_high,
        ratio=args.importance_sampling_level,
        aggregate=mode,
        denominator=denominator,
    )
    if args.beta:
        divergence, _ = kl_k3(logprobs, batch["ref_per_token_logps"])
        loss = loss + args.beta * aggregate(divergence, mask, mode, denominator)
    if args.llds_weight:
        penalty, _ = llds_penalty(
            logprobs,
            batch["old_per_token_logps"],
            mask,
            batch["advantages"],
            gate=args.llds_gate,
            normalizer=args.llds_normalizer,
            preserve=args.llds_preserve,
            gate_threshold=args.llds_gate_threshold,
            answer_mask_BT=batch["answer_mask"],
            answer_weight=batch["answer_weight"],
            denominator=batch["penalty_count"],
        )
        loss = loss + args.llds_weight * penalty
    return loss


def check_against_losses(trainer: Recorded) -> None:
    args = trainer.args
    pushed = 0.0
    for record in trainer.records:
        logprobs = record["logprobs"].clone().requires_grad_()
        expected = reference_loss(record, args, logprobs)
        assert record["loss"].item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-5)
        (gradient,) = torch.autograd.grad(expected, logprobs)
        torch.testing.assert_close(record["gradient"], gradient, atol=1e-7, rtol=1e-4)
        pushed = max(pushed, gradient.abs().max().item())
    assert pushed > 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_reference_for_every_loss_type(
    tmp_path: Path, name: str
) -> None:
    args = settings(
        tmp_path, *LOSSES[name], "loss.kl_weight=0.02", "training.steps=1", method="llds-action"
    )
    check_against_losses(run(args))


@pytest.mark.parametrize("gate", ["action", "response", "token"])
@pytest.mark.parametrize("normalizer", ["preserved", "all"])
@pytest.mark.parametrize("preserve", ["nonnegative", "positive"])
def test_loss_and_gradient_equal_the_reference_for_every_gate(
    tmp_path: Path, gate: str, normalizer: str, preserve: str
) -> None:
    args = settings(
        tmp_path,
        f"loss.gate={gate}",
        f"loss.normalizer={normalizer}",
        f"loss.preserve={preserve}",
        "loss.llds_weight=1.5",
        "loss.gate_threshold=0.001",
        "loss.answer_ramp=paper",
        "loss.answer_weight=0.5",
        "loss.clip_high=0.28",
        "training.steps=1",
        method="llds-action",
    )
    trainer = run(args)
    check_against_losses(trainer)
    searches = sum(t.searches for t in trajectories(1)) / 16
    for record in trainer.records:
        batch = record["inputs"]
        assert batch["answer_weight"] == pytest.approx(0.5 * answer_weight_ramp(searches))
    assert penalty_counts_are_those_of_the_mini_batch(trainer)


def penalty_counts_are_those_of_the_mini_batch(trainer: Recorded) -> bool:
    args = trainer.args
    for update in range(args.max_steps):
        window = [r["inputs"] for r in trainer.records if r["update"] == update]
        total = 0
        for batch in window:
            kept = batch["advantages"] > 0
            if args.llds_preserve == "nonnegative":
                kept |= batch["advantages"] == 0
            if args.llds_normalizer == "all":
                kept = torch.ones_like(kept)
            total += int((batch["tool_mask"] * batch["completion_mask"])[kept].sum())
        assert len(window) == args.gradient_accumulation_steps
        assert all(float(batch["penalty_count"]) == total for batch in window)
    return True


def test_batches_carry_every_trajectory_once_an_epoch_with_its_own_tokens(tmp_path: Path) -> None:
    trainer = run(settings(tmp_path, "training.steps=1"))
    made = trajectories(1)
    half = len(trainer.records) // 2
    for records in (trainer.records[:half], trainer.records[half:]):
        seen = []
        for record in records:
            batch = record["inputs"]
            for position, row in enumerate(batch["rows"].tolist()):
                seen.append(row)
                one = made[row]
                real = batch["completion_mask"][position].bool()
                assert batch["completion_ids"][position][real].tolist() == one.completion_ids
                prompt = batch["prompt_mask"][position].bool()
                assert batch["prompt_ids"][position][prompt].tolist() == one.prompt_ids
                assert batch["tool_mask"][position][real].tolist() == one.response_mask
                assert batch["action_ids"][position][real].tolist() == one.action_ids
                first, last = one.answer_span
                assert batch["answer_mask"][position].nonzero().flatten().tolist() == list(
                    range(first, last)
                )
        assert sorted(seen) == list(range(16))


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.aggregate=seq-mean-token-mean", "loss.gate=response"),
        ("loss.aggregate=constant", "loss.normalizer=all", "loss.gate=token"),
        ("loss.aggregate=seq-mean-token-mean", "loss.ratio=sequence"),
        pytest.param(
            ("loss.entropy_weight=0.5",),
        ),
    ],
)
def test_micro_batch_size_does_not_change_the_gradient(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    found = {}
    for size in (1, 2, 8):
        args = settings(
            tmp_path / str(size),
            *overrides,
            "loss.llds_weight=1.0",
            "training.steps=1",
            f"training.micro_batch_size={size}",
            method="llds-action",
        )
        found[size] = run(args).gradients
        assert len(found[size]) == 4
    assert max(g.abs().max().item() for g in found[1][0].values()) > 1e-3
    for size in (2, 8):
        for one, other in zip(found[1], found[size], strict=True):
            assert largest_difference(one, other) < 1e-6


def test_every_parameter_moves(tmp_path: Path) -> None:
    before = weights(policy())
    after = weights(run(settings(tmp_path, "training.steps=1", method="llds-action")).model)
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_observations_and_padding_get_exactly_no_gradient(tmp_path: Path) -> None:
    trainer = run(
        settings(tmp_path, "training.steps=2", "loss.kl_weight=0.1", method="llds-action")
    )
    observed = 0
    for record in trainer.records:
        mask = (record["inputs"]["tool_mask"] * record["inputs"]["completion_mask"]).bool()
        assert record["gradient"][~mask].abs().sum() == 0.0
        observed += int((~mask).sum())
    assert observed > 50


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_an_impossible_observation_does_not_spoil_the_update(tmp_path: Path, kl: float) -> None:
    """A collapsing policy may find a retrieved token 150 nats less likely: no reason to skip."""

    rows: list[dict[str, Any]] = []
    trainer = build(
        settings(tmp_path, f"loss.kl_weight={kl}", "training.steps=1", method="llds-action"),
        on_step=lambda row, made: rows.append(row),
    )
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def drifted(self: Any, model: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        logps, *rest = original(self, model, ids, *args, **kwargs)
        if torch.is_grad_enabled() and self.state.global_step > 0:
            tail = ids[:, -logps.shape[1] :]
            observed = torch.zeros_like(tail, dtype=torch.bool)
            for one in trajectories(1):
                for row in range(len(tail)):
                    if tail[row, : len(one.completion_ids)].tolist() == one.completion_ids:
                        span = torch.tensor(one.response_mask) == 0
                        observed[row, : len(span)] = span
            # Down for the divergence, up for the ratio.
            shift = 150.0 if kl == 0 else -150.0
            logps = torch.where(observed, logps + shift, logps)
        return (logps, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", drifted)
        trainer.train()
    assert rows[0]["nonfinite_updates"] == 0


def test_first_update_sees_the_old_policy_bit_for_bit(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    trainer = run(
        settings(tmp_path, "training.steps=3", "loss.kl_weight=0.02", method="llds-action"),
        on_step=lambda row, made: rows.append(row),
    )
    assert [row["gated_fraction_first"] for row in rows] == [0.0, 0.0, 0.0]
    assert all(row["gated_fraction"] > 0 for row in rows)
    for record in trainer.records:
        if record["update"] % trainer.updates_per_step == 0:
            assert torch.equal(record["logprobs"], record["inputs"]["old_per_token_logps"])


def test_reference_divergence_is_zero_in_the_first_rollout_only(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    args = settings(tmp_path, "training.steps=2", "loss.kl_weight=0.02")
    run(args, on_step=lambda row, made: rows.append(row))
    assert rows[0]["kl"] == 0.0
    assert rows[1]["kl"] > 0.0


# --- non-finite updates ---------------------------------------------------------------------------


class Snapshots(TrainerCallback):
    """Weights and Adam state after every update, and before the first."""

    def __init__(self) -> None:
        self.states: list[tuple[dict, dict]] = []

    def _take(self, model: Any, optimizer: Any) -> None:
        moments = {}
        for index, parameter in enumerate(model.parameters()):
            for key, value in optimizer.state.get(parameter, {}).items():
                moments[f"{index}.{key}"] = torch.as_tensor(value).clone()
        self.states.append((weights(model), moments))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(kwargs["model"], kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(kwargs["model"], kwargs["optimizer"])


def poison(trainer: SearchGRPOTrainer, where: str, updates: set[int]) -> None:
    """Make loss or gradient non-finite in `updates` (counted from 0)."""

    def now() -> bool:
        return torch.is_grad_enabled() and trainer.state.global_step in updates

    if where == "gradient":
        parameter = next(trainer.model.parameters())
        parameter.register_hook(
            lambda g: g * float("inf") if trainer.state.global_step in updates else None
        )
    else:
        value = float("nan")
        head = trainer.model.base_model.norm
        head.register_forward_hook(lambda m, a, out: out * value if now() else None)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("update", [0, 2])
def test_non_finite_update_changes_neither_weights_nor_moments(
    tmp_path: Path, where: str, update: int
) -> None:
    rows: list[dict[str, Any]] = []
    snapshots = Snapshots()
    trainer = build(
        settings(tmp_path, "training.steps=2", method="llds-action"),
        callbacks=[snapshots],
        on_step=lambda row, made: rows.append(row),
    )
    poison(trainer, where, {update})
    trainer.train()
    assert len(snapshots.states) == 9
    for index in range(8):
        before, after = snapshots.states[index], snapshots.states[index + 1]
        same_weights = largest_difference(before[0], after[0]) == 0.0
        same_moments = before[1].keys() == after[1].keys() and all(
            torch.equal(before[1][key], after[1][key]) for key in before[1]
        )
        assert same_weights == same_moments == (index == update)
    assert [row["nonfinite_updates"] for row in rows] == [1, 0]
    assert all(torch.isfinite(value).all() for value in weights(trainer.model).values())
    assert trainer.nonfinite_in_a_row == 0


def test_too_many_non_finite_updates_in_a_row_end_the_run(tmp_path: Path) -> None:
    args = settings(tmp_path, "training.steps=3", "training.max_nonfinite_updates=5")
    trainer = build(args)
    poison(trainer, "loss", set(range(2, 100)))
    with pytest.raises(TrainingDivergedError, match="5 updates in a row at step 2"):
        trainer.train()


def test_scattered_non_finite_updates_do_not_end_the_run(tmp_path: Path) -> None:
    trainer = build(settings(tmp_path, "training.steps=2", "training.max_nonfinite_updates=2"))
    poison(trainer, "gradient", {0, 2, 4, 6})
    trainer.train()
    assert trainer.state.global_step == 8


# --- arguments ------------------------------------------------------------------------------------


def test_settings_that_could_never_act_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="updates_per_rollout"):
        settings(
            tmp_path, "training.updates_per_rollout=1", "training.epochs=1", method="llds-action"
        )


def test_rollout_without_a_mask_is_refused(tmp_path: Path) -> None:
    def unmasked(rows: Any, model: Any, step: int) -> Rollout:
        made = trajectories(step)
        made[3].response_mask = made[3].response_mask[:-1]
        return Rollout(made, 0.1, 0.0)

    with pytest.raises(ValueError, match="env_mask of trajectory 3"):
        build(settings(tmp_path, "training.steps=1"), rollout=unmasked).train()


def test_training_moves_no_global_random_stream_it_does_not_own(tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        trainer = build(settings(tmp_path / str(seed), "training.steps=1"))
        torch.manual_seed(seed)
        trainer.train()
        results.append(weights(trainer.model))
    assert largest_difference(*results) == 0.0
    assert len(TOKENIZER) <= 300
