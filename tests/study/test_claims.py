"""Every claim holds in a made-up study that tells the paper's story, fails in one that does not,
and is not tested where its runs are missing.
"""

import numpy as np
import pytest
from claim_worlds import (
    COLLAPSE,
    LONG,
    SIX,
    STEPS,
    THREE,
    TWO,
    WINDOW,
    arm,
    changes,
    fallen,
    heldout,
    made,
    mechanism,
    rounds,
    stable,
    study,
    theorem,
    weighted,
)

from llds_core.config.arms import load_study
from llds_core.errors import ConfigError, DataError
from llds_core.study.claims import evaluate_claims, load_claims
from llds_core.study.evidence import Evidence

DESK = load_study("desk")
CLAIMS = load_claims(DESK).claims
VERDICTS = {None: "not tested", True: "holds", False: "does not hold"}


def with_columns(**columns):
    return {"grpo": arm(fallen, *SIX, columns=columns)}


def late(values, at=COLLAPSE + 2):
    """A series that keeps its first value until `at`."""
    return np.where(np.arange(1, STEPS + 1) < at, values[0], values[1])


STEP = np.arange(1, STEPS + 1)
DIPPED = {"reward": np.where(STEP < COLLAPSE, 0.6 - 0.01 * STEP, 0.0)}
WORSE = arm(fallen, *SIX, at=16)
CURES = {
    "a KL weight of 0.01": "kl-0.01",
    "a KL weight of 0.1": "kl-0.1",
    "half the learning rate": "lr-half",
    "a seventh of the learning rate": "lr-seventh",
    "gradient clipping at 0.1": "grad-clip",
    "a larger batch": "large-batch",
}
BONUSES = {
    "an entropy bonus of 0.001": "entropy-0.001",
    "an entropy bonus of 0.01": "entropy-0.01",
}
# Claim: what breaks it (changed arms, or mechanism or held-out values), arms whose absence leaves
# it untested.
CASES = {
    "GRPO's reward rises above": (with_columns(**DIPPED), ["grpo"]),
    "GRPO's reward first rises": (with_columns(**DIPPED), ["grpo"]),
    "LLDS does not collapse over twice": ({"llds_action": WORSE}, ["llds-action"]),
    "LLDS does not collapse over three": (
        {"llds_action_long": arm(fallen, 5)},
        ["llds-action-long"],
    ),
    "Fewer LLDS": ({"llds_action": WORSE}, ["llds-action"]),
    "LLDS survives longer": ({"llds_action": WORSE}, ["grpo"]),
    "LLDS ends with a higher": ({"llds_action": WORSE}, ["llds-action"]),
    "LLDS reaches": ({"llds_action": arm(stable, *SIX, steps=LONG, level=0.55)}, ["grpo"]),
    "LLDS improves": ({"heldout": heldout(llds_action=0.2)}, ["llds-action"]),
    "LLDS's last checkpoint": ({"heldout": heldout(llds_action=0.2)}, ["llds-action"]),
    "LLDS keeps the likelihood": ({"llds_action": arm(fallen, *SIX)}, ["grpo"]),
    "The likelihood of correct": (
        with_columns(loglik_correct=late([-0.2, -3.0]) + 0.01 * np.sin(STEP)),
        ["grpo"],
    ),
    "Collapsing runs stagnate": (with_columns(loglik_correct=-0.25), ["grpo"]),
    "Entropy surges": (with_columns(entropy=0.3), ["grpo"]),
    "Length and searches": (with_columns(response_length=45 + 2 * STEP), ["grpo"]),
    "The gradient norm": (with_columns(grad_norm=0.3), ["grpo"]),
    "Incorrect responses become": (with_columns(loglik_incorrect=0.0), ["grpo"]),
    "The likelihood of first actions falls below": (
        with_columns(loglik_correct_first=0.0),
        ["grpo"],
    ),
    "The likelihood of first actions falls under": (
        {"llds_action": arm(stable, *SIX, steps=LONG)},
        ["llds-action"],
    ),
    "The more searches": ({"nll_by_round": rounds(-0.1)}, ["nll_by_round"]),
    "The share of questions": (
        {"likelihood_change": changes(shares=(0.6, 0.6))},
        ["likelihood_change"],
    ),
    "Late in training": ({"likelihood_change": changes(shares=(0.1, 0.4))}, ["likelihood_change"]),
    "Most incorrect responses": (
        {"likelihood_change": changes(matches=(0.1, 0.4))},
        ["likelihood_change"],
    ),
    "A higher driver": ({"theorem": theorem(-1)}, ["theorem"]),
    "Of that score, a stronger pull": ({"theorem": theorem(-1)}, ["theorem"]),
    "Of that score, more support": ({"theorem": theorem(-1)}, ["theorem"]),
    "Of that score, a larger gradient": ({"theorem": theorem(-1)}, ["theorem"]),
    "A lower likelihood of incorrect": ({"theorem": theorem(-1)}, ["theorem"]),
    "A higher similarity": ({"theorem": theorem(-1)}, ["theorem"]),
    "Among correct responses": ({"theorem": theorem(-1)}, ["theorem"]),
    "The death-spiral conditions hold": (with_columns(loglik_change_correct=1.0), ["grpo"]),
    "The death-spiral conditions do not": ({"llds_action": arm(fallen, *SIX)}, ["llds-action"]),
    "The paper's smaller weights": (
        {"llds-weight-0.1": arm(fallen, *THREE, at=15, loss=weighted(0.1))},
        ["llds-weight-0.01", "llds-weight-0.1"],
    ),
    "At the paper's weight": (
        {"llds-weight-0.2": arm(fallen, *THREE, loss=weighted(0.2))},
        ["llds-weight-0.2"],
    ),
    "The larger the weight": (
        {
            "llds-weight-0.2": arm(fallen, *THREE, at=14, loss=weighted(0.2)),
            "llds_action": arm(fallen, *SIX, at=16, loss=weighted(2)),
        },
        ["grpo", "llds-weight-0.01", "llds-weight-0.1", "llds-weight-0.2"],
    ),
    "Action gate, then response gate, then token gate on": (
        {"heldout": heldout(llds_response=0.35)},
        ["llds-token"],
    ),
    "Action gate, then response gate, then token gate in": (
        {"llds_token": arm(stable, *THREE, steps=LONG, level=0.8)},
        ["llds-response"],
    ),
    "LLDS-MA searches": ({"llds_ma": arm(stable, *THREE, steps=LONG)}, ["llds-ma"]),
    "LLDS-MA improves": ({"heldout": heldout(llds_ma=0.3)}, ["llds-ma"]),
    "Without negative": ({"grpo_no_negative": arm(fallen, *THREE)}, ["grpo-no-negative"]),
    "Preserving groups without variance, too, lets": (
        {"llds_action": WORSE},
        ["llds-positive"],
    ),
    "Preserving groups without variance, too, gives": (
        {"llds_positive": arm(stable, *THREE, steps=LONG)},
        ["llds-positive"],
    ),
    "The paper's normaliser": (
        {"llds_preserved": arm(stable, *THREE, level=0.6)},
        ["llds-preserved"],
    ),
    **{
        f"With {name} there is no": ({f"grpo-{arms}": arm(fallen, *THREE)}, [f"grpo-{arms}"])
        for name, arms in (CURES | BONUSES).items()
    },
    "Under LLDS entropy": ({"llds_action": WORSE}, ["llds-action"]),
    **{
        f"With {name} entropy does": ({f"grpo-{arms}": arm(fallen, *THREE)}, [f"grpo-{arms}"])
        for name, arms in CURES.items()
    },
    **{
        f"LLDS's last reward is above that of GRPO with {name}": (
            {f"grpo-{arms}": arm(stable, *THREE, level=0.8)},
            [f"grpo-{arms}"],
        )
        for name, arms in CURES.items()
    },
    "Eight updates on a rollout": (
        {"grpo_long_epochs_1": arm(fallen, *THREE)},
        ["grpo-long-epochs-1"],
    ),
    "More updates on a rollout, by more epochs": (
        {
            "grpo_epochs_1": arm(fallen, *THREE, at=14, training={"updates_per_rollout": 8}),
            "grpo_epochs_2": arm(stable, *THREE, training={"updates_per_rollout": 32}),
        },
        ["grpo-epochs-2"],
    ),
    "More updates on a rollout, by smaller": (
        {
            "grpo_one_epoch_1": arm(fallen, *TWO, at=14, training={"updates_per_rollout": 1}),
            "grpo_one_epoch_32": arm(stable, *TWO, training={"updates_per_rollout": 32}),
        },
        ["grpo-one-epoch-1", "grpo-one-epoch-4"],
    ),
}


def claim_named(start):
    [claim] = [claim for claim in CLAIMS if claim.claim.startswith(start)]
    return claim


def checked(start, without=(), **given):
    names = ("likelihood_change", "theorem", "nll_by_round")
    frames = mechanism(**{name: given.pop(name) for name in names if name in given})
    frames = {name: frame for name, frame in frames.items() if name not in without}
    claim = claim_named(start)
    arms = {"grpo"}.union(*(rule.named_arms() for rule in claim.rule))
    runs = study(without, given.pop("heldout", None), arms, **given)
    found = claim.check(Evidence(runs, frames))
    return VERDICTS[None if found is None else found.holds]


@pytest.fixture(scope="module")
def table():
    return evaluate_claims(CLAIMS, study(), mechanism())


def test_every_claim_has_its_cases():
    assert [claim.claim for claim in CLAIMS] == [claim_named(start).claim for start in CASES]


@pytest.mark.parametrize("start", CASES)
def test_a_claim_holds_in_the_papers_story(table, start):
    [row] = table[table.claim.str.startswith(start)].itertuples()
    assert row.verdict == "holds" and row.low <= row.effect <= row.high


@pytest.mark.parametrize("start", CASES)
def test_a_claim_does_not_hold_in_another_story(start):
    assert checked(start, **CASES[start][0]) == "does not hold"


@pytest.mark.parametrize("start", CASES)
def test_a_claim_without_its_runs_is_not_tested(start):
    assert checked(start, without=CASES[start][1]) == "not tested"


def test_without_runs_nothing_is_tested():
    empty = evaluate_claims(CLAIMS, [], {})
    assert (empty.verdict == "not tested").all() and (empty.seeds == 0).all()
    assert empty.effect.isna().all() and (empty.runs == "").all()


def test_the_table_names_its_runs_and_is_the_same_twice(table):
    assert table.equals(evaluate_claims(CLAIMS, study(), mechanism()))
    [row] = table[table.claim.str.startswith("The paper's smaller")].itertuples()
    assert row.runs.split(";") == [
        *(f"llds-weight-0.01-seed{seed}" for seed in THREE),
        *(f"llds-weight-0.1-seed{seed}" for seed in THREE),
        *(f"grpo-seed{seed}" for seed in THREE),
    ]
    assert (row.seeds, row.effect_unit) == (3, "steps") and row.rule


def test_a_cure_counts_only_when_watched_as_long_as_grpo():
    short = {"grpo_lr_half": arm(stable, *THREE, steps=STEPS - 5)}
    for outcome in ("there is no", "entropy does"):
        assert checked(f"With half the learning rate {outcome}", **short) == "not tested"


def test_a_run_that_stopped_after_its_collapse_is_compared_as_far_as_it_goes():
    stopped = arm(fallen, *SIX, cut=COLLAPSE + 1 + 2 * WINDOW, status="collapsed")
    for start in (
        "LLDS survives longer",
        "LLDS ends with a higher",
        "LLDS does not collapse over twice",
    ):
        assert checked(start, grpo=stopped) == "holds"


def test_a_diverged_run_collapses_and_a_broken_one_is_left_out():
    columns = {"reward": np.full(12, 0.5), "loglik_correct": -0.2}
    diverged = made("grpo", 0, columns, status="failed", reason="TrainingDivergedError: loss")
    broken = made("grpo", 1, columns, status="failed", reason="OSError: disk")
    running = made("grpo", 2, columns, status="running")
    evidence = Evidence([diverged, broken, running], {})
    assert list(evidence.arm("grpo")) == [0]
    survival = evidence.arm("grpo")[0].survival()
    assert (survival.steps, survival.collapsed) == (12, True)


def test_a_run_proves_no_more_than_its_windows_allow():
    run = stable("grpo", 0)
    assert run.survival().steps == STEPS - 2 * WINDOW + 1 and not run.survival().collapsed
    assert run.collapsed_by(STEPS) is False and run.collapsed_by(STEPS + 1) is None


def test_ambiguous_runs_and_windows_are_refused():
    with pytest.raises(DataError, match="grpo seed 0 is given twice"):
        Evidence([fallen("grpo", 0), fallen("grpo", 0)], {})
    other = fallen("grpo", 1)
    other.manifest["profile"] = "smoke"
    with pytest.raises(DataError, match="profiles desk, smoke"):
        Evidence([fallen("grpo", 0), other], {})
    longer = fallen("grpo", 1)
    longer.manifest["config"]["diagnostics"]["window"] = 4
    with pytest.raises(DataError, match=r"differ in diagnostics\.window"):
        Evidence([fallen("grpo", 0), longer], {})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{cuont: survives, arm: grpo}", 'unknown rule "cuont": did you mean "count"?'),
        ("{count: survivs, arm: grpo}", 'unknown name "survivs": did you mean "survives"?'),
        ("{count: calm, amr: grpo}", 'unknown key "amr": did you mean "arm"?'),
        ("{count: calm}", '"arm" is missing: add it'),
        ("{count: calm, arm: gpro}", 'unknown arm "gpro": did you mean "grpo"?'),
        ("{leads: entrpy, arm: grpo, leaves: maximum}", 'did you mean "entropy"?'),
        ("{trend: loss.lds_weight, arms: [grpo], sign: 1}", 'did you mean "loss.llds_weight"?'),
        ("{trend: loss.llds_weight, arms: [grpo], sign: 2}", "sign is 2: input should be -1 or 1"),
        ("3", "a rule is 3"),
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(rule, message):
    text = f"claims:\n  - {{claim: c, paper: p, means: m, unit: u, rule: {rule}}}"
    with pytest.raises(ConfigError) as refused:
        load_claims(DESK, text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_changes_of_the_claims_are_dated():
    dates = [change.date for change in load_claims(DESK).history]
    assert len(dates) == 5 and dates == sorted(dates)


def test_a_mean_on_the_right_side_is_not_enough():
    uneven = {("llds-action", s, f"best-{STEPS}"): 0.2 + (0.3 if s == 0 else 0) for s in SIX}
    evidence = Evidence(study(scores=heldout() | uneven), {})
    found = claim_named("LLDS improves").check(evidence)
    assert found.effect.estimate > 0 > found.effect.low and not found.holds


def test_four_of_five_seeds_are_most_and_three_are_not():
    for seeds, verdict in ((4, "holds"), (3, "does not hold")):

        def mixed(name, seeds=seeds):
            kinds = [fallen] * seeds + [stable] * (5 - seeds)
            return [make(name, seed) for seed, make in enumerate(kinds)]

        assert checked("GRPO's reward first rises", grpo=mixed) == verdict


def test_held_out_scores_are_compared_within_the_steps_of_grpo():
    """Of a longer run the checkpoint within them counts, or nothing."""
    whole = {key: em for key, em in heldout().items() if key[2] == "best"}
    short = {"llds_ma": arm(stable, *THREE), "llds_token": arm(stable, *THREE, level=0.5)}
    for start in ("LLDS-MA improves", "Action gate, then response gate, then token gate on"):
        assert checked(start, heldout=whole, **short) == "not tested"
        assert checked(start, **short) == "holds"


def test_two_seeds_can_speak_against_a_cure_but_not_for_it():
    start = "With half the learning rate there is no"
    assert checked(start, grpo_lr_half=arm(stable, *TWO)) == "not tested"
    assert checked(start, grpo_lr_half=arm(fallen, *TWO)) == "does not hold"


def test_a_surge_is_looked_for_within_the_steps_of_grpo():
    """Entropy that doubles later does not count; at once it does."""
    step = np.arange(1, LONG + 1)
    for at, verdict in ((STEPS + 1, "holds"), (STEPS - 2 * WINDOW, "does not hold")):
        late_surge = arm(
            stable, *THREE, steps=LONG, columns={"entropy": np.where(step < at, 0.3, 0.9)}
        )
        assert checked("With half the learning rate entropy", grpo_lr_half=late_surge) == verdict


def test_where_nothing_collapses_nothing_survives_longer():
    kept = {"llds_positive": arm(stable, *THREE, steps=LONG)}
    assert checked("Preserving groups without variance, too, lets", **kept) == "not tested"
    small = {f"llds-weight-{w}": arm(stable, *THREE, loss=weighted(w)) for w in (0.01, 0.1)}
    assert checked("The paper's smaller", grpo=arm(stable, *SIX), **small) == "not tested"


@pytest.mark.parametrize("weight", ["0.01", "0.1"])
def test_an_average_over_weights_takes_every_weight(weight):
    assert checked("The paper's smaller", without=[f"llds-weight-{weight}"]) == "not tested"


@pytest.mark.parametrize("entropy", [np.nan, 0.0])
def test_entropy_that_was_not_measured_neither_surges_nor_stays(entropy):
    runs = {"grpo_lr_half": arm(stable, *THREE, columns={"entropy": entropy})}
    assert checked("With half the learning rate entropy", **runs) == "not tested"


def test_a_cure_is_counted_whatever_grpo_does():
    kept = {"grpo": arm(stable, *SIX)}
    assert checked("With half the learning rate there is no", **kept) == "holds"


def test_what_no_outcome_could_show_is_not_tested():
    """Five seeds cannot reject equal shares, nor two seeds of three settings a trend, nor three of
    which all but one setting end without a collapse.
    """
    five = {"grpo": arm(fallen, *range(5)), "llds_action": arm(stable, *range(5), steps=LONG)}
    assert checked("Fewer LLDS", **five) == "not tested"
    two = {
        "grpo_epochs_1": arm(fallen, *TWO, at=23, training={"updates_per_rollout": 8}),
        "grpo_epochs_2": arm(fallen, *TWO, at=17, training={"updates_per_rollout": 32}),
    }
    assert checked("More updates on a rollout, by more epochs", **two) == "not tested"
    censored = {
        f"grpo_epochs_{epochs}": arm(
            make, *THREE, training={"updates_per_rollout": 8 * epochs, "learning_rate": 1e-4}
        )
        for epochs, make in ((1, stable), (2, stable), (4, fallen))
    }
    assert checked("More updates on a rollout, by more epochs", **censored) == "not tested"
    maps = {
        f"map-grpo-updates-{updates}-lr-2": arm(
            fallen, 0, at=at, training={"updates_per_rollout": updates, "learning_rate": 7e-4}
        )
        for updates, at in ((8, 20), (16, 18), (32, 16))
    }
    assert checked("More updates on a rollout, by more epochs", **two, **maps) == "holds"


def test_conditions_not_met_count_only_where_grpo_meets_them():
    calm = with_columns(loglik_change_correct=1.0)
    assert checked("The death-spiral conditions do not", **calm) == "not tested"


def test_a_gap_that_was_there_from_the_start_has_not_come_about():
    assert checked("Incorrect responses become", **with_columns(loglik_incorrect=-5.0)) == (
        "does not hold"
    )
