"""A step's metrics against a slow recomputation, one trajectory at a time and without padding."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import run
from scripted import GROUP, build, policy, rollout, settings, trajectories
from toy_groups import look, plain_scores
from transformers import TrainerCallback

from llds_core.config import LossConfig, TrainingConfig
from llds_core.diagnostics.metrics import METRICS
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import Trajectory
from llds_core.training.step_metrics import Part, StepMetrics

STEPS = 3


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Row, trajectories and the policies before and after, of each step."""
    before: list[torch.nn.Module] = []
    found: list[dict[str, Any]] = []

    def watched(rows: Sequence[dict[str, Any]], model: torch.nn.Module, step: int) -> Any:
        before.append(copy.deepcopy(model).eval())
        return rollout(rows, model, step)

    def on_step(row: dict[str, Any], made: list[Trajectory]) -> None:
        new = copy.deepcopy(trainer.model).eval()
        found.append({"row": row, "made": made, "old": before[-1], "new": new})

    changed = (f"training.steps={STEPS}", "loss.kl_weight=0.05")
    args = settings(tmp_path_factory.mktemp("metrics"), *changed, method="llds-action")
    trainer = build(args, rollout=watched, on_step=on_step)
    trainer.train()
    assert [step["row"]["step"] for step in found] == [1, 2, 3]
    return found


@pytest.mark.parametrize("how", ["groups", "shuffled"])
def test_each_update_moves_its_own_questions_and_others(tmp_path: Path, how: str) -> None:
    """Against policies kept after each update, one trajectory at a time."""
    policies, made = [], trajectories(1)

    class Keeper(TrainerCallback):
        def on_step_end(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
            policies.append(copy.deepcopy(model).eval())

    changed = ("training.steps=1", "diagnostics.each_update=true", f"training.mini_batches={how}")
    args = settings(tmp_path, *changed)
    trainer = run(args, callbacks=[Keeper()])
    policies.insert(0, policy().eval())

    def total(model: torch.nn.Module, one: Trajectory) -> float:
        return plain_scores(model, one)[0].sum().item()

    found: dict[str, list[float]] = {"own_update": [], "other_updates": []}
    for update, (before, after) in enumerate(pairwise(policies)):
        batches = [r["inputs"]["rows"].tolist() for r in trainer.records if r["update"] == update]
        trained = {row // GROUP for batch in batches for row in batch}
        for question in range(len(made) // GROUP):
            group = made[GROUP * question :][:GROUP]
            correct = [one for one in group if one.correct]
            if 0 < len(correct) < GROUP:
                which = "own_update" if question in trained else "other_updates"
                found[which].append(mean([total(after, t) - total(before, t) for t in correct]))
    for which, changes in found.items():
        assert trainer.rows[0][f"change_{which}"] == pytest.approx(mean(changes), abs=1e-5)
        assert trainer.rows[0][f"fall_{which}"] == mean([change < 0 for change in changes])
        # Single rows of every question are in every update here.
        assert changes or (how, which) == ("shuffled", "other_updates")


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None


def expected(step: dict[str, Any]) -> dict[str, float | None]:
    start = policy().eval()
    tokens: list[dict[str, Any]] = []
    change: dict[bool, list[float]] = {True: [], False: []}
    pooled = []
    for one in step["made"]:
        old, entropy, states = look(step["old"], one)
        new, reference = look(step["new"], one)[0], look(start, one)[0]
        mask = torch.tensor(one.response_mask).bool()
        change[one.correct].append((new - old)[mask].sum().item())
        pooled.append(states[mask].mean(0))
        for index, policy_token in enumerate(one.response_mask):
            if policy_token:
                difference = (reference[index] - old[index]).item()
                tokens.append(
                    {
                        "correct": one.correct,
                        "first": one.action_ids[index] == 1,
                        "loglik": old[index].item(),
                        "sampler_gap": abs(one.sampler_logprobs[index] - old[index].item()),
                        "entropy": entropy[index].item(),
                        "kl": torch.tensor(difference).double().expm1().item() - difference,
                    }
                )
    values: dict[str, float | None] = {
        "reward": mean([one.reward for one in step["made"]]),
        "response_length": len(tokens) / len(step["made"]),
        "sampler_gap_max": max(token["sampler_gap"] for token in tokens),
        "loglik_change_correct": mean(change[True]),
        "loglik_change_incorrect": mean(change[False]),
    }
    for name in ("entropy", "sampler_gap", "kl"):
        values[name] = mean([token[name] for token in tokens])
    for name, correct in (("correct", True), ("incorrect", False)):
        of = [token for token in tokens if token["correct"] == correct]
        values[f"loglik_{name}"] = mean([t["loglik"] for t in of])
        values[f"loglik_{name}_first"] = mean([t["loglik"] for t in of if t["first"]])
        values[f"loglik_{name}_later"] = mean([t["loglik"] for t in of if not t["first"]])
    groups = [range(i, i + GROUP) for i in range(0, len(step["made"]), GROUP)]
    values["zero_variance_groups"] = mean(
        [float(len({step["made"][i].reward for i in group}) == 1) for group in groups]
    )
    similarities = []
    for group in groups:
        pairs = [
            torch.cosine_similarity(pooled[i], pooled[j], dim=0).item()
            for i in group
            for j in group
            if step["made"][i].correct and not step["made"][j].correct
        ]
        if pairs:
            similarities.append(mean(pairs))
    values["hidden_similarity"] = mean(similarities)
    return values


@pytest.mark.parametrize("index", range(STEPS))
def test_row_equals_a_slow_recomputation(steps: list[dict[str, Any]], index: int) -> None:
    row = steps[index]["row"]
    for name, value in expected(steps[index]).items():
        assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name


@pytest.mark.parametrize("index", range(STEPS))
def test_stored_trajectories_carry_the_change_of_every_token(steps, index) -> None:
    step = steps[index]
    stored = TrainingConfig().trajectories_per_step
    for one in step["made"][:stored]:
        moved = look(step["new"], one)[0] - look(step["old"], one)[0]
        wanted = (moved * torch.tensor(one.response_mask)).tolist()
        assert one.logprob_changes == pytest.approx(wanted, rel=2e-4, abs=2e-6)
    assert {len(one.logprob_changes) for one in step["made"][stored:]} == {0}


def test_counts_come_from_the_trajectories(steps: list[dict[str, Any]]) -> None:
    for number, step in enumerate(steps, 1):
        row, made = step["row"], step["made"]
        assert set(row) == set(METRICS)
        assert row["updates"] == 4 * number
        assert row["em"] == mean([one.correct for one in made])
        assert row["valid_searches"] == mean([len(one.actions) - 1 for one in made])
        assert row["observation_length"] == mean([one.response_mask.count(0) for one in made])
        assert row["failed_searches"] == 0.0
        executed = [action for one in made for action in one.actions if action.executed]
        blank = [all(hit.is_blank for hit in action.hits) for action in executed]
        assert row["empty_searches"] == mean([*map(float, blank)]) and {*blank} == {False, True}
        cut = sum(one.cut_observations for one in made)
        assert row["cut_observations"] == pytest.approx(cut / len(executed)) and cut
        assert (row["valid_answers"], row["invalid_actions"]) == (1, 0)
        assert (row["rollout_seconds"], row["retrieval_seconds"]) == (0.5, 0.1)
        assert row["rollout_tokens_per_second"] == row["response_length"] * len(made) / 0.5
        trained = row["update_tokens_per_second"] * row["update_seconds"]
        assert trained == pytest.approx(2 * sum(one.total_tokens for one in made))  # two epochs
        assert row["zero_variance_groups"] == 0.25
        assert 0.0 < row["padding"] < 0.5
        assert row["ratio_min"] < 1.0 < row["ratio_max"]
        assert row["gpu_memory"] is None  # a CPU has none
        # Preserved are the tokens of nonnegative advantage.
        kept = total = 0
        for start in range(0, len(made), GROUP):
            group = made[start : start + GROUP]
            for one in group:
                total += sum(one.response_mask)
                kept += sum(one.response_mask) * (one.reward >= mean([o.reward for o in group]))
        assert row["preserved_fraction"] == pytest.approx(kept / total)


def test_conditional_means_are_null_when_nothing_meets_the_condition(tmp_path: Path) -> None:
    def all_wrong(given: Sequence[dict[str, Any]], model: torch.nn.Module, step: int) -> Any:
        made = rollout(given, model, step)
        for one in made.trajectories:
            one.reward, one.correct = 0.0, False
        return made

    args = settings(tmp_path, "training.steps=1", "loss.kl_weight=0")
    (row,) = run(args, rollout=all_wrong).rows
    for name in ("loglik_correct", "loglik_correct_first", "loglik_correct_later"):
        assert row[name] is None
    assert row["loglik_change_correct"] is row["hidden_similarity"] is row["kl"] is None
    assert row["zero_variance_groups"] == row["preserved_fraction"] == 1.0


def test_parts_of_several_processes_add_up_but_for_what_all_have_counted() -> None:
    def part(sums: dict[str, float], counts: dict[str, float], extreme: float, row: int) -> Part:
        extremes = {"ratio_max": extreme, "ratio_min": -extreme}
        own = {row: torch.ones(2)}, {(0, row): -1.0}, {0: {row}}, {row: [-0.5]}
        return Part(sums, counts, extremes, *own)

    metrics = StepMetrics(rollout([{}] * 2 * GROUP, None, 1), 1, GROUP, LossConfig())
    metrics.merge(
        [
            part({"entropy": 6.0, "loss": 1.0, "nonfinite_updates": 1}, {"entropy": 2}, 1.5, 0),
            part({"entropy": 1.0, "nonfinite_updates": 1}, {"entropy": 5, "loss": 2}, 0.5, 1),
        ]
    )
    whole = metrics.part
    assert whole.sums == {"entropy": 7.0, "loss": 1.0, "nonfinite_updates": 1.0}
    assert whole.counts == {"entropy": 7.0, "loss": 2.0}  # a mean of all tokens, not of two means
    assert whole.extremes == {"ratio_max": 1.5, "ratio_min": -1.5}
    assert sorted(whole.states) == [0, 1]
    assert whole.moves == {(0, 0): -1.0, (0, 1): -1.0} and whole.updated == {0: {0, 1}}
    assert [t.logprob_changes for t in metrics.trajectories[:3]] == [[-0.5], [-0.5], []]
    # Of GPU memory, in GiB, the fullest process counts.
    other = StepMetrics(Rollout([], 0.0, 0.0), 1, 1, LossConfig())
    metrics.add_gpu_memory(2 * 2**30)
    other.add_gpu_memory(3 * 2**30)
    metrics.merge([metrics.part, other.part])
    assert metrics.part.extremes["gpu_memory"] == 3.0


def test_trajectories_that_the_loss_leaves_out_are_no_incorrect_ones() -> None:
    """`loss.mask_truncated` leaves them no policy token: they neither change nor have a state."""
    metrics = StepMetrics(rollout([{}] * 2 * GROUP, None, 1), 1, GROUP, LossConfig())
    right = [one.correct for one in metrics.trajectories]
    mask = torch.zeros(2 * GROUP, 1)
    mask[[right.index(True), right.index(False)]] = 1
    micro = {"rows": torch.arange(2 * GROUP), "policy_mask": mask}
    metrics.add_final_logprobs(micro | {"old_per_token_logps": 0 * mask}, -mask)
    metrics.part.states = dict(enumerate(mask))
    row = metrics.row(updates=1)
    assert row["loglik_change_incorrect"] == row["loglik_change_correct"] == -1
    assert row["hidden_similarity"] == 1
