"""Sentences beside figures say what the tables and runs hold."""

from pathlib import Path

import numpy as np
import pandas as pd

from llds_core.config import load_experiment
from llds_core.diagnostics.metrics import METRICS
from llds_core.reporting.store import StoredRun
from llds_core.reporting.summaries import (
    dilution_summary,
    factors_summary,
    first_action_summary,
    gradient_summary,
    measured_summary,
    rounds_summary,
)

FALLING = [0.6] * 6 + [0.0] * 12  # collapses at step 8


def made_run(method: str = "grpo", seed: int = 0, **metrics: object) -> StoredRun:
    table = pd.DataFrame(np.nan, index=range(18), columns=list(METRICS))
    table = table.assign(**{"step": range(1, 19), "reward": 0.6} | metrics)
    config = load_experiment(f"desk/{method}").to_dict()
    manifest = {"profile": "desk", "method": method, "seed": seed, "config": config}
    return StoredRun(Path(f"{method}{seed}"), manifest | {"status": "complete"}, table)


def made_changes(method: str, seed: int, step: int, *, equal: int, incorrect: int) -> pd.DataFrame:
    """Two questions, each measured with both optimizers."""
    row = {"method": method, "seed": seed, "step": step, "correct": 3, "incorrect": 1}
    row |= {"first_search_reached_equal": equal, "first_search_reached_incorrect": incorrect}
    names = [(question, name) for question in "ab" for name in ("adamw", "sgd")]
    return pd.DataFrame([row | {"question_id": q, "optimizer": name} for q, name in names])


def test_the_gradient_norm_is_told_by_its_span_and_beside_that_of_grpo() -> None:
    small = made_run(grad_norm=np.linspace(0.1, 0.44, 18))
    large = made_run("llds-action", grad_norm=np.linspace(0.7, 3.08, 18))
    first, second = gradient_summary([small, large]).splitlines()
    assert first.endswith("over 3 steps lie between 0.12 and 0.42.")
    assert "between 0.84 and 2.9; over the first steps it is 7 times GRPO's of the same" in second
    assert "times" not in gradient_summary([made_run("llds-action", grad_norm=1.0)])
    assert gradient_summary([made_run()]) == ""


def test_llds_is_told_beside_a_gradient_that_is_diluted_as_much() -> None:
    runs = [made_run("llds-action", seed, reward=0.4, entropy=0.2) for seed in range(2)]
    slow = np.r_[np.full(6, 0.6), np.full(12, 0.3)]
    for seed in range(2):
        run = made_run("grpo", seed, reward=slow, entropy=np.linspace(0.1, 0.4, 18))
        runs.append(StoredRun(run.path, run.manifest | {"arm": "grpo-lr-seventh"}, run.metrics))
    llds, lower, gain = dilution_summary(runs).splitlines()
    assert "seeds 0, 1: best reward 0.40, last reward 0.40, last entropy 1 times" in llds
    assert "best reward 0.60, last reward 0.30, last entropy 3.2 times" in lower
    assert gain.endswith("+0.100 [+0.100, +0.100].")
    assert dilution_summary(runs[:2]) == "- No seed has a run of both: the question is open."


def test_what_was_measured_is_counted_in_the_tables() -> None:
    parts = [
        made_changes("grpo", 0, 0, equal=0, incorrect=1),
        made_changes("grpo", 0, 12, equal=0, incorrect=1),
        made_changes("llds-action", 1, 4, equal=0, incorrect=1).assign(correct=7),
    ]
    lines = measured_summary(pd.concat(parts)).splitlines()
    assert lines == [
        "- Seeds 0: 2 questions, 4 responses to each.",
        "- Seeds 1: 2 questions, 8 responses to each.",
        "- **GRPO**: checkpoints 2, seeds 1, steps 0–12.",
        "- **GRPO + LLDS (action gate)**: checkpoints 1, seeds 1, steps 4–4.",
    ]


def test_first_actions_are_told_up_to_the_collapse_and_matches_counted_once() -> None:
    loglik = np.linspace(-1, -18, 18)
    run = made_run(reward=FALLING, loglik_correct_first=loglik, loglik_incorrect_later=loglik / 10)
    changes = [
        made_changes("grpo", 0, 0, equal=1, incorrect=2),
        made_changes("grpo", 0, 6, equal=5, incorrect=7),
        made_changes("grpo", 1, 0, equal=0, incorrect=2),
        made_changes("grpo", 1, 4, equal=1, incorrect=3),
    ]
    text = first_action_summary([run], pd.concat(changes))
    # Means over steps 1 to 3 and 5 to 7: the collapse begins at step 8.
    assert "correct responses, first actions -2 → -6, later ones never measured" in text
    assert "incorrect responses, first actions never measured, later ones -0.2 → -0.6" in text
    assert "2 of 8 (25%) at the first checkpoints, 12 of 20 (60%) at the last" in text
    assert "matches" not in first_action_summary([made_run("llds-action")], pd.concat(changes))


def test_likelihood_by_searches_is_told_at_both_ends_as_means_over_seeds() -> None:
    columns = ["method", "seed", "step", "view", "rounds", "nll"]
    rows = [
        *(("grpo", 0, 0, "position", at, nll) for at, nll in enumerate((0.1, 9, 0.3))),
        *(("grpo", 0, 4, "position", at, 9) for at in range(3)),
        *(("grpo", 0, 8, "position", at, nll) for at, nll in enumerate((2, 9, 0.5))),
        *(("grpo", 1, 0, "position", at, nll) for at, nll in enumerate((0.3, 9, 0.5))),
        *(("grpo", 1, 6, "position", at, nll) for at, nll in enumerate((3, 9, 0.7))),
        *(("smollm2", 0, 0, "total", at, float(at)) for at in (1, 2, 3)),
    ]
    grpo, smollm2 = rounds_summary(pd.DataFrame(rows, columns=columns)).splitlines()
    assert grpo == (
        "- **GRPO**. By searches before an action: 0.2 (0) → 0.4 (2) at the first checkpoints, "
        "2.5 (0) → 0.6 (2) at the last."
    )
    assert smollm2 == "- **SmolLM2-135M**. By searches in a whole response: 1 (1) → 3 (3)."


def test_factors_are_told_as_means_of_the_means_of_seeds() -> None:
    columns = ["method", "optimizer", "factor", "expected", "seed", "step", "spearman", "partial"]
    rows = [
        ("grpo", "sgd", "driver", -1, 0, 0, -0.9, -0.5),
        ("grpo", "sgd", "driver", -1, 0, 4, -0.7, -0.3),
        ("grpo", "sgd", "driver", -1, 1, 0, -0.4, np.nan),
        ("grpo", "sgd", "state_cosine", 1, 1, 0, np.nan, np.nan),
        ("grpo", "sgd", "loglik_incorrect", 1, 1, 0, -0.1, 0.2),
        ("grpo", "sgd", "correct", 0, 1, 0, 0.3, np.nan),
    ]
    text = factors_summary(pd.DataFrame(rows, columns=columns))
    told = "driver -0.60 (-), loglik incorrect -0.10 (+), correct +0.30 (control)"
    given = "Given the controls, the driver score correlates by -0.40."
    assert text == f"- **GRPO**, sgd: {told}. {given}"
