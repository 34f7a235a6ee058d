"""The claims of a study for a reader, with verdict and effect, opened to the runs they rest on."""

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llds_core.config.arms import Study
from llds_core.files import bounded
from llds_core.reporting.run_tables import outcomes
from llds_core.reporting.store import StoredRun, is_published
from llds_core.study.claims import evaluate_claims, load_claims, under_way
from llds_core.study.evidence import published_mechanism

_COLOURS = {"holds": "#006d4c", "does not hold": "#a30000", "not tested": "#555555"}
_OF_A_RUN = ["method", "seed", "collapse_step", "best_reward", "final_reward", "entropy_growth"]


def checked_claims(study: Study, runs: Sequence[StoredRun], root: Path) -> pd.DataFrame:
    """Every claim of a study checked against `runs`, with the measurements published below `root`,
    if any; see `evaluate_claims`. Column `of` says whose claim it is: `paper` or `ours`.
    """
    published = is_published(root, study.profile)
    measured = published_mechanism(root, study.profile) if published else {}
    unjudged = under_way(study, runs) if published else ()
    table = evaluate_claims(load_claims(study).claims, runs, measured, unjudged)
    ours = table["paper_reference"].str.contains("not in the paper")
    return table.assign(of=ours.map({True: "ours", False: "paper"}))


def claims_html(claims: pd.DataFrame, runs: Sequence[StoredRun]) -> str:
    """Claims of `checked_claims` as HTML that opens without a script: first what holds."""
    table = outcomes(runs)
    named = table["method"] + "-seed" + table["seed"].astype(str)
    parts = []
    for verdict, colour in _COLOURS.items():
        of_verdict = claims[claims["verdict"] == verdict]
        parts.append(f'<h3 style="color:{colour}">{verdict}: {len(of_verdict)}</h3>')
        for claim in of_verdict.itertuples():
            rests_on = table[named.isin(claim.runs.split(";"))]
            rows = rests_on.reindex(columns=_OF_A_RUN).to_html(
                index=False, float_format="{:.3g}".format, na_rep="–", border=0
            )
            found = ""
            if pd.notna(claim.effect):
                interval = bounded(claim.effect, claim.low, claim.high, ".3g")
                found = f": <b>{interval}</b> {html.escape(claim.effect_unit)}, {claim.seeds} seeds"
            parts.append(
                f"<details><summary>{html.escape(claim.claim)} "
                f"<i>({html.escape(claim.paper_reference)})</i>{found}"
                f"{'; contradicted' * claim.contradicted}</summary>"
                f"<p>Holds when: {html.escape(claim.rule)}.</p>{rows}</details>"
            )
    return "\n".join(parts)
