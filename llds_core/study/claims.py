"""The claims of a study, each a sentence with a rule over stored runs.

They stand in `presets/claims/<study>.yaml`. The verdict is `holds` or `does not hold` where the
rule could be applied, else `not tested`: seeds are missing or too few for any outcome to meet the
rule, or what the claim presupposes, such as a collapse, did not occur. While a study is under way,
a claim about an arm whose planned seeds are not all there is `not tested` either. `does not hold`
says that the runs do not show the claim, which with few seeds is no proof of its contrary; where
the whole interval lies on the other side of the bound, it is `contradicted`. Claims are judged one
by one, each at 95 %, without correction for their number.
"""

import datetime
from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field

from llds_core.config.arms import Study
from llds_core.config.checked import checked
from llds_core.config.given import parse_yaml
from llds_core.config.load import PRESETS
from llds_core.errors import ConfigError, did_you_mean
from llds_core.reporting.run_tables import by_method
from llds_core.reporting.store import StoredRun
from llds_core.study.evidence import Evidence
from llds_core.study.rules import RULES, Finding, Rule, together

_VERDICTS = {None: "not tested", True: "holds", False: "does not hold"}


def _read_rules(value: Any) -> tuple[Rule, ...]:
    rules = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict) or not each:
            raise ConfigError(f"a rule is {each!r}: write, e.g., {{count: survives, arm: grpo}}")
        kind = next(iter(each))
        if kind not in RULES:
            raise ConfigError(f'unknown rule "{kind}": {did_you_mean(kind, RULES)}')
        try:
            rules.append(RULES[kind](**each))
        except ConfigError as error:
            raise ConfigError(f"rule {each}: {error}") from None
    return tuple(rules)


@checked
class Claim:
    """One claim. Of two rules both have to hold, and the effect is that of the first."""

    claim: str  # what is claimed
    paper: str  # where in the paper
    means: str  # when it holds, in words
    unit: str  # of the effect
    rule: Annotated[tuple[Rule, ...], BeforeValidator(_read_rules), Field(min_length=1)]


@checked
class Change:
    """A change of the claims, and what was known by then."""

    date: datetime.date
    change: str


@checked
class Claims:
    """The claims about a study in order, and how they changed."""

    history: tuple[Change, ...] = ()
    claims: tuple[Claim, ...] = ()


def load_claims(study: Study) -> Claims:
    """Read the claims about a study, of which there may be none; their rules name its arms."""
    file = PRESETS / "claims" / f"{study.name}.yaml"
    claims = Claims(**parse_yaml(file.read_bytes(), str(file))) if file.is_file() else Claims()
    for claim in claims.claims:
        for name in {name for rule in claim.rule for name in rule.named_arms()}:
            if name not in study.labels:
                hint = did_you_mean(name, study.labels)
                raise ConfigError(f'{file}, "{claim.claim}": unknown arm "{name}": {hint}')
    return claims


def under_way(study: Study, runs: Sequence[StoredRun]) -> set[str]:
    """Arms of a study that lack runs of planned seeds."""
    made = by_method(runs)
    return {a.name for a in study.arms if {*a.seeds} - {run.seed for run in made.get(a.name, ())}}


def evaluate_claims(
    claims: Sequence[Claim],
    runs: Sequence[StoredRun],
    mechanism: Mapping[str, pd.DataFrame],
    unjudged: Container[str] = (),
) -> pd.DataFrame:
    """Check every claim against `Evidence`; the same input gives the same table.

    Claims about an arm of `unjudged` get an effect so far, but no verdict.

    Returns:
        One row per claim. `effect` with its 95 % interval `low`, `high` is in `effect_unit`, and
        NaN where nothing was found; `contradicted` says of what does not hold that the evidence
        shows the opposite; `seeds` counts seeds, `runs` names runs as `<arm>-seed<k>`, joined by
        ";".
    """
    evidence = Evidence(runs, mechanism)
    found = [together([rule.check(evidence) for rule in claim.rule]) for claim in claims]
    return pd.DataFrame(_claim_row(*pair, unjudged) for pair in zip(claims, found, strict=True))


def _claim_row(claim: Claim, found: Finding, unjudged: Container[str]) -> dict[str, object]:
    # An arm without any run is not among those that the finding rests on.
    is_judged = not any(arm in unjudged for rule in claim.rule for arm in rule.named_arms())
    return {
        "claim": claim.claim,
        "paper_reference": claim.paper,
        "verdict": _VERDICTS[found.holds if is_judged else None],
        "effect": found.effect.estimate,
        "low": found.effect.low,
        "high": found.effect.high,
        "seeds": len({seed for _, seed in found.runs}),
        "runs": ";".join(f"{arm}-seed{seed}" for arm, seed in found.runs),
        "effect_unit": claim.unit,
        "rule": claim.means,
        "contradicted": is_judged and found.holds is False and found.contradicted,
    }
