"""The trainer against `losses/`; what its batches carry, what its head scores."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded import NoPenaltyCode, Recorded, run
from scripted import TOKENIZER, largest_difference, policy, settings, trajectories, weights

from llds_core import losses
from llds_core.config import LossConfig
from llds_core.training.micro_batches import answer_weight
from llds_core.training.policy_head import add_policy_head, policy_labels
from llds_core.training.trainer import SearchGRPOTrainer

PENALTY = (
    "loss.llds_weight=1.5 loss.gate_threshold=0.001 loss.answer_ramp=paper loss.answer_weight=0.5"
)


def test_weight_zero_is_the_trainer_without_penalty_code_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for name, cls in (("with", SearchGRPOTrainer), ("without", NoPenaltyCode)):
        args = settings(tmp_path / name, "loss.kl_weight=0.05", "training.steps=2")
        results.append(weights(run(args, cls).model))
    assert largest_difference(*results) == 0.0
    assert largest_difference(results[0], weights(policy())) > 1e-4


def reference_loss(record: dict[str, Any], args: Any, logprobs: torch.Tensor) -> tuple:
    """The objective and its metrics from `losses/` alone, with the trainer's denominators."""
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
    old, advantages = batch["old_per_token_logps"], batch["group_advantages"]
    advantages = advantages.clamp(min=-torch.inf if args.loss.negative_advantages else 0)
    if (mode_of_correction := args.sampler.correction) != "none":
        sampled = batch["sampling_per_token_logps"]
        weight = losses.sampler_correction(old, sampled, mask, mode=mode_of_correction, cap=1.5)
        advantages = advantages[:, None] * weight
    clips = {"clip_low": args.epsilon, "clip_high": args.epsilon_high}
    how = {"ratio": args.importance_sampling_level, "aggregate": mode, "denominator": denominator}
    loss, metrics = losses.policy_loss(logprobs, old, advantages, mask, **clips, **how)
    if args.beta:
        divergence = batch.get("clamped")
        if divergence is None:
            divergence, _ = losses.kl_k3(logprobs, batch["ref_per_token_logps"])
        loss = loss + args.beta * losses.aggregate(divergence, mask, mode, denominator)
    if args.loss.llds_weight:
        names = ("gate", "normalizer", "preserve", "gate_threshold")
        options = {name: getattr(args.loss, name) for name in names}
        options |= {"answer_mask_BT": batch["answer_mask"], "answer_weight": batch["answer_weight"]}
        options["denominator"] = batch["penalty_count"]
        penalty, counts = losses.llds_penalty(
            logprobs, old, mask, batch["group_advantages"], **options
        )
        loss = loss + args.loss.llds_weight * penalty
        metrics |= counts | {"penalty": penalty.detach()}
    return loss, metrics


@pytest.mark.parametrize(
    "overrides",
    [
        *(
            f"loss.kl_weight=0.02 loss.aggregate={aggregation} loss.ratio={ratio}"
            for aggregation, ratio in (
                *(("token-mean", "token"), ("seq-mean-token-mean", "token"), ("constant", "token")),
                *(("token-mean-micro", "token"), ("seq-mean-token-mean", "sequence")),
            )
        ),
        # Each formula is computed by hand in `losses/test_mismatch.py`.
        "sampler.correction=token_mask sampler.correction_cap=1.5",
        "sampler.correction=sequence_truncate sampler.correction_cap=1.5",
        "loss.negative_advantages=false",
        *(
            f"{PENALTY} loss.gate={gate} loss.normalizer={normalizer} loss.preserve={preserve}"
            for gate, normalizer, preserve in (  # every pair of values, once
                *(("action", "preserved", "nonnegative"), ("action", "all", "positive")),
                *(("response", "preserved", "positive"), ("response", "all", "nonnegative")),
                *(("token", "preserved", "nonnegative"), ("token", "all", "positive")),
            )
        ),
    ],
)
def test_loss_and_gradient_equal_the_reference(tmp_path: Path, overrides: str) -> None:
    values = (*overrides.split(), "training.steps=1", "loss.clip_low=0.001", "loss.clip_high=0.002")
    trainer = run(settings(tmp_path, *values, method="llds-action"))
    args, (row,) = trainer.args, trainer.rows
    pushed, found = 0.0, []
    for record in trainer.records:
        logprobs = record["logprobs"].clone().requires_grad_()
        expected, metrics = reference_loss(record, args, logprobs)
        found.append({name: value.item() for name, value in metrics.items()})
        assert record["loss"].item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-5)
        (gradient,) = torch.autograd.grad(expected, logprobs)
        torch.testing.assert_close(record["gradient"], gradient, atol=1e-7, rtol=1e-4)
        pushed = max(pushed, gradient.abs().max().item())
    assert pushed > 1e-5
    of = {name: [metrics[name] for metrics in found] for name in found[0]}
    clipped = sum(map(math.prod, zip(of["clip_fraction"], of["tokens"], strict=True)))
    norms = [torch.cat([g.flatten() for g in made.values()]).norm() for made in trainer.gradients]
    wanted = {
        "clip_fraction": clipped / sum(of["tokens"]),
        "ratio_max": max(of["ratio_max"]),
        "ratio_min": min(of["ratio_min"]),
        "gated_fraction": sum(of["gated_tokens"]) / sum(of["preserved_tokens"]),
        "llds_penalty": sum(of["penalty"]) / args.max_steps,
        "loss": sum(record["loss"].item() for record in trainer.records) / args.max_steps,
        "grad_norm": sum(norms).item() / args.max_steps,
        "grad_norm_max": max(norms).item(),
        "learning_rate": args.learning_rate,
    }
    assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-6, rel=1e-5)
    # Of the rewarded responses none loses likelihood in all.
    loses = "gate=response loss.normalizer=preserved" not in overrides
    assert 0 < row["clip_fraction"] < 1 and (row["llds_penalty"] > 0) == loses
    batches = [record["inputs"] for record in trainer.records]
    # The penalty knows who was wrong, whatever the surrogate is given.
    for name, known in (("group_advantages", True), ("advantages", args.loss.negative_advantages)):
        assert any((batch[name] < 0).any() for batch in batches) == known
    searches = sum(t.searches for t in trajectories(1)) / 16
    weight = 0.5 * losses.answer_weight_ramp(searches) if overrides.startswith(PENALTY) else 1.0
    assert all(batch["answer_weight"] == pytest.approx(weight) for batch in batches)
    if not args.micro_batch_means:
        check_penalty_counts(trainer, args)


def test_the_official_ramp_of_answers_ends_at_the_weight_of_the_penalty() -> None:
    """min(0.2 max(V - 1, 0), weight), as a share of the weight."""
    rows = [SimpleNamespace(searches=count) for count in (1, 2)]
    for weight, share in (0.1, 1.0), (0.2, 0.5), (0.3, 1 / 3):
        loss = LossConfig(llds_weight=weight, answer_ramp="code")
        assert answer_weight(rows, loss) == pytest.approx(share)


def check_penalty_counts(trainer: Recorded, args: Any) -> None:
    """They are those of the mini-batch."""
    for update in range(args.max_steps):
        window = [r["inputs"] for r in trainer.records if r["update"] == update]
        total = 0
        for batch in window:
            kept = batch["group_advantages"] > 0
            if args.loss.preserve == "nonnegative":
                kept |= batch["group_advantages"] == 0
            if args.loss.normalizer == "all":
                kept = torch.ones_like(kept)
            total += int((batch["tool_mask"] * batch["completion_mask"])[kept].sum())
        assert len(window) == args.gradient_accumulation_steps
        assert all(float(batch["penalty_count"]) == total for batch in window)


def test_clamped_divergence_has_the_gradient_of_the_reference(tmp_path: Path) -> None:
    """Some tokens drift beyond the clamp, some do not, and every update asks anew which."""
    clamp = 0.0005
    loss = ("loss.kl_weight=0.5", f"loss.kl_clamp={clamp}", "training.learning_rate=1e-2")
    args = settings(tmp_path, *loss, "training.steps=1")
    trainer = run(args)
    let_go = pulled = 0
    for record in trainer.records:
        batch = record["inputs"]
        original = next(
            micro
            for window in trainer._buffered_inputs
            for micro in window
            if torch.equal(micro["rows"], batch["rows"])
        )["ref_per_token_logps"]
        mask = batch["policy_mask"]
        logprobs = record["logprobs"].clone().requires_grad_()
        values, _ = losses.kl_k3(logprobs, original, mask, clamp=clamp)
        let_go += int((values == clamp).sum())
        pulled += int(((values < clamp) & (values > 0)).sum())
        record["inputs"] = batch | {"clamped": values}
        wanted, _ = reference_loss(record, args, logprobs)
        (gradient,) = torch.autograd.grad(wanted, logprobs)
        torch.testing.assert_close(record["gradient"], gradient, atol=1e-7, rtol=1e-4)
    assert let_go and pulled


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
                prompt = batch["prompt_mask"][position].bool()
                assert batch["prompt_ids"][position][prompt].tolist() == one.prompt_ids
                real = batch["completion_mask"][position].bool()
                for key, wanted in (
                    ("completion_ids", one.completion_ids),
                    ("tool_mask", one.response_mask),
                    ("action_ids", one.action_ids),
                ):
                    assert batch[key][position][real].tolist() == wanted
                answer = batch["answer_mask"][position].nonzero().flatten().tolist()
                assert answer == list(range(*one.answer_span))
        assert sorted(seen) == list(range(16))


def test_rows_of_the_embedding_that_are_no_tokens_take_no_probability_and_no_gradient() -> None:
    plain, wide, count = policy(), policy(), len(TOKENIZER)
    wide.resize_token_embeddings(count + 5, mean_resizing=False)
    with torch.no_grad():
        wide.get_output_embeddings().weight[count:] = 9.0
    ids = torch.arange(2, 22)[None]
    labels = policy_labels(ids, torch.ones(1, 12))
    scores = []
    for model in (plain, wide):
        add_policy_head(model, vocabulary=count)
        scores.append(model(input_ids=ids, policy_labels=labels))
        scores[-1].log_probs.sum().backward()
    for name in ("log_probs", "entropy"):
        wide_scores, plain_scores = (getattr(each, name) for each in reversed(scores))
        torch.testing.assert_close(wide_scores, plain_scores, rtol=0, atol=1e-5)
    gradients = [model.get_input_embeddings().weight.grad for model in (plain, wide)]
    torch.testing.assert_close(gradients[1][:count], gradients[0], rtol=0, atol=1e-4)
    assert not gradients[1][count:].any()
