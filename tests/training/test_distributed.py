"""Several processes train as one: the same trajectories, mini-batches, gradients and metrics; the
end of one is the end of all.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import shared_trainers as shared
import torch
from rounding import assert_same_gradients
from scripted import largest_difference

from llds_core.training.processes import Processes


def computed_by_two(folder: Path, work: Callable) -> list[dict[str, Any]]:
    """What two processes have computed, by rank."""
    assert shared.wait(shared.spawn(2, work, folder)) == [0, 0]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return computed_by_two(tmp_path_factory.mktemp("two"), shared.compute_all)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """With a sharded model."""
    return computed_by_two(tmp_path_factory.mktemp("sharded"), shared.compute_sharded)


@cache
def alone(case: str, *overrides: str) -> dict[str, Any]:
    """What one process computes."""
    with tempfile.TemporaryDirectory() as folder:
        return shared.compute(case, Path(folder), Processes(), *overrides)


@pytest.mark.parametrize(
    ("shares", "case"),
    [*(("two", case) for case in shared.CASES), *(("sharded", case) for case in shared.SHARDED)],
)
def test_two_processes_give_the_gradient_and_metrics_of_one(request, shares, case) -> None:
    one = alone(case)
    for results in request.getfixturevalue(shares):
        other = results[case]
        assert len(other["gradients"]) == len(one["gradients"]) == 4
        for mine, theirs in zip(one["gradients"], other["gradients"], strict=True):
            assert_same_gradients(mine, theirs)
        assert not shared.differing(other["row"], one["row"])
    largest = (g.abs().max().item() for update in one["gradients"] for g in update.values())
    assert max(largest) > 0.01


def test_two_processes_share_the_penalty_of_every_gate_and_denominator(two) -> None:
    """Only the counts are gathered: a gate and its sums never leave their row."""
    rounding = 96 * torch.finfo(torch.float64).eps  # of a sum over the tokens
    for case, (value, gradient) in shared.penalties(Processes()).items():
        shares = [results["penalties"][case] for results in two]
        mean = sum(share.item() for share, _ in shares) / 2
        assert value > 0 and mean == pytest.approx(value.item(), rel=rounding), case
        for rank, (_, part) in enumerate(shares):
            assert torch.equal(part / 2, gradient[rank::2]), case


def test_sharding_rounds_no_log_probability_to_16_bits(tmp_path: Path) -> None:
    """accelerate would: to steps as large as what an update changes."""
    shares = computed_by_two(tmp_path, shared.compute_sharded_in_bfloat16)
    one = alone("action-preserved", "training.dtype=bfloat16")
    for found in shares:
        scores = found["scores"][found["scores"] != 0]
        assert scores.dtype == torch.float32
        assert (scores != scores.bfloat16().float()).float().mean() > 0.9
        first = found["gradients"][0]
        assert {gradient.dtype for gradient in first.values()} == {torch.float32}
        mine, theirs = (
            torch.cat([gradients[name].ravel() for name in first])
            for gradients in (one["gradients"][0], first)
        )
        assert torch.cosine_similarity(mine, theirs, dim=0) > 0.999


def test_sharded_run_samples_from_the_whole_present_policy(sharded) -> None:
    for results in sharded:
        assert results["action-preserved"]["sampled"] == 0.0
        assert results["two steps"]["sampled"] > 1e-4
        # vLLM too, after a step that stored nothing: passes without gradients end it, and storing a
        # checkpoint would shard again what they left whole.
        assert results["unsaved"]["pushed"] == 0.0
        assert results["unsaved"]["sampled"] > 1e-4


def test_sharded_run_resumes_where_it_was(sharded: list[dict[str, Any]]) -> None:
    for results in sharded:
        assert "optimizer.bin" in results["stored"]  # FSDP's own form: the model was sharded
        assert not shared.differing(results["resumed"]["row"], results["two steps"]["row"])
        weights = [results[name]["weights"] for name in ("two steps", "resumed")]
        assert largest_difference(*weights) < 1e-6


def test_what_one_process_knows_or_decides_holds_for_all(two: list[dict[str, Any]]) -> None:
    for results in two:
        row = results["token-mean"]["row"]
        assert row["trajectories"] == 16
        assert row["rollout_seconds"] == 1.5  # of the slowest
        assert results["decided"] == "by 0"
        assert "no-method" in results["refused"]
        # A loss that is not finite in one process skips the update in all.
        error, moved, updates = results["diverged"]
        assert "2 updates in a row" in error
        assert (moved, updates) == (0.0, 2)
