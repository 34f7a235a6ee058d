"""The claims of a study, each a sentence with a rule over stored runs.

They stand in `presets/claims/<study>.yaml`: what is claimed, where the paper makes the claim, what
it means, the unit of its effect, and the rule of `rules` that checks it. The verdict is `holds` or
`does not hold` where the rule could be applied, else `not tested`: seeds are missing or too few for
any outcome to meet the rule, or what the claim presupposes, such as a collapse, did not occur.
`does not hold` says that the runs do not show the claim, which with few seeds is no proof of its
contrary; the effect and its interval say how much they leave open. Claims are judged one by one,
each at 95 %, without correction for their number.
"""

import datetime
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llds_core.config.arms import Study
from llds_core.errors import ConfigError, closest, did_you_mean
from llds_core.reporting.store import StoredRun
from llds_core.study.evidence import Evidence, Finding, Rule
from llds_core.study.rules import RULES

_CLAIMS = files("llds_core") / "presets" / "claims"
_VERDICTS = {None: "not tested", True: "holds", False: "does not hold"}


class Claim(BaseModel):
    """One claim.

    Attributes:
        claim: what is claimed.
        paper: where in the paper.
        means: when it holds, in words.
        unit: of the effect.
        rule: when it holds; of two rules both have to, and the effect is that of the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str
    paper: str
    means: str
    unit: str
    rule: tuple[Rule, ...] = Field(min_length=1)

    @field_validator("rule", mode="before")
    @classmethod
    def _read(cls, value: Any) -> tuple[Rule, ...]:
        return tuple(_read_rule(each) for each in (value if isinstance(value, list) else [value]))

    def check(self, evidence: Evidence) -> Finding | None:
        """Apply the rules."""
        findings = []
        for rule in self.rule:
            found = rule.check(evidence)
            if found is None:
                return None
            findings.append(found)
        first, *others = findings
        if not others:
            return first
        return Finding(
            all(found.holds for found in findings),
            first.effect,
            first.seeds.union(*(found.seeds for found in others)),
            tuple(dict.fromkeys(name for found in findings for name in found.runs)),
        )


class Change(BaseModel):
    """A change of the claims, and what was known by then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date
    change: str


class Claims(BaseModel):
    """The claims about a study in order, and how they changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: tuple[Change, ...] = ()
    claims: tuple[Claim, ...]


def has_claims(study: str) -> bool:
    """Whether claims are made about a study."""
    return (_CLAIMS / f"{study}.yaml").is_file()


def load_claims(study: Study, text: str | None = None) -> Claims:
    """Read the claims about a study.

    Args:
        study: its arms are those that rules may name.
        text: YAML; None for the file that ships with the package.
    """
    if text is None:
        text = (_CLAIMS / f"{study.name}.yaml").read_text("utf-8")
    try:
        claims = Claims.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise ConfigError(f"claims of study {study.name}{_first_error(error, Claim)}") from error
    for claim in claims.claims:
        for name in sorted({name for rule in claim.rule for name in rule.named_arms()}):
            if name not in study.labels:
                near = closest(name, study.labels)
                hint = f'did you mean "{near}"?' if near else "name one of the study"
                where = f'claims of study {study.name}, "{claim.claim}"'
                raise ConfigError(f'{where}: unknown arm "{name}": {hint}')
    return claims


def evaluate_claims(
    claims: Sequence[Claim], runs: Sequence[StoredRun], mechanism: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Check every claim; the same input gives the same table.

    Args:
        claims: what to check.
        runs: runs of one profile, each with the name of its arm. Unfinished ones are left out, and
            those that failed for another reason than divergence.
        mechanism: measurements on checkpoints, as `diagnostics.measure` writes them. A missing
            frame or column leaves its claims untested.

    Returns:
        One row per claim. `effect` with its 95 % interval `low`, `high` is in `effect_unit`, and
        NaN where nothing was found; `seeds` counts seeds, `runs` names runs as `<arm>-seed<k>`,
        joined by ";".
    """
    evidence = Evidence(runs, mechanism)
    return pd.DataFrame([_claim_row(claim, evidence) for claim in claims])


def _claim_row(claim: Claim, evidence: Evidence) -> dict[str, object]:
    found = claim.check(evidence)
    effect = found.effect if found else None
    return {
        "claim": claim.claim,
        "paper_reference": claim.paper,
        "verdict": _VERDICTS[found.holds if found else None],
        "effect": effect.estimate if effect else np.nan,
        "low": effect.low if effect else np.nan,
        "high": effect.high if effect else np.nan,
        "seeds": len(found.seeds) if found else 0,
        "runs": ";".join(found.runs) if found else "",
        "effect_unit": claim.unit,
        "rule": claim.means,
    }


def _read_rule(value: Any) -> Rule:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"a rule is {value!r}: write, e.g., {{count: survives, arm: grpo}}")
    kind = next(iter(value))
    if kind not in RULES:
        raise ConfigError(f'unknown rule "{kind}": {did_you_mean(kind, RULES)}')
    try:
        return RULES[kind].model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"rule {kind}{_first_error(error, RULES[kind])}") from error


def _first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong first, in one line, with the nearest name where a name is."""
    # A key written wrongly is also a key that is missing: the former says more.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = "".join(f", number {part + 1}" for part in first["loc"] if isinstance(part, int))
    key = str(first["loc"][-1]) if first["loc"] else "the file"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"
    if first["type"] == "extra_forbidden":
        return f'{where}: unknown key "{key}": {did_you_mean(key, model.model_fields)}'
    if first["type"] == "missing":
        return f'{where}: "{key}" is missing: add it'
    return f"{where}: {key} is {first['input']!r}: {first['msg'].lower()}"
