"""Scores of benchmark evaluations: shown, published, and read back.

results/published/<profile>/evaluations/<method or baseline>-seed<k>.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.errors import ConfigError, DataError
from llds_core.evaluation.agents import POLICY
from llds_core.evaluation.baseline_runs import score_rows
from llds_core.files import disk_errors, write_json
from llds_core.reporting.store import PUBLISHED

SCORE_COLUMNS = (
    *("profile", "method", "seed", "mode", "benchmark"),
    *("n", "em", "em_low", "em_high", "f1", "sub_em", "deviations"),
)
_SHOWN = ("benchmark", "mode", "n", "em", "f1", "sub_em", "valid_answers", "searches")


def score_lines(folder: Path) -> str:
    """The scores of an evaluation as a table for a terminal."""
    table = pd.DataFrame(score_rows(_read(folder / "summary.json")))
    interval = [f"[{row.em_low:.3f}, {row.em_high:.3f}]" for row in table.itertuples()]
    shown = table[list(_SHOWN)]
    shown.insert(4, "95 %", interval)
    return shown.to_string(index=False, float_format=lambda value: f"{value:.3f}")


def publish_evaluation(
    folder: Path, published: Path = PUBLISHED, *, name: str | None = None
) -> Path:
    """Copy the summary of an evaluation; return the file.

    Args:
        folder: the evaluation.
        published: root of published results, or of runs.
        name: what was evaluated; None for its method or baseline.

    Raises:
        ConfigError: when it says neither baseline nor method.
        DataError: when there is no summary.
    """
    summary = _read(folder / "summary.json")
    if name is None:
        name = summary["method"] if summary["agent"] == POLICY else summary["agent"]
    if name is None:
        raise ConfigError(f"{folder} does not say what was trained: evaluate it with --method")
    target = published / summary["profile"] / "evaluations"
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    path = target / f"{name}-seed{summary['run_seed']}.json"
    known = list(summary.get("deviations", ()))
    write_json(path, summary | {"deviations": known + _left_out(summary, known)})
    return path


def _left_out(summary: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """What an evaluation asked less than all of the test split, unless its settings say so."""
    identity, found = summary["identity"], []
    if identity["limit"] is not None and not any("evaluation.questions" in text for text in known):
        found.append(f"{summary['questions']} questions instead of all")
    if identity["split"] != "test":
        found.append(f"the {identity['split']} split instead of test")
    return found


def published_evaluations(*roots: Path) -> pd.DataFrame:
    """Every score stored in `roots`, one row a benchmark and average; `method` may be a baseline.

    Of the same run the score in the last root counts.
    """
    files = {
        file.relative_to(root): file
        for root in roots or (PUBLISHED,)
        for file in sorted(root.glob("*/evaluations/*.json"))
    }
    rows = [
        row
        | {"profile": summary["profile"], "method": file.stem.rpartition("-seed")[0]}
        | {"seed": summary["run_seed"], "deviations": "; ".join(summary.get("deviations", ()))}
        for file in files.values()
        for summary in [_read(file)]
        for row in score_rows(summary)
    ]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no scores ({error}): evaluate again") from error
