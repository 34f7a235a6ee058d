"""What a claim is, and phrases that many rules share."""

from dataclasses import dataclass

from llds_core.study.claim_rules import MOST, Rule

OURS = "not in the paper"
SHARE = "share of seeds"
SEEDS = f"at least {MOST:.0%} of the seeds"
ABOVE = "the 95 % interval over seeds lies above 0"


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
    check: Rule
