"""Baselines of one model over one world: what search agents are compared with before any training.

<folder>/baselines.csv      one row per baseline, mode and benchmark, then the averages
<folder>/baselines.json     for each baseline its summary without the scores
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from llds_core.evaluation.evaluate import EvaluationPlan, evaluate_questions
from llds_core.evaluation.models import Model
from llds_core.evaluation.scores import score_rows
from llds_core.files import write_json, write_table
from llds_core.rollout.environment import Environment

COLUMNS = (
    *("baseline", "benchmark", "n", "em", "em_low", "em_high", "f1", "sub_em"),
    *("valid_answers", "searches", "mode", "em_tagged"),
)


def run_baselines(
    environment: Environment,
    model: Model,
    plan: EvaluationPlan,
    names: Sequence[str],
    folder: Path,
) -> Path:
    """Answer with each of the baselines `names`, whatever agent `plan` names; write both files into
    `folder` and return the table.
    """
    plans = [replace(plan, agent=name) for name in names]
    folders = [evaluate_questions(environment, model, each) for each in plans]
    summaries = [json.loads((found / "summary.json").read_text("utf-8")) for found in folders]
    rows = [row for summary in summaries for row in score_rows(summary)]
    path = folder / "baselines.csv"
    write_table(path, pd.DataFrame(rows, columns=COLUMNS))
    manifest = {
        summary["agent"]: {key: value for key, value in summary.items() if key != "modes"}
        for summary in summaries
    }
    write_json(folder / "baselines.json", {"baselines": manifest})
    return path
