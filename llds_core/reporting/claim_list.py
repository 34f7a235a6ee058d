"""The list of claims: a sentence, where the paper (arXiv 2512.04220v2) makes it, and its rule.

The rules were written down from the paper before any reporting run. When the two main arms and
the first of the others were known, a review changed these: what comes first is compared at the
half of each series' own way, not where it first stands out of its noise; cures are judged on the
seeds on which GRPO collapses, where before GRPO had to collapse in most; conditions "not met" under
LLDS count only where GRPO meets them; a gap has to have grown; trends are taken within seeds; final
rewards and held-out scores are compared within equally many steps. Names of arms are those of the
studies in `presets/studies`; `claims` applies the list to runs.
"""

from dataclasses import dataclass

import numpy as np

from llds_core.reporting import claim_mechanism as mechanism
from llds_core.reporting import claim_rules as rules
from llds_core.reporting import claim_values as values
from llds_core.reporting.claim_rules import MOST, above, below

_OURS = "not in the paper"
_SHARE = "share of seeds"
_SEEDS = f"at least {MOST:.0%} of the seeds"
_ABOVE = "the 95 % interval over seeds lies above 0"
# An upper limit for what still counts as no change, and a lower one for what counts as some.
_FLAT = 0.25
_EXPLODES = 2.0


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        claim: what is claimed.
        reference: where in the paper.
        rule: in words, when it holds.
        unit: of the effect.
        check: the rule.
    """

    claim: str
    reference: str
    rule: str
    unit: str
    check: rules.Rule


CLAIMS = (
    Claim(
        "GRPO's reward first rises clearly, then collapses",
        "Fig. 2 and 7, section 6.2",
        f"in {_SEEDS} the reward collapses, after its windowed mean rose by more than 2 standard "
        "deviations of a step",
        _SHARE,
        rules.count("grpo", values.rises_then_collapses),
    ),
    Claim(
        "LLDS does not collapse over twice the steps of GRPO",
        "Fig. 7, section 6.2",
        f"{_SEEDS} have no collapse within twice the steps that GRPO was given",
        _SHARE,
        rules.survives("llds-action", 2),
    ),
    Claim(
        "LLDS does not collapse over three times the steps of GRPO",
        "Fig. 8, section 6.2",
        "the long run, a single seed, has no collapse within three times the steps of GRPO",
        _SHARE,
        rules.survives("llds-action-long", 3, least=1),
    ),
    Claim(
        "Fewer LLDS runs than GRPO runs collapse",
        "Fig. 7, section 6.2",
        "share of seeds that collapse within GRPO's steps, minus GRPO's share of those seeds: the "
        "exact 95 % interval (McNemar) lies below 0, which takes six seeds that differ",
        _SHARE,
        rules.fewer_collapse("llds-action", "grpo"),
    ),
    Claim(
        "LLDS survives longer than GRPO",
        "Fig. 7, section 6.2",
        f"steps before the collapse, up to the common horizon, minus GRPO's of that seed: {_ABOVE}",
        "steps",
        rules.longer("llds-action", "grpo"),
    ),
    Claim(
        "LLDS ends with a higher reward than GRPO",
        "Fig. 7, section 6.2",
        f"windowed reward at the last step that both have, minus GRPO's of that seed: {_ABOVE}",
        "reward",
        rules.paired("llds-action", "grpo", values.final_gain, above(0)),
    ),
    Claim(
        "LLDS reaches a higher reward than GRPO does before its collapse",
        "Fig. 7, Table 1",
        f"best windowed reward within GRPO's steps, minus GRPO's of that seed: {_ABOVE}",
        "reward",
        rules.paired("llds-action", "grpo", values.best_gain, above(0)),
    ),
    Claim(
        "LLDS improves the held-out score over GRPO's best checkpoint",
        "Table 1",
        f"exact match on test questions within GRPO's steps, minus GRPO's of that seed: {_ABOVE}",
        "exact match",
        rules.heldout_gain("llds-action", "grpo"),
    ),
    Claim(
        "LLDS's last checkpoint has a higher held-out score than GRPO's last",
        _OURS,
        "exact match on test questions, last checkpoint within GRPO's steps, minus GRPO's of that "
        f"seed: {_ABOVE}",
        "exact match",
        rules.heldout_gain("llds-action", "grpo", "last"),
    ),
    Claim(
        "LLDS keeps the likelihood of correct responses that GRPO loses",
        "Eq. 4",
        f"change of their log-likelihood until GRPO collapses, minus GRPO's of that seed: {_ABOVE}",
        "nats per token",
        rules.paired("llds-action", "grpo", values.likelihood_kept, above(0)),
    ),
    Claim(
        "The likelihood of correct responses declines before the reward does",
        "Fig. 2, section 5.1",
        f"it declines for good in {_SEEDS} of GRPO that collapse, and of the steps from half of "
        f"its decline to half of the reward's {_ABOVE}",
        "steps of lead",
        rules.leads("loglik_correct", 1),
    ),
    Claim(
        "Collapsing runs stagnate, decay, accelerate, then collapse",
        "Fig. 2, section 5.1",
        f"{_SEEDS} of GRPO that collapse show all four phases, in the order that defines them",
        _SHARE,
        rules.count("grpo", values.all_phases),
    ),
    Claim(
        "Entropy surges before the reward drops",
        "Fig. 4",
        f"entropy leaves its minimum for good in {_SEEDS} of GRPO that collapse, and of the steps "
        f"from half of its rise to half of the reward's decline {_ABOVE}",
        "steps of lead",
        rules.leads("entropy", -1),
    ),
    Claim(
        "Length and searches stay flat while entropy grows",
        "Fig. 4",
        "from the first window to the last before the reward declines in collapsing runs of GRPO, "
        f"entropy grows by more than {_FLAT:.0%}, and the larger relative change of response "
        f"length and searches (the effect) is below {_FLAT:.0%}, both with their whole intervals",
        "relative change",
        rules.both(
            rules.collapsing_effect(
                "grpo",
                values.relative_change("response_length", "valid_searches"),
                below(_FLAT),
            ),
            rules.collapsing_effect("grpo", values.relative_change("entropy"), above(_FLAT)),
        ),
    ),
    Claim(
        "The gradient norm explodes late",
        "Fig. 2, section 5.1",
        "its highest windowed mean around the collapse of GRPO over the mean of the first third "
        f"before: the 95 % interval over seeds lies above {_EXPLODES:g}",
        "ratio",
        rules.as_ratio(
            rules.collapsing_effect("grpo", values.gradient_growth, above(np.log(_EXPLODES)))
        ),
    ),
    Claim(
        "Incorrect responses become less likely than correct ones",
        "Fig. 9a, section A.2",
        "log-likelihood of correct minus that of incorrect responses of GRPO, after the first 40 % "
        "of the steps before its collapse or its end, and its growth since the first window: of "
        f"both {_ABOVE}",
        "nats per token",
        rules.both(
            rules.effect("grpo", values.likelihood_gap, above(0)),
            rules.effect("grpo", values.likelihood_gap_growth, above(0)),
        ),
    ),
    Claim(
        "The likelihood of first actions falls below that of later ones",
        "Fig. 5, section 5.4",
        "log-likelihood of later minus that of first actions of correct responses, in the last "
        f"window before GRPO collapses, and its growth since the first window: of both {_ABOVE}",
        "nats per token",
        rules.both(
            rules.collapsing_effect("grpo", values.first_action_gap, above(0)),
            rules.collapsing_effect("grpo", values.first_action_fall, above(0)),
        ),
    ),
    Claim(
        "The share of questions whose likelihood drops grows over training",
        "Fig. 3a, section 5.3",
        "share with a negative change at the last measured checkpoint before GRPO collapses, "
        f"minus that at the first: {_ABOVE}",
        "share of questions",
        mechanism.drop_share_grows,
    ),
    Claim(
        "Late in training more than half of the questions lose likelihood",
        "Fig. 3a, section 5.3",
        "share with a negative change at the last measured checkpoint before GRPO collapses: the "
        "95 % interval over seeds lies above 0.5",
        "share of questions",
        mechanism.drop_share_late,
    ),
    Claim(
        "Most incorrect responses come to search for what correct ones find",
        "Fig. 5, section 5.4",
        "share of incorrect responses whose first search returns the documents of a correct "
        "response's, at the last measured checkpoint before GRPO collapses: the 95 % interval over "
        "seeds lies above 0.5",
        "share of responses",
        mechanism.searches_match,
    ),
    *(
        Claim(
            f"{name} goes with a lower gain of likelihood",
            "Theorem 4.2",
            "rank correlation with the change of likelihood by a step of plain gradient descent, "
            "over the questions of GRPO's checkpoints before its collapse: the 95 % interval over "
            f"seeds lies {'above' if sign > 0 else 'below'} 0",
            "rank correlation",
            mechanism.factor_correlates(factor, sign),
        )
        for name, factor, sign in (
            ("A higher driver score", "driver", -1),
            ("A lower likelihood of incorrect responses", "loglik_incorrect", 1),
            ("A higher similarity of correct and incorrect responses", "similarity", -1),
        )
    ),
    Claim(
        "The death-spiral conditions hold in collapsing runs of GRPO",
        "Definition 5.1, A.3",
        f"the test on window means fires in {_SEEDS} that collapse",
        _SHARE,
        rules.count("grpo", values.spirals),
    ),
    Claim(
        "The death-spiral conditions do not hold under LLDS",
        "Definition 5.1, section 6",
        f"where the test on window means fires for GRPO, it does not fire in {_SEEDS}",
        _SHARE,
        rules.count_where("llds-action", values.no_spiral, values.spirals),
    ),
    Claim(
        "A small weight delays the collapse but does not prevent it",
        "Fig. 8, section 6.2",
        f"the arm with the smallest weight collapses in {_SEEDS} within GRPO's steps, and of the "
        f"steps it survives longer than GRPO {_ABOVE}",
        "steps",
        rules.delays_only,
    ),
    Claim(
        "The paper's weight of 0.2 prevents the collapse",
        "Fig. 8, section 6.2",
        f"where GRPO collapses, {_SEEDS} with this weight do not within GRPO's steps",
        _SHARE,
        rules.prevents_at_weight(0.2),
    ),
    Claim(
        "The larger the weight, the longer a run survives",
        "Fig. 8, section 6.2",
        "rank correlation within a seed of steps survived up to the common horizon with the "
        "weight, GRPO having weight 0, averaged over seeds; weights with two seeds or more: the "
        "95 % interval over runs lies above 0",
        "rank correlation",
        rules.weight_trend,
    ),
    *(
        Claim(
            f"Action gate, then response gate, then token gate {where}",
            reference,
            f"{what}, on shared seeds: the means are in this order, and of the difference between "
            f"action and token gate {_ABOVE}",
            unit,
            rules.gates_ordered(by),
        )
        for where, reference, what, unit, by in (
            (
                "on held-out questions",
                "Table 3, section B.3",
                "exact match on test questions within equally many steps",
                "exact match",
                None,
            ),
            (
                "in training reward",
                _OURS,
                "best windowed reward within equally many steps",
                "reward",
                values.best_gain,
            ),
        )
    ),
    Claim(
        "LLDS-MA searches more than LLDS and than GRPO",
        "Fig. 9b, section B.4.4",
        "searches in the last window before a collapse and within equally many steps, minus those "
        f"of LLDS (the effect) and of GRPO on that seed: of both {_ABOVE}",
        "searches per question",
        rules.both(
            rules.paired("llds-ma", "llds-action", values.more_searches, above(0)),
            rules.paired("llds-ma", "grpo", values.more_searches, above(0)),
        ),
    ),
    Claim(
        "LLDS-MA improves the held-out score over LLDS",
        "Table 1",
        "exact match on test questions within equally many steps, minus that of LLDS on that seed: "
        f"{_ABOVE}",
        "exact match",
        rules.heldout_gain("llds-ma", "llds-action"),
    ),
    Claim(
        "Without negative advantages there is no collapse",
        "Theorem 4.2; " + _OURS,
        f"where GRPO collapses, {_SEEDS} without them do not within GRPO's steps",
        _SHARE,
        rules.prevents("grpo-no-negative"),
    ),
    Claim(
        "Preserving groups without variance, too, lets LLDS survive longer",
        "Eq. 4; " + _OURS,
        "steps survived up to the common horizon, minus those with positive advantages only "
        f"preserved, on that seed: {_ABOVE}",
        "steps",
        rules.longer("llds-action", "llds-positive"),
    ),
    *(
        Claim(
            f"{name} does not prevent the collapse",
            _OURS,
            f"where GRPO collapses, no such arm is without collapse in {_SEEDS} within GRPO's "
            "steps, the bar that LLDS has to clear",
            "share of seeds that collapse, arm with the fewest",
            rules.no_cure(*arms),
        )
        for name, arms in (
            ("A larger KL weight", ("grpo-kl-0.01", "grpo-kl-0.1")),
            ("Half the learning rate", ("grpo-lr-half",)),
            ("Stronger gradient clipping", ("grpo-grad-clip",)),
            ("A larger batch", ("grpo-large-batch",)),
            ("An entropy bonus", ("grpo-entropy-0.001", "grpo-entropy-0.01")),
        )
    ),
    *(
        Claim(
            f"More updates on a rollout, by {route}, bring the collapse earlier",
            _OURS,
            "rank correlation within a seed of steps survived up to the common horizon with the "
            "updates per rollout, averaged over seeds: the 95 % interval over runs lies below 0",
            "rank correlation",
            rules.updates_trend(arms, prefix),
        )
        for route, arms, prefix in (
            ("more epochs", ("grpo",), "grpo-epochs-"),
            ("smaller mini-batches", ("grpo-epochs-1",), "grpo-one-epoch-"),
        )
    ),
)
