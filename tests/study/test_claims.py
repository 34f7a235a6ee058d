"""Claims hold in a study of the paper's story, fail in another, are untested without runs."""

import claim_worlds as worlds
import numpy as np
import pytest
from claim_worlds import COLLAPSE, LONG, SIX, STEPS, THREE, TWO, WINDOW, arm, fallen, made, stable
from run_helpers import refused

from llds_core.config.arms import load_study
from llds_core.errors import ConfigError, DataError
from llds_core.study.claim_statistics import survived_steps
from llds_core.study.claims import evaluate_claims, load_claims
from llds_core.study.evidence import Evidence
from llds_core.study.rules import OUTCOMES, Effect

DESK = load_study("desk-reuse")
CLAIMS = load_claims(DESK).claims


def with_columns(**columns):
    return {"grpo": arm(fallen, *SIX, columns=columns)}


STEP = np.arange(1, STEPS + 1)
DIPPED = with_columns(reward=np.where(STEP < COLLAPSE, 0.6 - 0.01 * STEP, 0.0))
NO_SPIRAL = with_columns(loglik_change_correct=1.0)
WORSE = {"llds_action": arm(fallen, *SIX, at=16)}
SHORT = {"llds_action": arm(stable, *SIX, steps=LONG)}
GATES = "Action gate, then response gate, then token gate"
POSITIVE = "Preserving groups without variance, too,"
UPDATES = "More updates on a rollout, by"
FALLING_LATE = np.where(STEP < COLLAPSE + 2, -0.2, -3.0) - 0.1 * (STEP > 12)
FALLING_LATE += 0.01 * np.sin(STEP)
NOISY = -0.25 - 0.05 * (STEP > COLLAPSE - 3) + 0.1 * (-1.0) ** STEP
IN_NOISE = arm(fallen, 7, 9, columns={"loglik_correct": NOISY})


def updates(make, count, *seeds, at=None, **training):
    at = {"at": at} if at else {}
    return arm(make, *seeds, training={"updates_per_rollout": count, **training}, **at)


# Start of a claim: what it does not survive, changed arms, measurements or held-out scores; one
# claim or more for every measure that rules know.
BROKEN = {
    "GRPO's reward rises above": DIPPED,
    "GRPO's reward first rises": DIPPED,
    "LLDS does not collapse over three": {"llds_action_long": arm(fallen, 5)},
    "Fewer LLDS": WORSE,
    "LLDS survives longer": WORSE,
    "LLDS ends with a higher": WORSE,
    "LLDS reaches": {"llds_action": arm(stable, *SIX, steps=LONG, level=0.55)},
    "LLDS improves": {"heldout": worlds.heldout(llds_action=0.2)},
    "LLDS's last checkpoint": {"heldout": worlds.heldout(llds_action=0.2)},
    "LLDS keeps the likelihood": {"llds_action": arm(fallen, *SIX)},
    "The likelihood of correct": with_columns(loglik_correct=FALLING_LATE),
    "Collapsing runs stagnate": with_columns(loglik_correct=-0.25),
    "Entropy surges": with_columns(entropy=0.3),
    "Length and searches": with_columns(response_length=45 + 2 * STEP),
    "The gradient norm": with_columns(grad_norm=0.3),
    "Incorrect responses become": with_columns(loglik_incorrect=0.0),
    "The likelihood of first actions falls below": with_columns(loglik_correct_first=0.0),
    "The likelihood of first actions falls under": SHORT,
    "The more searches": {"nll_by_round": worlds.rounds(-0.1)},
    "The share of questions": {"likelihood_change": worlds.changes(shares=(0.6, 0.6))},
    "Late in training": {"likelihood_change": worlds.changes(shares=(0.1, 0.4))},
    "Most incorrect responses": {"likelihood_change": worlds.changes(matches=(0.1, 0.4))},
    "A higher driver": {"theorem": worlds.theorem(-1)},
    "Of that score, a larger": {"theorem": worlds.theorem(-1)},
    "The death-spiral conditions hold": NO_SPIRAL,
    "The death-spiral conditions do not": {"llds_action": arm(fallen, *SIX)},
    "The larger the weight": {
        "llds-weight-0.2": arm(fallen, *THREE, at=14, loss=worlds.weighted(0.2)),
        "llds_action": arm(fallen, *SIX, at=16, loss=worlds.weighted(2)),
    },
    f"{GATES} on": {"heldout": worlds.heldout(llds_response=0.35)},
    f"{GATES} in": {"llds_token": arm(stable, *THREE, steps=LONG, level=0.8)},
    "LLDS-MA searches": {"llds_ma": arm(stable, *THREE, steps=LONG)},
    "With half the learning rate there is no": {"grpo_lr_half": arm(fallen, *THREE)},
    "Under LLDS entropy": WORSE,
    f"{UPDATES} smaller": {
        "grpo_one_epoch_1": updates(fallen, 1, *TWO, at=14),
        "grpo_one_epoch_32": updates(stable, 32, *TWO),
    },
}
# Of these stories, those that say nothing for the contrary either.
NEITHER = ("Fewer LLDS", "LLDS ends", "The likelihood of first actions falls under", "Late in")
NEITHER += ("The larger the weight", f"{GATES} on", f"{UPDATES} smaller")


def checked(start, without=(), **given):
    """Verdict on the claim that begins like this, and whether it is contradicted."""
    tables = worlds.mechanism().items()
    frames = {name: given.pop(name, frame) for name, frame in tables if name not in without}
    [claim] = [claim for claim in CLAIMS if claim.claim.startswith(start)]
    arms = {"grpo"}.union(*(rule.named_arms() for rule in claim.rule))
    runs = worlds.study(without, given.pop("heldout", None), arms, **given)
    [row] = evaluate_claims([claim], runs, frames).itertuples()
    return row.verdict, row.contradicted


def test_what_is_contradicted_is_told_from_what_is_not_shown():
    """No seed of most is the contrary, some are neither; an interval beyond its bound is."""
    assert checked("GRPO's reward first rises", **collapsing(4)) == ("holds", False)
    assert checked("GRPO's reward first rises", **collapsing(3)) == ("does not hold", False)
    assert checked("GRPO's reward first rises", **collapsing(0)) == ("does not hold", True)
    assert checked("LLDS survives longer", **collapsing(1)) == ("does not hold", False)
    turned = {"llds_action": arm(fallen, *SIX), "grpo": arm(stable, *SIX)}
    for start in ("LLDS ends with a higher", "Fewer LLDS"):
        assert checked(start, **turned) == ("does not hold", True)


@pytest.fixture(scope="module")
def table():
    return evaluate_claims(CLAIMS, worlds.study(), worlds.mechanism())


def test_every_claim_holds_in_the_papers_story(table):
    assert (table.verdict == "holds").all()
    assert (table.low <= table.effect).all() and (table.effect <= table.high).all()


@pytest.mark.parametrize("start", BROKEN)
def test_a_claim_does_not_hold_in_another_story(start):
    assert checked(start, **BROKEN[start]) == ("does not hold", not start.startswith(NEITHER))


@pytest.mark.parametrize(
    ("start", "without"),
    [
        ("GRPO's reward rises above", "grpo"),
        ("LLDS does not collapse over twice", "grpo"),
        ("Fewer LLDS", "llds-action"),
        ("The likelihood of correct", "grpo"),
        ("The more searches", "nll_by_round"),
        ("A higher driver", "theorem"),
        ("The paper's smaller weights", "llds-weight-0.01"),
        (f"{GATES} in", "llds-response"),
        (f"{UPDATES} more epochs", "grpo-epochs-2"),
    ],
)
def test_a_claim_without_its_runs_is_not_tested(start, without):
    assert checked(start, without=[without])[0] == "not tested"


def test_without_runs_nothing_is_tested():
    empty = evaluate_claims(CLAIMS, [], {})
    assert (empty.verdict == "not tested").all() and (empty.seeds == 0).all()
    assert empty.effect.isna().all() and (empty.runs == "").all()


HALF, HALF_CALM = "With half the learning rate there", "With half the learning rate entropy"
STOPPED = {"grpo": arm(fallen, *SIX, cut=COLLAPSE + 1 + 2 * WINDOW, status="collapsed")}
FIVE_OF_EACH = {"grpo": arm(fallen, *range(5)), "llds_action": arm(stable, *range(5), steps=LONG)}
TWO_OF_EACH = {
    "grpo_epochs_1": updates(fallen, 8, *TWO, at=23),
    "grpo_epochs_2": updates(fallen, 32, *TWO, at=17),
}
ONE_SETTING_FALLS = {
    "grpo_epochs_1": updates(stable, 8, *THREE),
    "grpo_epochs_2": updates(stable, 16, *THREE),
    "grpo": updates(fallen, 32, *THREE),
}
AT_ANOTHER_RATE = {
    f"map-grpo-updates-{count}-lr-2": updates(fallen, count, 0, at=at, learning_rate=7e-4)
    for count, at in ((8, 20), (16, 18), (32, 16))
}


def half_rate(make, *seeds, **values):
    return {"grpo_lr_half": arm(make, *seeds, **values)}


def surging(at):
    entropy = np.where(np.arange(LONG) < at, 0.3, 0.9)
    return half_rate(stable, *THREE, steps=LONG, columns={"entropy": entropy})


def collapsing(k):
    """GRPO collapses on `k` of five seeds."""
    return {"grpo": lambda arm: [(fallen if s < k else stable)(arm, s) for s in range(5)]}


@pytest.mark.parametrize(
    ("start", "given", "verdict"),
    [
        # A run that stopped after its collapse is compared as far as it goes.
        ("LLDS survives longer", STOPPED, "holds"),
        ("LLDS ends with a higher", STOPPED, "holds"),
        ("LLDS does not collapse over twice", STOPPED, "holds"),
        # A cure is counted whatever GRPO does, but only when watched as long; two seeds can speak
        # against it, not for it.
        (HALF, {"grpo": arm(stable, *SIX)}, "holds"),
        (HALF, half_rate(stable, *THREE, steps=STEPS - 5), "not tested"),
        (HALF_CALM, half_rate(stable, *THREE, steps=STEPS - 5), "not tested"),
        (HALF, half_rate(stable, *TWO), "not tested"),
        (HALF, half_rate(fallen, *TWO), "does not hold"),
        # A surge is looked for within the steps of GRPO, where entropy was measured.
        (HALF_CALM, surging(STEPS), "holds"),
        (HALF_CALM, surging(STEPS - 2 * WINDOW - 1), "does not hold"),
        (HALF_CALM, half_rate(stable, *THREE, columns={"entropy": np.nan}), "not tested"),
        (HALF_CALM, half_rate(stable, *THREE, columns={"entropy": 0.0}), "not tested"),
        # Where nothing collapses, nothing survives longer.
        (f"{POSITIVE} lets", {"llds_positive": arm(stable, *THREE, steps=LONG)}, "not tested"),
        # What falls first in most runs falls first, unless in noise.
        (
            "The likelihood of correct",
            {"grpo": lambda name: arm(fallen, *range(4))(name) + IN_NOISE(name)},
            "does not hold",
        ),
        (f"{GATES} on", {"heldout": worlds.heldout(llds_response=0.295)}, "holds"),
        # A condition not met counts only where GRPO meets it, and where there were windows enough
        # before a collapse; a gap has to have come about.
        ("The death-spiral conditions do not", NO_SPIRAL, "not tested"),
        (
            "The death-spiral conditions do not",
            {"llds_action": arm(fallen, *SIX, at=7)},
            "not tested",
        ),
        ("Incorrect responses become", with_columns(loglik_incorrect=-5.0), "does not hold"),
        # What no outcome could show: five seeds cannot reject equal shares, nor two seeds of three
        # settings a trend, nor three of which all but one setting end without a collapse.
        ("Fewer LLDS", FIVE_OF_EACH, "not tested"),
        (f"{UPDATES} more epochs", TWO_OF_EACH, "not tested"),
        (f"{UPDATES} more epochs", ONE_SETTING_FALLS, "not tested"),
        (f"{UPDATES} more epochs", TWO_OF_EACH | AT_ANOTHER_RATE, "holds"),
    ],
)
def test_the_verdict_at_the_edges(start, given, verdict):
    assert checked(start, **given)[0] == verdict


def test_a_diverged_run_collapses_and_a_broken_one_is_left_out():
    columns = {"reward": np.full(12, 0.5), "loglik_correct": -0.2}
    name = "TrainingDivergedError"
    why = {0: f"{name}: loss was not finite", 1: "OSError: disk", 3: f"{name}: 14 groups"}
    diverged, broken, ended = (
        made("grpo", seed, columns, status="failed", reason=why[seed]) for seed in why
    )
    running = made("grpo", 2, columns, status="running")
    evidence = Evidence([diverged, broken, running, ended], {})
    assert list(evidence.arm("grpo")) == [0, 3] and ended.collapse is None
    run = evidence.arm("grpo")[0]
    assert run.collapse == 12 == survived_steps([run])


def test_a_run_proves_no_more_than_its_windows_allow():
    run = stable("grpo", 0)
    assert run.collapse is None and survived_steps([run]) == STEPS - 2 * WINDOW + 1
    assert run.collapsed_by(STEPS) is False and run.collapsed_by(STEPS + 1) is None


def test_runs_of_several_windows_are_refused():
    longer = fallen("grpo", 1)
    longer.manifest["config"]["diagnostics"]["window"] = 4
    refused(DataError, r"differ in diagnostics\.window", Evidence, [fallen("grpo", 0), longer], {})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{cuont: survives, arm: grpo}", 'unknown rule "cuont": did you mean "count"?'),
        ("{count: survivs, arm: grpo}", 'unknown name "survivs": did you mean "survives"?'),
        ("{count: calm, amr: grpo}", 'unknown key "amr": did you mean "arm"?'),
        ("{count: calm}", '"arm" is missing: add it'),
        ("{count: calm, arm: gpro}", 'unknown arm "gpro": did you mean "grpo"?'),
        ("{leads: entrpy, arm: grpo, leaves: maximum}", 'did you mean "entropy"?'),
        ("{trend: loss.lds_weight, arms: [grpo], rises: true}", 'you mean "loss.llds_weight"?'),
        ("{trend: loss.llds_weight, arms: [grpo], rises: 2}", "rises is 2: it should be"),
        ("3", "a rule is 3"),
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(rule, message, tmp_path, monkeypatch):
    text = f"claims:\n  - {{claim: c, paper: p, means: m, unit: u, rule: {rule}}}"
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/desk-reuse.yaml").write_text(text)
    monkeypatch.setattr("llds_core.study.claims.PRESETS", tmp_path)
    assert message in refused(ConfigError, None, load_claims, DESK)


def test_held_out_scores_are_compared_within_the_steps_of_grpo():
    """Of a longer run the checkpoint within them counts, or nothing."""
    whole = {key: em for key, em in worlds.heldout().items() if key[2] == "best"}
    short = {"llds_ma": arm(stable, *THREE), "llds_token": arm(stable, *THREE, level=0.5)}
    for start in ("LLDS-MA improves", f"{GATES} on"):
        assert checked(start, heldout=whole, **short)[0] == "not tested"
        assert checked(start, **short)[0] == "holds"


def test_an_early_mean_is_that_of_steps_3_to_15_alone_or_less_another():
    """Of a metric, of its difference to another, and of that of two arms on the same seeds."""
    step = np.arange(1, STEPS + 1)
    early = np.where((step >= 3) & (step <= 15), -1.0, 50.0)
    own = arm(fallen, *THREE, columns={"change_own_update": early, "change_other_updates": 0.5})
    other = arm(fallen, *THREE, columns={"change_own_update": 2.0, "change_other_updates": 0.0})
    evidence = Evidence([*own("grpo"), *other("llds-action")], {})
    metrics = ("change_own_update", "change_other_updates")

    def effect(*names, against=""):
        return Effect("early_mean", "grpo", against, metrics=names, below=0).check(evidence)

    assert effect(metrics[0]).effect.estimate == -1 and effect(metrics[0]).holds
    assert effect(*metrics).effect.estimate == -1.5
    paired = effect(metrics[0], against="llds-action")
    assert paired.effect.estimate == -3
    assert {name for name, _ in paired.runs} == {"grpo", "llds-action"}


@pytest.mark.parametrize(("clip", "warned"), [(0.0, False), (0.5, True)])
def test_an_alarm_counts_when_it_comes_before_the_collapse(clip: float, warned: bool) -> None:
    columns = {"reward": [0.5] * 10 + [0.4, 0.3, 0.25, 0.2] + [0.05] * 12, "clip_fraction": clip}
    run = made("grpo", 0, columns)
    assert run.collapse_step is not None
    assert OUTCOMES["clip_warned"](run, 26) is warned
    assert OUTCOMES["drop_warned"](run, 26) is True
    steady = made("grpo", 0, columns | {"reward": [0.5] * 26})
    assert OUTCOMES["clip_warned"](steady, 26) is None
