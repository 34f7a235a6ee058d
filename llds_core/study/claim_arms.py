"""Claims about the other arms: weights, gates, variants, cures, updates per rollout."""

from llds_core.reporting import claim_values as values
from llds_core.study import claim_rules as rules
from llds_core.study.claim import ABOVE, OURS, SEEDS, SHARE, Claim
from llds_core.study.claim_rules import above

_STAYS_UP = (
    f"{SEEDS}, three or more, have no collapse within the steps of GRPO, whatever GRPO does on them"
)
_CURES = {
    "grpo-kl-0.01": "a KL weight of 0.01",
    "grpo-kl-0.1": "a KL weight of 0.1",
    "grpo-lr-half": "half the learning rate",
    "grpo-lr-seventh": "a seventh of the learning rate",
    "grpo-grad-clip": "gradient clipping at 0.1",
    "grpo-large-batch": "a larger batch",
}
_BONUSES = {
    "grpo-entropy-0.001": "an entropy bonus of 0.001",
    "grpo-entropy-0.01": "an entropy bonus of 0.01",
}

ARM_CLAIMS = (
    Claim(
        "The paper's smaller weights, 0.01 and 0.1, delay the collapse",
        "Fig. 8, section 6.2",
        "steps survived longer than GRPO on that seed up to the common horizon, averaged over the "
        f"two weights: {ABOVE}",
        "steps",
        rules.delays(0.01, 0.1),
    ),
    Claim(
        "At the paper's weight of 0.2 there is no collapse",
        "Fig. 8, section 6.2",
        _STAYS_UP,
        SHARE,
        rules.stays_up("llds-action", weight=0.2),
    ),
    Claim(
        "The larger the weight, the longer a run survives",
        "Fig. 8, section 6.2",
        "rank correlation within a seed of steps survived up to the common horizon with the "
        "weight, GRPO having weight 0, averaged over seeds: above 0 with p < 0.05 in a permutation "
        "test",
        "rank correlation",
        rules.weight_trend,
    ),
    *(
        Claim(
            f"Action gate, then response gate, then token gate {where}",
            reference,
            f"{what}, on shared seeds: the means are in this order, and of the difference between "
            f"action and token gate {ABOVE}",
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
                OURS,
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
        f"of LLDS (the effect) and of GRPO on that seed: of both {ABOVE}",
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
        f"{ABOVE}",
        "exact match",
        rules.heldout_gain("llds-ma", "llds-action"),
    ),
    Claim(
        "Without negative advantages there is no collapse",
        "Theorem 4.2; " + OURS,
        _STAYS_UP,
        SHARE,
        rules.stays_up("grpo-no-negative"),
    ),
    Claim(
        "Preserving groups without variance, too, lets LLDS survive longer",
        "Eq. 4; " + OURS,
        "steps survived up to the common horizon, minus those with positive advantages only "
        f"preserved, on that seed: {ABOVE}",
        "steps",
        rules.longer("llds-action", "llds-positive"),
    ),
    *(
        Claim(
            f"{name} gives a higher last reward",
            reference,
            f"windowed reward at the last step that both have, minus that of {other} on that seed: "
            f"{ABOVE}",
            "reward",
            rules.paired(*arms, values.final_gain, above(0)),
        )
        for name, reference, other, arms in (
            (
                "Preserving groups without variance, too,",
                "Eq. 4; " + OURS,
                "LLDS with positive advantages only preserved",
                ("llds-action", "llds-positive"),
            ),
            (
                "The paper's normaliser, tokens of preserved responses,",
                "Eq. 9; " + OURS,
                "LLDS over all tokens, as the official code",
                ("llds-preserved", "llds-action"),
            ),
        )
    ),
    *(
        Claim(
            f"With {name} there is no collapse within GRPO's steps",
            OURS,
            _STAYS_UP,
            SHARE,
            rules.stays_up(arm),
        )
        for arm, name in (_CURES | _BONUSES).items()
    ),
    *(
        Claim(
            f"{name} entropy does not surge within GRPO's steps",
            OURS,
            f"in {SEEDS} its highest windowed mean within GRPO's steps, or before the end of a run "
            f"that collapsed, is below {rules.SURGE:g} times that of the first window",
            SHARE,
            rules.stays_calm(arm),
        )
        for arm, name in {
            "llds-action": "Under LLDS",
            **{arm: f"With {name}" for arm, name in _CURES.items()},
        }.items()
    ),
    *(
        Claim(
            f"LLDS's last reward is above that of GRPO with {name}",
            OURS,
            f"windowed reward at the last step that both have, minus that of that seed: {ABOVE}",
            "reward",
            rules.paired("llds-action", arm, values.final_gain, above(0)),
        )
        for arm, name in _CURES.items()
    ),
    Claim(
        "Eight updates on a rollout do not collapse within as many updates as GRPO makes",
        OURS,
        f"{SEEDS} have no collapse within four times the steps of GRPO, which make as many updates",
        SHARE,
        rules.survives("grpo-long-epochs-1", 4),
    ),
    *(
        Claim(
            f"More updates on a rollout, by {route}, bring the collapse earlier",
            OURS,
            "rank correlation within a seed and a learning rate of steps survived up to the common "
            "horizon with the updates per rollout, averaged: below 0 with p < 0.05 in a "
            "permutation test",
            "rank correlation",
            rules.updates_trend(arms, *prefixes),
        )
        for route, arms, prefixes in (
            ("more epochs", ("grpo", "grpo-lr-half"), ("grpo-epochs-", "map-grpo-")),
            ("smaller mini-batches", ("grpo-epochs-1",), ("grpo-one-epoch-",)),
        )
    ),
)
