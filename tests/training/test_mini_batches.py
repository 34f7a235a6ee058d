"""Which rows share an update, and the official code's objective over its own slices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, run
from rounding import assert_same_gradients
from scripted import largest_difference, settings, weights
from shared_trainers import CASES

from llds_core.config import laid_over
from llds_core.config.seeding import torch_generator
from llds_core.training.micro_batches import mini_batch_rows, pack
from llds_core.training.settings import SearchGRPOConfig

LENGTHS = [(7 * row) % 23 + 4 for row in range(32)]
BUDGET = 90


def rows_of(args: SearchGRPOConfig, processes: int, step: int = 1) -> list[list[list[int]]]:
    """32 rows in mini-batches of 8, whatever the number of processes."""
    args.gradient_accumulation_steps = 8 // args.per_device_train_batch_size // processes
    generator = torch_generator(0, "mini-batches", step)
    return mini_batch_rows(LENGTHS, args, processes=processes, generator=generator)


def mini_batches(batches: list[list[list[int]]]) -> list[list[int]]:
    return [sorted(row for share in shares for row in share) for shares in batches]


@pytest.mark.parametrize("how", ["groups", "shuffled"])
def test_every_row_is_in_one_update_the_same_on_any_number_of_processes(tmp_path, how) -> None:
    args = settings(tmp_path, f"training.mini_batches={how}", "training.micro_batch_size=2")
    alone = mini_batches(rows_of(args, 1))
    assert sorted(row for rows in alone for row in rows) == list(range(32))
    assert [len(rows) for rows in alone] == [8] * 4
    for processes in (2, 4):
        batches = rows_of(args, processes)
        assert mini_batches(batches) == alone
        for share in (share for shares in batches for share in shares):
            assert len(share) == 8 // processes  # of similar lengths side by side
            assert share == sorted(share, key=LENGTHS.__getitem__)
    assert mini_batches(rows_of(args, 1, step=2)) != alone
    whole = [{row // 4 for row in rows} for rows in alone]
    assert all(len(groups) == 2 for groups in whole) == (how == "groups")


@pytest.mark.parametrize(
    ("case", "padded"),
    [
        *(("token-mean", True), ("gspo", False), ("constant", True), ("by-tokens", False)),
        *(("action-preserved", True), ("action-preserved", False), ("lp-reg", True)),
        *(("response-preserved", True), ("token-all", True)),
    ],
)
def test_how_a_mini_batch_is_cut_changes_no_update(tmp_path: Path, case: str, padded: bool) -> None:
    """By eights, by ones, or by a budget of tokens."""
    options = (*CASES[case], "training.mini_batches=groups", "training.steps=2")
    options += (f"training.remove_padding={str(not padded).lower()}",)
    made = []
    for size, budget in ((8, "null"), (1, "null"), (8, BUDGET)):
        how = (f"micro_batch_size={size}", f"max_tokens_per_micro_batch={budget}")
        values = laid_over(options, [f"training.{value}" for value in how])
        made.append(run(settings(tmp_path / str(len(made)), *values, adam_epsilon=1e-5)))
    fixed, _, packed = made
    counts = [len(record["inputs"]["rows"]) for record in packed.records]
    assert len({*counts}) > 1 and len(packed.rows) == 2 == len(fixed.rows)
    for record in packed.records:
        masks = [record["inputs"][f"{part}_mask"] for part in ("prompt", "completion")]
        size = sum(mask.numel() if padded else int(mask.sum()) for mask in masks)
        assert size <= BUDGET or len(masks[0]) == 1
    assert max(g.abs().max().item() for g in fixed.gradients[0].values()) > 1e-3
    for trainer in made[1:]:
        for one, other in zip(fixed.gradients[:4], trainer.gradients[:4], strict=True):
            assert_same_gradients(one, other)
        assert largest_difference(weights(fixed.model), weights(trainer.model)) < 1e-5
        for one, other in zip(fixed.rows, trainer.rows, strict=True):
            for name in ("loss", "llds_penalty", "loglik_correct", "loglik_change_correct", "kl"):
                assert other[name] == pytest.approx(one[name], abs=1e-4), name


def test_every_process_has_as_many_rows_in_a_micro_batch() -> None:
    lengths = [[2] * 8, [3, 3, 3, 3, 8, 8, 8, 30]]
    shares = [[0, 1, 2, 3], [4, 5, 6, 7]]
    # A row of 32 tokens goes alone; 2 × (2 + 8) fit, 3 × (2 + 8) do not.
    packed = [[[0, 1], [2], [3]], [[4, 5], [6], [7]]]
    assert pack(shares, lengths, 20, padded=True) == packed
    assert pack(shares[:1], lengths, 20, padded=False) == [[[0, 1, 2, 3]]]


def test_the_change_of_a_step_is_measured_on_drawn_micro_batches(tmp_path: Path) -> None:
    """Another draw in each step; the updates stay as they were, to the bit."""
    drawn: list[list[int]] = []

    class Watched(Recorded):
        def after_update(self) -> None:
            self.metrics.add_final_logprobs = self._keep
            super().after_update()

        def _keep(self, micro: dict[str, Any], logprobs: torch.Tensor) -> None:
            drawn[self.step - 2] += micro["rows"].tolist()
            type(self.metrics).add_final_logprobs(self.metrics, micro, logprobs)

    options = ("training.steps=2", "training.micro_batch_size=1")
    usual = run(settings(tmp_path, *options))
    options += ("diagnostics.each_update=true",)
    for share, seen in ((0.0, 0), (0.2, 4), (1.0, 16)):
        drawn[:] = [], []
        made = run(settings(tmp_path, *options, f"diagnostics.final_share={share}"), Watched)
        assert [len(rows) for rows in drawn] == [seen] * 2
        assert (made.rows[0]["loglik_change_incorrect"] is None) == (seen == 0)
        assert seen != 4 or {*drawn[0]} != {*drawn[1]}
        assert largest_difference(weights(made.model), weights(usual.model)) == 0.0


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [
        # Differences 1 (9|8), 1 (7|6), 1 (5|4), 1 (3|2): pairs cancel.
        ([9, 8, 7, 6, 5, 4, 3, 2], [[0, 3, 5, 6], [1, 2, 4, 7]]),
        ([10, 1, 1, 1], [[0, 1], [2, 3]]),
    ],
)
def test_balanced_slices_differ_as_little_as_by_hand(tmp_path, lengths, shares) -> None:
    args = settings(tmp_path, "training.mini_batches=balanced", "loss.aggregate=token-mean-micro")
    args.per_device_train_batch_size, args.gradient_accumulation_steps = len(lengths) // 2, 1
    (made,) = mini_batch_rows(lengths, args, processes=2, generator=torch.Generator())
    totals = [sum(lengths[row] for row in share) for share in made]
    assert sorted(totals) == sorted(sum(lengths[row] for row in share) for share in shares)
    assert all(share == sorted(share) for share in made)
    assert sorted(row for share in made for row in share) == list(range(len(lengths)))


def official_loss(batch: dict[str, Any], logprobs: torch.Tensor, accumulated: int) -> torch.Tensor:
    """One micro-batch of the official actor, row by row, over its policy tokens."""
    policy = (batch["tool_mask"] * batch["completion_mask"]).bool()
    surrogate = divergence = penalty = torch.zeros(())
    for row, mask in enumerate(policy):
        new, old = logprobs[row], batch["old_per_token_logps"][row]
        ratio = torch.exp(new - old)
        advantage = batch["group_advantages"][row]
        worse = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        surrogate = surrogate + worse[mask].sum()
        gap = batch["ref_per_token_logps"][row] - new
        divergence = divergence + (gap.exp() - gap - 1)[mask].sum()
        if advantage < 0:
            continue
        for action in batch["action_ids"][row][mask].unique():
            lost = (old.detach() - new)[mask & (batch["action_ids"][row] == action)]
            if lost.sum() > 0:
                penalty = penalty + lost.clamp(min=0).sum()
    total = surrogate + 0.02 * divergence + 0.5 * penalty
    return total / policy.sum() / accumulated


def test_the_official_objective_is_that_of_its_own_slices(tmp_path: Path) -> None:
    loss = ("aggregate=token-mean-micro", "kl_weight=0.02", "llds_weight=0.5", "normalizer=all")
    overrides = [*(f"loss.{value}" for value in loss), "training.mini_batches=balanced"]
    trainer = run(settings(tmp_path, *overrides, "training.steps=1", method="llds-action"))
    rows = [record["inputs"]["rows"].tolist() for record in trainer.records]
    per_epoch = [list(range(4 * index, 4 * index + 4)) for index in range(4)]
    assert rows == 2 * per_epoch
    penalised = False
    for record in trainer.records:
        logprobs = record["logprobs"].clone().requires_grad_()
        steps = trainer.args.gradient_accumulation_steps
        expected = official_loss(record["inputs"], logprobs, steps)
        assert record["loss"].item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-5)
        (gradient,) = torch.autograd.grad(expected, logprobs)
        torch.testing.assert_close(record["gradient"], gradient, atol=1e-7, rtol=1e-4)
        penalised |= trainer.rows[0]["llds_penalty"] > 0
    assert penalised
