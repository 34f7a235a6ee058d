"""The list of claims: a sentence, where the paper (arXiv 2512.04220v2) makes it, and its rule.

The rules were written down from the paper before any reporting run. When the two main arms and the
first of the others were known, a review changed these: what comes first is compared at the half of
each series' own way, not where it first stands out of its noise; conditions "not met" under LLDS
count only where GRPO meets them; a gap has to have grown; trends are taken within seeds; final
rewards and held-out scores are compared within equally many steps. When weights, gates and half of
the cures had run, a second review changed these: a rule that so few seeds cannot meet gives no
verdict; cures are judged on all seeds (after the first review: on those on which GRPO collapses),
and LLDS is compared with each by its last rewards; trends are tested by permutation; a small weight
is every weight at which a seed collapses, not only the smallest, which hardly changes GRPO's
gradient. It added the terms of the theorem's score, first actions under LLDS, and the rounds of
Fig. 6. When variants and half of the factors had run, too, a third review added the early rise,
what the variants of preserving end with, and the theorem's score beyond two plain reasons; and
first searches that were made to fail, which return unrelated passages, no longer count as
different. When half of the map had run, too, a fourth review took back that cures "prevent" a
collapse, which no test of so few seeds can show: they are counted as LLDS is, on all their seeds,
and beside the collapse the surge of entropy is. Small weights are the paper's, whatever came of
them, and a trend that its ties leave no significant order for gives no verdict: three seeds of 8
and of 16 updates a rollout were run to allow one, and a third of what had a verdict from two. Names
of arms are those of the studies in `presets/studies`; `claims` applies the list to runs.
"""

import numpy as np

from llds_core.reporting import claim_values as values
from llds_core.study import claim_mechanism as mechanism
from llds_core.study import claim_rules as rules
from llds_core.study.claim import ABOVE, OURS, SEEDS, SHARE, Claim
from llds_core.study.claim_arms import ARM_CLAIMS
from llds_core.study.claim_rules import above, below

# An upper limit for what still counts as no change, and a lower one for what counts as some.
_FLAT = 0.25
_EXPLODES = 2.0

_MAIN = (
    Claim(
        "GRPO's reward rises above that of its start policy",
        "Fig. 2 and 7, section 6.2",
        f"mean reward of its second and third window minus that of its first rollout: {ABOVE}",
        "reward",
        rules.effect("grpo", values.early_rise, above(0)),
    ),
    Claim(
        "GRPO's reward first rises clearly, then collapses",
        "Fig. 2 and 7, section 6.2",
        f"in {SEEDS} the reward collapses, after its windowed mean rose by more than 2 standard "
        "deviations of a step",
        SHARE,
        rules.count("grpo", values.rises_then_collapses),
    ),
    Claim(
        "LLDS does not collapse over twice the steps of GRPO",
        "Fig. 7, section 6.2",
        f"{SEEDS} have no collapse within twice the steps that GRPO was given",
        SHARE,
        rules.survives("llds-action", 2),
    ),
    Claim(
        "LLDS does not collapse over three times the steps of GRPO",
        "Fig. 8, section 6.2",
        "the long run, a single seed, has no collapse within three times the steps of GRPO",
        SHARE,
        rules.survives("llds-action-long", 3, least=1),
    ),
    Claim(
        "Fewer LLDS runs than GRPO runs collapse",
        "Fig. 7, section 6.2",
        "share of seeds that collapse within GRPO's steps, minus GRPO's share of those seeds: "
        "below 0 with p < 0.05 in the exact McNemar test, which takes six seeds that differ",
        SHARE,
        rules.fewer_collapse("llds-action", "grpo"),
    ),
    Claim(
        "LLDS survives longer than GRPO",
        "Fig. 7, section 6.2",
        f"steps before the collapse, up to the common horizon, minus GRPO's of that seed: {ABOVE}",
        "steps",
        rules.longer("llds-action", "grpo"),
    ),
    Claim(
        "LLDS ends with a higher reward than GRPO",
        "Fig. 7, section 6.2",
        f"windowed reward at the last step that both have, minus GRPO's of that seed: {ABOVE}",
        "reward",
        rules.paired("llds-action", "grpo", values.final_gain, above(0)),
    ),
    Claim(
        "LLDS reaches a higher reward than GRPO does before its collapse",
        "Fig. 7, Table 1",
        f"best windowed reward within GRPO's steps, minus GRPO's of that seed: {ABOVE}",
        "reward",
        rules.paired("llds-action", "grpo", values.best_gain, above(0)),
    ),
    Claim(
        "LLDS improves the held-out score over GRPO's best checkpoint",
        "Table 1",
        f"exact match on test questions within GRPO's steps, minus GRPO's of that seed: {ABOVE}",
        "exact match",
        rules.heldout_gain("llds-action", "grpo"),
    ),
    Claim(
        "LLDS's last checkpoint has a higher held-out score than GRPO's last",
        OURS,
        "exact match on test questions, last checkpoint within GRPO's steps, minus GRPO's of that "
        f"seed: {ABOVE}",
        "exact match",
        rules.heldout_gain("llds-action", "grpo", "last"),
    ),
    Claim(
        "LLDS keeps the likelihood of correct responses that GRPO loses",
        "Eq. 4",
        f"change of their log-likelihood until GRPO collapses, minus GRPO's of that seed: {ABOVE}",
        "nats per token",
        rules.paired("llds-action", "grpo", values.likelihood_kept, above(0)),
    ),
    Claim(
        "The likelihood of correct responses declines before the reward does",
        "Fig. 2, section 5.1",
        f"it declines for good in {SEEDS} of GRPO that collapse, and of the steps from half of "
        f"its decline to half of the reward's {ABOVE}",
        "steps of lead",
        rules.leads("loglik_correct", 1),
    ),
    Claim(
        "Collapsing runs stagnate, decay, accelerate, then collapse",
        "Fig. 2, section 5.1",
        f"{SEEDS} of GRPO that collapse show all four phases, in the order that defines them",
        SHARE,
        rules.count("grpo", values.all_phases),
    ),
    Claim(
        "Entropy surges before the reward drops",
        "Fig. 4",
        f"entropy leaves its minimum for good in {SEEDS} of GRPO that collapse, and of the steps "
        f"from half of its rise to half of the reward's decline {ABOVE}",
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
        f"both {ABOVE}",
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
        f"window before GRPO collapses, and its growth since the first window: of both {ABOVE}",
        "nats per token",
        rules.both(
            rules.collapsing_effect("grpo", values.first_action_gap, above(0)),
            rules.collapsing_effect("grpo", values.first_action_fall, above(0)),
        ),
    ),
    Claim(
        "The likelihood of first actions falls under LLDS, too",
        OURS,
        "change of the log-likelihood of first actions of correct responses from the first window "
        "to the last of twice GRPO's steps: the 95 % interval over seeds lies below 0",
        "nats per token",
        rules.effect("llds-action", values.change("loglik_correct_first"), below(0)),
    ),
    Claim(
        "The more searches came before, the less likely the next action",
        "Fig. 6, section 5.4",
        "negative log-likelihood per token of actions after the most searches minus that of first "
        f"actions, at the last measured checkpoint before GRPO collapses: {ABOVE}",
        "nats per token",
        mechanism.later_rounds_harder,
    ),
    Claim(
        "The share of questions whose likelihood drops grows over training",
        "Fig. 3a, section 5.3",
        "share with a negative change at the last measured checkpoint before GRPO collapses, "
        f"minus that at the first: {ABOVE}",
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
        "response's, searches that were made to fail left out, at the last measured checkpoint "
        "before GRPO collapses: the 95 % interval over seeds lies above 0.5",
        "share of responses",
        mechanism.searches_match,
    ),
    *(
        Claim(
            f"{name} of likelihood",
            reference,
            "rank correlation with the change of likelihood by a step of plain gradient descent, "
            "over the questions of GRPO's checkpoints before its collapse: the 95 % interval over "
            f"seeds lies {'above' if sign > 0 else 'below'} 0",
            "rank correlation",
            mechanism.factor_correlates(factor, sign),
        )
        for name, reference, factor, sign in (
            ("A higher driver score goes with a lower gain", "Theorem 4.2", "driver", -1),
            (
                "Of that score, a stronger pull by incorrect tokens goes with a lower gain",
                "Theorem 4.2",
                "pull",
                -1,
            ),
            (
                "Of that score, more support by other correct responses goes with a higher gain",
                "Theorem 4.2",
                "support",
                1,
            ),
            (
                "Of that score, a larger gradient of the correct response goes with a higher gain",
                "Theorem 4.2",
                "own",
                1,
            ),
            (
                "A lower likelihood of incorrect responses goes with a lower gain",
                "Theorem 4.2",
                "loglik_incorrect",
                1,
            ),
            (
                "A higher similarity of correct and incorrect responses goes with a lower gain",
                "Theorem 4.2, Fig. 3b",
                "similarity",
                -1,
            ),
        )
    ),
    Claim(
        "Among correct responses as likely and as many, a higher driver score goes with a lower "
        "gain of likelihood",
        "Theorem 4.2; not in the paper",
        "rank correlation with the change of likelihood by a step of plain gradient descent, given "
        "likelihood and number of the correct responses, over the questions of GRPO's checkpoints "
        "before its collapse: the 95 % interval over seeds lies below 0",
        "partial rank correlation",
        mechanism.factor_correlates("driver", -1, "partial"),
    ),
    Claim(
        "The death-spiral conditions hold in collapsing runs of GRPO",
        "Definition 5.1, A.3",
        f"the test on window means fires in {SEEDS} that collapse",
        SHARE,
        rules.count("grpo", values.spirals),
    ),
    Claim(
        "The death-spiral conditions do not hold under LLDS",
        "Definition 5.1, section 6",
        f"where the test on window means fires for GRPO, it does not fire in {SEEDS}",
        SHARE,
        rules.count_where("llds-action", values.no_spiral, values.spirals),
    ),
)

CLAIMS = _MAIN + ARM_CLAIMS
