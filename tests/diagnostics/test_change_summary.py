"""Correlations of likelihood changes."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from llds_core.diagnostics.summary import correlations, frequent_rounds


def factors(**columns):
    names = ["delta", "driver", "pull", "gain", "error_product", "state_cosine", "similarity"]
    names += ["loglik_incorrect", "own", "support", "loglik_correct", "correct"]
    count = len(columns["delta"])
    return pd.DataFrame({name: columns.get(name, [0.5] * count) for name in names}, dtype=float)


def test_correlations_are_of_ranks_and_carry_an_interval():
    random = np.random.default_rng(0)
    delta = random.normal(size=30)
    driver = np.exp(-3 * delta + random.normal(size=30))
    made = correlations(factors(delta=delta, driver=driver)).set_index("factor")
    row = made.loc["driver"]
    assert row.spearman == pytest.approx(spearmanr(delta, driver).statistic)
    assert row.expected == -1 and row.n == 30 and row.p < 0.001
    assert -1 < row.low < row.spearman < row.high < 0
    half = 1.959964 * math.sqrt((1 + row.spearman**2 / 2) / 27)
    assert row.low == pytest.approx(math.tanh(math.atanh(row.spearman) - half))


def test_constant_factors_and_too_few_questions_have_no_correlation():
    made = correlations(factors(delta=[1, 2, 3, 4], driver=[4, 3, 2, 1])).set_index("factor")
    assert made.loc["driver", "spearman"] == pytest.approx(-1)
    assert made.loc["driver", "low"] >= -1 and made.loc["driver", "high"] <= 1
    assert math.isnan(made.loc["similarity", "spearman"]) and made.loc["similarity", "n"] == 4
    few = correlations(factors(delta=[1, np.nan, 3], driver=[3, 2, 1])).set_index("factor")
    assert few.loc["driver", "n"] == 2 and math.isnan(few.loc["driver", "p"])
    three = correlations(factors(delta=[1, 2, 3], driver=[1, 3, 2])).set_index("factor")
    assert three.loc["driver", ["low", "high"]].tolist() == [-1, 1]
    # Nor a partial one what the plain reasons determine, or too few questions leave open.
    same = [5.0, 3, 8, 1, 9, 2]
    for frame in (
        factors(delta=[1, 5, 2, 3, 6, 4], driver=same, loglik_correct=same),
        factors(delta=[1, 3, 2, 4], driver=[1, 2, 4, 3], correct=[1, 2, 2, 1]),
    ):
        assert math.isnan(correlations(frame).set_index("factor").loc["driver", "partial"])


def test_what_two_plain_reasons_explain_is_no_work_of_a_factor():
    """Recursion of partial correlations, on ranks: r12.3 of r12, r13, r23, then of the next."""
    random = np.random.default_rng(1)
    loglik, correct = random.normal(size=60), random.integers(1, 8, 60)
    driver = -2 * loglik + correct + random.normal(size=60)
    delta = 3 * loglik - correct + random.normal(size=60)
    frame = factors(delta=delta, driver=driver, loglik_correct=loglik, correct=correct)
    made = correlations(frame).set_index("factor")
    rho = pd.DataFrame([delta, driver, loglik, correct]).T.rank().corr().to_numpy()

    def given(r, k):
        keep = [i for i in range(len(r)) if i != k]
        scale = np.sqrt(1 - r[keep, k] ** 2)
        return (r[np.ix_(keep, keep)] - np.outer(r[keep, k], r[keep, k])) / np.outer(scale, scale)

    assert made.loc["driver", "partial"] == pytest.approx(given(given(rho, 3), 2)[0, 1])
    assert made.loc["driver", "spearman"] < -0.8 < abs(made.loc["driver", "partial"])
    assert made.loc["loglik_correct", "expected"] == 0 and made.loc["correct", "spearman"] < 0
    assert made.loc[["loglik_correct", "correct", "support"], "partial"].isna().all()


def test_rounds_that_few_trajectories_reach_are_left_out():
    frame = pd.DataFrame({"rounds": [0, 1, 2], "trajectories": [400, 20, 19]})
    assert frequent_rounds(frame)["rounds"].tolist() == [0, 1]
