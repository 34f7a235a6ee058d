"""Gradients, masks, non-finite updates and arguments of the trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, run
from run_helpers import refused
from scripted import build, largest_difference, settings, trajectories, weights
from transformers import TrainerCallback
from trl import GRPOTrainer

from llds_core.errors import TrainingDivergedError
from llds_core.rollout.loop import Rollout
from llds_core.training.trainer import SearchGRPOTrainer


def test_first_update_sees_the_old_policy_exactly_and_no_observation_a_gradient(tmp_path) -> None:
    args = settings(tmp_path, "training.steps=3", "loss.kl_weight=0.1", method="llds-action")
    trainer = run(args)
    assert [row["gated_fraction_first"] for row in trainer.rows] == [0.0, 0.0, 0.0]
    assert all(row["gated_fraction"] > 0 for row in trainer.rows)
    assert trainer.rows[0]["kl"] == 0.0 and trainer.rows[1]["kl"] > 0.0
    observed = 0
    for record in trainer.records:
        batch = record["inputs"]
        if record["update"] % trainer.updates_per_step == 0:
            assert torch.equal(record["logprobs"], batch["old_per_token_logps"])
        mask = (batch["tool_mask"] * batch["completion_mask"]).bool()
        assert record["gradient"][~mask].abs().sum() == 0.0
        # TRL exponentiates before it masks: a token that drifted far would be infinity times 0.
        assert not record["logprobs"][~mask].any()
        observed += int((~mask).sum())
    assert observed > 50


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


def poison(
    trainer: SearchGRPOTrainer, where: str, updates: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make loss or gradient, and not the other, non-finite in `updates` (counted from 0)."""

    def now() -> bool:
        return trainer.state.global_step in updates

    if where == "gradient":
        parameter = next(trainer.model.parameters())
        parameter.register_hook(lambda g: g * float("inf") if now() else None)
    else:
        compute = GRPOTrainer._compute_loss
        spoilt = lambda *args: compute(*args) + (torch.inf if now() else 0)  # noqa: E731
        monkeypatch.setattr(GRPOTrainer, "_compute_loss", spoilt)


@pytest.mark.parametrize(("where", "update"), [("loss", 0), ("gradient", 2)])
def test_non_finite_update_changes_neither_weights_nor_moments(
    tmp_path, monkeypatch, where, update
) -> None:
    snapshots = Snapshots()
    args = settings(tmp_path, "training.steps=2", method="llds-action")
    trainer = build(args, Recorded, callbacks=[snapshots])
    poison(trainer, where, {update}, monkeypatch)
    trainer.train()
    assert len(snapshots.states) == 9
    for index in range(8):
        before, after = snapshots.states[index], snapshots.states[index + 1]
        same_weights = largest_difference(before[0], after[0]) == 0.0
        same_moments = before[1].keys() == after[1].keys() and all(
            torch.equal(before[1][key], after[1][key]) for key in before[1]
        )
        assert same_weights == same_moments == (index == update)
    assert [row["nonfinite_updates"] for row in trainer.rows] == [1, 0]
    assert all(torch.isfinite(value).all() for value in weights(trainer.model).values())
    assert trainer.nonfinite_in_a_row == 0


def test_too_many_non_finite_updates_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(tmp_path, "training.steps=3", "training.max_nonfinite_updates=5")
    trainer = build(args)
    poison(trainer, "loss", set(range(2, 100)), monkeypatch)
    refused(TrainingDivergedError, "5 updates in a row at step 2", trainer.train)


def test_rollout_without_a_mask_is_refused(tmp_path: Path) -> None:
    def unmasked(rows: Any, model: Any, step: int) -> Rollout:
        made = trajectories(step)
        made[3].response_mask = made[3].response_mask[:-1]
        return Rollout(made, 0.1, 0.0)

    trainer = build(settings(tmp_path, "training.steps=1"), rollout=unmasked)
    refused(ValueError, "env_mask of trajectory 3", trainer.train)


def test_training_moves_no_global_random_stream_it_does_not_own(tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        trainer = build(settings(tmp_path / str(seed), "training.steps=1"))
        torch.manual_seed(seed)
        trainer.train()
        results.append(weights(trainer.model))
    assert largest_difference(*results) == 0.0
