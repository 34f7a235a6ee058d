"""The claims of the paper, each as a rule over stored runs.

`claim_list` holds the claims with their rules. The verdict is `holds` or `does not hold` where the
rule could be applied, else `not tested`: seeds are missing or too few for any outcome to meet the
rule, or what the claim presupposes, such as a collapse, did not occur. `does not hold`
says that the runs do not show the claim, which with few seeds is no proof of its contrary; the
effect and its interval say how much they leave open. Claims are judged one by one, each at 95 %,
without correction for their number.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from llds_core.markdown import bounded, markdown_table
from llds_core.reporting.run_view import Evidence
from llds_core.reporting.store import Run
from llds_core.study.claim_list import CLAIMS, Claim

COLUMNS = (
    "claim",
    "paper_reference",
    "verdict",
    "effect",
    "low",
    "high",
    "seeds",
    "runs",
    "effect_unit",
    "rule",
)


def evaluate_claims(
    runs: Sequence[Run],
    mechanism: Mapping[str, pd.DataFrame],
    *,
    window: int,
) -> pd.DataFrame:
    """Check every claim; the same input gives the same table.

    Args:
        runs: runs of one profile, each with the name of its arm. Unfinished ones are left out, and
            those that failed for another reason than divergence.
        mechanism: measurements on checkpoints: `likelihood_change` with columns method, seed, step
            delta (one row a question, NaN where it was skipped), first_search_reached_incorrect
            and first_search_reached_equal (counts), `theorem` with columns method, seed, step,
            factor, spearman and partial. Where a frame has a column optimizer, the rows of `adamw`
            count, of `theorem` those of `sgd`. A missing frame or column leaves its claims
            untested.
        window: steps of the means on which runs are judged.

    Returns:
        One row a claim in the order of `CLAIMS`, columns `COLUMNS`. `effect` with its 95 % interval
        `low`, `high` is in `effect_unit`, and NaN where nothing was found; `seeds` counts seeds,
        `runs` names runs as `<arm>-seed<k>`, joined by ";".

    Raises:
        DataError: for runs of several profiles, or two of one arm and seed.
        ConfigError: when `window` is not positive.
    """
    evidence = Evidence(runs, mechanism, window)
    return pd.DataFrame([_row(claim, evidence) for claim in CLAIMS], columns=COLUMNS)


def claims_markdown(frame: pd.DataFrame) -> str:
    """Return the table of `evaluate_claims` as Markdown: claim, reference, verdict, effect with its
    interval and unit, number of seeds.
    """
    rows = []
    for row in frame.itertuples():
        effect = "–"
        if not np.isnan(row.effect):
            effect = f"{bounded(row.effect, row.low, row.high, '.3g')} {row.effect_unit}"
        rows.append((row.claim, row.paper_reference, row.verdict, effect, row.seeds))
    return markdown_table(("claim", "paper", "verdict", "effect [95 % interval]", "seeds"), rows)


def _row(claim: Claim, evidence: Evidence) -> dict[str, object]:
    found = claim.check(evidence)
    effect = dict.fromkeys(("effect", "low", "high"), np.nan)
    if found is not None:
        interval = found.effect
        effect = {"effect": interval.estimate, "low": interval.low, "high": interval.high}
    verdicts = {None: "not tested", True: "holds", False: "does not hold"}
    return {
        "claim": claim.claim,
        "paper_reference": claim.reference,
        "verdict": verdicts[None if found is None else found.holds],
        **effect,
        "seeds": 0 if found is None else len(found.seeds),
        "runs": "" if found is None else ";".join(found.runs),
        "effect_unit": claim.unit,
        "rule": claim.rule,
    }
