"""Benchmarks: scores as they are published, the paper's tables and Figure 1 with ours beside them,
and the same table at desk scale.

What was not run says so. A delta is ours minus published. Deltas and intervals are of exact match,
greedy; averages are unweighted means of sets, and exist only where all of their sets were run.

    <published>/<profile>/evaluations/<method or baseline>-seed<k>.json
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from llds_core.config.load import PRESETS
from llds_core.errors import DataError
from llds_core.evaluation.scores import averages, score_rows
from llds_core.files import bounded
from llds_core.reporting.figures import method_label
from llds_core.reporting.run_view import StoredRun
from llds_core.reporting.stats import student_interval
from llds_core.worlds import QUESTION_SETS
from llds_core.worlds.atlas import KINDS

NOT_RUN = "not run"
TABLES = {"table1": "llds_table1", "table2": "llds_table2", "table4": "llds_table4"}
_OURS = yaml.safe_load((PRESETS / "paper_tables.yaml").read_text("utf-8"))
METHODS: dict[str, str] = _OURS["methods"]
PROFILES: dict[str, str] = _OURS["profiles"]
SCORE_COLUMNS = (
    *("profile", "method", "seed", "mode", "benchmark"),
    *("n", "em", "em_low", "em_high", "f1", "sub_em", "deviations"),
)
COMPARISON_COLUMNS = (
    *("table", "model", "variant", "method", "benchmark", "published"),
    *("ours", "ours_low", "ours_high", "delta", "n", "seeds", "status", "source"),
)
DESK_COLUMNS = (
    *("profile", "method", "seed", "benchmark", "mode", "n", "em", "em_low", "em_high"),
    *("f1", "sub_em", "valid_answers", "searches"),
)
# Averages as the published tables name them: how an evaluation does, and how readers do.
PAPER_AVERAGES = {
    "general_average": ("average_general", "general"),
    "multi_hop_average": ("average_multi_hop", "multi-hop"),
    "average": ("average", "average"),
}
_TITLES = {name: benchmark.title for name, benchmark in QUESTION_SETS.items()}
_TITLES |= {name: title for name, (_, title) in PAPER_AVERAGES.items()}
_DESK_AVERAGES = {"average_one_hop": "one-hop", "average_two_hop": "two-hop", "average": "all"}


def score_lines(folder: Path) -> str:
    """The scores of an evaluation as a table for a terminal."""
    table = pd.DataFrame(score_rows(read_scores(folder / "summary.json")))
    table["95 %"] = [f"[{row.em_low:.3f}, {row.em_high:.3f}]" for row in table.itertuples()]
    names = ["benchmark", "mode", "n", "em", "95 %", "f1", "sub_em", "valid_answers", "searches"]
    return table[names].to_string(index=False, float_format="{:.3f}".format)


def published_evaluations(*roots: Path) -> pd.DataFrame:
    """Every score stored in `roots`, one row per benchmark and average; `method` may be a baseline.

    Of the same run the score in the last root counts.
    """
    found = {
        file.relative_to(root): file
        for root in roots
        for file in sorted(root.glob("*/evaluations/*.json"))
    }
    rows = []
    for file in found.values():
        summary = read_scores(file)
        known = {"profile": summary["profile"], "seed": summary["run_seed"]}
        known["method"] = file.stem.rpartition("-seed")[0]
        known["deviations"] = "; ".join(summary.get("deviations", ()))
        rows += [row | known for row in score_rows(summary)]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def read_scores(path: Path) -> dict[str, Any]:
    """Read the summary of an evaluation."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no scores ({error}): evaluate again") from error


def paper_table(name: str) -> pd.DataFrame:
    """One of `TABLES` as printed, with where each row was read; NaN where nothing is printed."""
    path = Path(__file__).parent / "paper_numbers" / f"{TABLES[name]}.csv"
    return pd.read_csv(path).fillna({"variant": ""})  # of models that have none


def paper_says(folder: Path) -> tuple[dict[str, str], dict[float, str]]:
    """What the paper says in words: of its figures, by quantity, and of each penalty weight."""
    quantities = pd.read_csv(folder / "llds_figures.csv", index_col="quantity")["value"]
    weights = pd.read_csv(folder / "llds_lambda.csv", index_col="llds_weight")
    steps = weights["collapse_step"].dropna().map("≈ {:.0f}".format)
    stable = weights["stable_until"].dropna().map(lambda _: "none")
    return quantities.to_dict(), {**steps, **stable}


def paper_gates(folder: Path) -> pd.DataFrame:
    """Table 3: averages as printed, a row per method, a column per model and training set."""
    table = pd.read_csv(folder / "llds_table3.csv")
    return table.pivot_table("average", "method", ["model", "variant", "training"], sort=False)


def paper_comparison(name: str, evaluations: pd.DataFrame) -> pd.DataFrame:
    """One of `TABLES` in long form (`COMPARISON_COLUMNS`), one row per method and benchmark or
    average, with the greedy scores of `published_evaluations` beside it: of several seeds the mean
    and the interval; NaN where nothing was run.
    """
    greedy = evaluations[evaluations["mode"] == "greedy"]
    rows = []
    for printed in paper_table(name).to_dict("records"):
        profile = PROFILES.get(f"{printed['model']} {printed['variant']}")
        method = METHODS.get(printed["method"])
        mine = greedy[(greedy["profile"] == profile) & (greedy["method"] == method)]
        for benchmark in _TITLES:
            asked = mine[mine["benchmark"] == PAPER_AVERAGES.get(benchmark, (benchmark,))[0]]
            row = {"table": name, "benchmark": benchmark, "published": printed[benchmark]}
            row |= {"ours": asked["em"].mean(), "n": 0, "seeds": len(asked), "status": NOT_RUN}
            if len(asked):
                row["ours_low"], row["ours_high"] = _bounds(asked)
                deviations = "; ".join(sorted(set(asked["deviations"]) - {""}))
                row["status"] = f"run with {deviations}" if deviations else "run"
                row["n"] = int(asked["n"].iloc[0])
            rows.append(printed | row | {"delta": row["ours"] - row["published"]})
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def comparison_view(comparison: pd.DataFrame) -> pd.DataFrame:
    """A comparison as one reads it, a method per row: what is printed, and below it, where it was
    run, ours with interval and delta; `ours` counts the benchmarks that were run.
    """
    rows = []
    keys = ["model", "variant", "method"]
    for labels, group in comparison.groupby(keys, sort=False):
        cells = group.set_index("benchmark").rename(_TITLES)
        ran = cells[cells["status"] != NOT_RUN]
        row = dict(zip(keys, labels, strict=True)) | cells["published"].map(_number).to_dict()
        rows.append(row | {"ours": f"{len(ran)} of {len(cells)}" if len(ran) else "–"})
        if len(ran):
            how = ran["status"].iloc[0].removeprefix("run").replace(" with ", ", ", 1)
            label = {"model": "", "variant": "", "method": f"ours (delta){how}"}
            rows.append(label | {name: _with_delta(cell) for name, cell in cells.iterrows()})
    return pd.DataFrame(rows).fillna("")


def desk_scores(runs: Sequence[StoredRun], profile: str, published: Path) -> pd.DataFrame:
    """Held-out greedy scores of the best checkpoint of runs, and of the published baselines, one
    row (`DESK_COLUMNS`) per kind of question and average; none of what was not evaluated. Runs keep
    no answers: their averages have no interval, and only exact match is there.
    """
    rows = [row for run in runs for row in _score_run(run)]
    path = published / profile / "baselines.csv"
    if path.exists():
        baselines = pd.read_csv(path).query("mode == 'greedy'")
        labels = {"method": "SmolLM2 " + baselines["baseline"], "profile": profile}
        rows += baselines.assign(**labels).to_dict("records")
    return pd.DataFrame(rows, columns=DESK_COLUMNS)


def _score_run(run: StoredRun) -> list[dict[str, Any]]:
    scores = run.evaluation.get("best", {}).get("results", {}).get("greedy", {})
    kinds = {kind: scores[kind] for kind in KINDS if kind in scores}
    pairs = {kind: pd.Series(entry)[["em", "searches"]] for kind, entry in kinds.items()}
    modes = {"greedy": {"benchmarks": kinds, "averages": averages("atlas", pairs)}}
    rows = score_rows({"world": "atlas", "agent": run.arm, "modes": modes})
    bounds = {"low": "em_low", "high": "em_high"}
    return [run.key | {bounds.get(name, name): row[name] for name in row} for row in rows]


def desk_view(scores: pd.DataFrame, runs: Sequence[StoredRun] = ()) -> pd.DataFrame:
    """Desk scores as one reads them, a method per row, arms as the study of their `runs` calls
    them: the mean over seeds by kind, and of the averages the 95 % interval too, over seeds, or
    over questions where there is one seed.
    """
    labels = {run.arm: run.label for run in runs}
    rows = []
    for method, group in scores.groupby("method", sort=False):
        name = labels.get(method) or method_label(str(method))
        row = {"method": name, "seeds": group["seed"].nunique() or "–"}
        for name, title in ({kind: kind for kind in KINDS} | _DESK_AVERAGES).items():
            found = group[group["benchmark"] == name]
            row[title] = _number(found["em"].mean())
            if len(found) and name in _DESK_AVERAGES:
                row[title] = bounded(found["em"].mean(), *_bounds(found), ".3f")
        overall = group[group["benchmark"] == "average"].mean(numeric_only=True)
        row["contained"] = _number(overall["sub_em"])
        row["in tags"] = _number(overall["valid_answers"])
        row["searches"] = _number(overall["searches"], digits=1)
        rows.append(row)
    return pd.DataFrame(rows)


def _number(value: float, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def _with_delta(cell: pd.Series) -> str:
    if cell["status"] == NOT_RUN:
        return "–"
    delta = "" if pd.isna(cell["delta"]) else f" ({cell['delta']:+.3f})"
    return bounded(cell["ours"], cell["ours_low"], cell["ours_high"], ".3f") + delta


def _bounds(scores: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of a mean share: over questions for one seed, over seeds from three on. Where
    no question, or every one, is right, a bootstrap has no width: Clopper and Pearson's bound.
    """
    if len(scores) > 1:
        low, high = student_interval(scores["em"].to_numpy())[1:3]
        return (max(low, 0.0), min(high, 1.0)) if len(scores) > 2 else (np.nan, np.nan)
    em, low, high, n = scores[["em", "em_low", "em_high", "n"]].iloc[0]
    if low == high and n > 0:
        return (0.0, 1 - 0.025 ** (1 / n)) if em == 0 else (0.025 ** (1 / n), 1.0)
    return low, high
