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
from llds_core.errors import ConfigError, closest, did_you_mean
from llds_core.reporting.run_tables import by_method
from llds_core.reporting.store import StoredRun
from llds_core.study.evidence import Evidence
from llds_core.study.rules import NOTHING, RULES, Finding, Rule, together

_VERDICTS = {None: "not tested", True: "holds", False: "does not hold"}


def _read_rules(value: Any) -> tuple[Rule, ...]:
    return tuple(_read_rule(each) for each in (value if isinstance(value, list) else [value]))


def _read_rule(value: Any) -> Rule:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"a rule is {value!r}: write, e.g., {{count: survives, arm: grpo}}")
    kind = next(iter(value))
    if kind not in RULES:
        raise ConfigError(f'unknown rule "{kind}": {did_you_mean(kind, RULES)}')
    try:
        return RULES[kind](**{str(key): value[key] for key in value})
    except ConfigError as error:
        raise ConfigError(f"rule {value}: {error}") from None


@checked
class Claim:
    """One claim."""

    claim: str
    """What is claimed."""
    paper: str
    """Where in the paper."""
    means: str
    """When it holds, in words."""
    unit: str
    """Of the effect."""
    rule: Annotated[tuple[Rule, ...], BeforeValidator(_read_rules), Field(min_length=1)]
    """When it holds; of two rules both have to, and the effect is that of the first."""


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


def load_claims(study: Study, text: str | bytes | None = None) -> Claims:
    """Read the claims about a study, of which there may be none, whose rules may name its arms;
    from the file that ships with the package, or from YAML.
    """
    file, title = PRESETS / "claims" / f"{study.name}.yaml", f"claims of study {study.name}"
    if text is None:
        text = file.read_bytes() if file.is_file() else b"{}"
    values = parse_yaml(text, title)
    if not isinstance(values, dict):
        raise ConfigError(f"{title} are {values!r}, not a mapping: write key: value lines")
    try:
        claims = Claims(**{str(key): values[key] for key in values})
    except ConfigError as error:
        raise ConfigError(f"{title}: {error}") from None
    for claim in claims.claims:
        for name in sorted({name for rule in claim.rule for name in rule.named_arms()}):
            if name not in study.labels:
                near = closest(name, study.labels)
                hint = f'did you mean "{near}"?' if near else "name one of the study"
                raise ConfigError(f'{title}, "{claim.claim}": unknown arm "{name}": {hint}')
    return claims


def under_way(study: Study, runs: Sequence[StoredRun]) -> set[str]:
    """Arms of a study that have runs, but not of all their seeds."""
    made = by_method(runs)
    return {
        arm.name
        for arm in study.arms
        if arm.name in made and not set(arm.seeds) <= {run.seed for run in made[arm.name]}
    }


def evaluate_claims(
    claims: Sequence[Claim],
    runs: Sequence[StoredRun],
    mechanism: Mapping[str, pd.DataFrame],
    unjudged: Container[str] = (),
) -> pd.DataFrame:
    """Check every claim against `Evidence`; the same input gives the same table.

    Claims that rest on an arm of `unjudged` get an effect so far, but no verdict.

    Returns:
        One row per claim. `effect` with its 95 % interval `low`, `high` is in `effect_unit`, and
        NaN where nothing was found; `contradicted` says of what does not hold that the evidence
        shows the opposite; `seeds` counts seeds, `runs` names runs as `<arm>-seed<k>`, joined by
        ";".
    """
    evidence = Evidence(runs, mechanism)
    found = [together([rule.check(evidence) for rule in claim.rule]) or NOTHING for claim in claims]
    return pd.DataFrame(_claim_row(*pair, unjudged) for pair in zip(claims, found, strict=True))


def _claim_row(claim: Claim, found: Finding, unjudged: Container[str]) -> dict[str, object]:
    is_judged = not any(arm in unjudged for arm, _ in found.runs)
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
