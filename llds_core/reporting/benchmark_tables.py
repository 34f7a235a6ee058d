"""Benchmark tables: published numbers beside ours, and the same table at desk scale.

What was not run says so. A delta is ours minus published. Deltas and intervals are of exact match,
greedy; averages are unweighted means of sets, and exist only where all of their sets were run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llds_core.evaluation.agents import BASELINES
from llds_core.evaluation.suites import average_members, averages
from llds_core.files import write_table
from llds_core.reporting.figures import method_label
from llds_core.reporting.paper_numbers import AVERAGES, paper_table
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import PUBLISHED, StoredRun
from llds_core.worlds.atlas_questions import KINDS
from llds_core.worlds.benchmarks import BENCHMARKS

NOT_RUN = "not run"
TABLES = {"table1": "llds_table1", "table2": "llds_table2", "table4": "llds_table4"}
PROFILES = {
    ("Qwen2.5-3B", "base"): "paper-3b",
    ("Qwen2.5-3B", "instruct"): "paper-3b-instruct",
    ("Qwen2.5-7B", "base"): "paper-7b",
    ("Qwen2.5-7B", "instruct"): "paper-7b-instruct",
    ("Llama-3.2-3B", "base"): "paper-llama3.2-3b",
}
# What the tables call a method, and what we call it; the others are not ours to run.
METHODS = {
    "Direct Inference": "direct",
    "Search-o1": "search-o1",
    "RAG": "rag",
    "Search-R1-GRPO": "grpo",
    "GRPO": "grpo",
    "GRPO+LLDS": "llds-action",
    "GRPO-LLDS": "llds-action",
    "GRPO+LLDS-MA": "llds-ma",
    "GRPO-LLDS-MA": "llds-ma",
    "Search-R1-GSPO": "gspo",
    "GSPO+LLDS": "gspo-llds",
}
COMPARISON_COLUMNS = (
    *("table", "model", "variant", "method", "benchmark", "published"),
    *("ours", "ours_low", "ours_high", "delta", "n", "seeds", "status", "source"),
)
DESK_COLUMNS = (
    *("profile", "method", "seed", "benchmark", "mode", "n", "em", "em_low", "em_high"),
    *("f1", "sub_em", "valid_answers", "searches", "status"),
)
# Averages as an evaluation names them, and as the published tables do.
_AVERAGE_NAMES = dict(
    zip(AVERAGES, ("average_general", "average_multi_hop", "average"), strict=True)
)
_DESK_AVERAGES = {"average_one_hop": "one-hop", "average_two_hop": "two-hop", "average": "all"}
_MODEL = "SmolLM2"


def paper_comparison(name: str, evaluations: pd.DataFrame) -> pd.DataFrame:
    """One table of the paper in long form, one row a method and benchmark or average.

    Args:
        name: one of `TABLES`.
        evaluations: of `published_evaluations`; greedy ones are taken. Of several seeds the mean is
            ours, with the interval over seeds.

    Returns:
        `COMPARISON_COLUMNS`; numbers are NaN, and `status` says so, where nothing was run; what
        was run otherwise than printed says how.
    """
    greedy = evaluations[evaluations["mode"] == "greedy"]
    rows = []
    for printed in paper_table(TABLES[name]).to_dict("records"):
        profile = PROFILES.get((printed["model"], printed["variant"]))
        method = METHODS.get(printed["method"])
        mine = greedy[(greedy["profile"] == profile) & (greedy["method"] == method)]
        kept = {key: printed[key] for key in ("model", "variant", "method", "source")}
        for benchmark in (*BENCHMARKS, *AVERAGES):
            asked = mine[mine["benchmark"] == _AVERAGE_NAMES.get(benchmark, benchmark)]
            ours = _ours(asked)
            delta = {"delta": ours["ours"] - printed[benchmark]}
            shown = {"table": name, "benchmark": benchmark, "published": printed[benchmark]}
            rows.append(kept | shown | ours | delta)
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _ours(asked: pd.DataFrame) -> dict[str, object]:
    if asked.empty:
        empty = dict.fromkeys(("ours", "ours_low", "ours_high"), np.nan)
        return empty | {"n": 0, "seeds": 0, "status": NOT_RUN}
    low, high = _bounds(asked)
    deviations = "; ".join(sorted(set(asked["deviations"]) - {""}))
    status = f"run with {deviations}" if deviations else "run"
    counts = {"n": int(asked["n"].iloc[0]), "seeds": len(asked), "status": status}
    return {"ours": asked["em"].mean(), "ours_low": low, "ours_high": high} | counts


def comparison_view(comparison: pd.DataFrame) -> pd.DataFrame:
    """A comparison as one reads it, a method a row: what is printed, and below it, where it was
    run, ours with interval and delta; elsewhere `ours` says that it was not run.
    """
    rows = []
    keys = ["model", "variant", "method"]
    for labels, group in comparison.groupby(keys, sort=False):
        cells = group.set_index("benchmark")
        row: dict[str, object] = dict(zip(keys, labels, strict=True))
        row |= {_title(name): _number(value) for name, value in cells["published"].items()}
        ran = cells[cells["status"] != NOT_RUN]
        rows.append(row | {"ours": f"{len(ran)} of {len(cells)}" if len(ran) else NOT_RUN})
        if len(ran):
            mine = {_title(name): _with_delta(cell) for name, cell in cells.iterrows()}
            how = ran["status"].iloc[0].removeprefix("run").replace(" with ", ", ", 1)
            label = {"method": f"ours (delta){how}"}
            rows.append(dict.fromkeys(keys, "") | label | mine | {"ours": ""})
    return pd.DataFrame(rows)


def desk_scores(
    runs: Sequence[StoredRun],
    baselines: pd.DataFrame | None,
    profile: str,
    checkpoint: str = "best",
    mode: str = "greedy",
) -> pd.DataFrame:
    """Held-out scores of runs and baselines by kind of question, one row a run and kind.

    Args:
        runs: with or without evaluation.
        baselines: of `published_baselines`; None for rows that were not run.
        profile: of runs and baselines.
        checkpoint: `best` or `last`.
        mode: how answers are decoded.

    Returns:
        `DESK_COLUMNS`. A run without evaluation has one row that says so. Runs keep no answers:
        their averages have no interval, and of their scores only exact match is there.
    """
    rows = [row for run in runs for row in _run_rows(run, checkpoint, mode)]
    if baselines is None:
        blank = {"profile": profile, "mode": mode, "benchmark": "average", "status": NOT_RUN}
        rows += [blank | {"method": f"{_MODEL} {name}"} for name in BASELINES]
    else:
        chosen = baselines[baselines["mode"] == mode]
        labels = {"method": f"{_MODEL} " + chosen["baseline"], "profile": profile, "status": "run"}
        rows += chosen.assign(**labels).to_dict("records")
    return pd.DataFrame(rows, columns=DESK_COLUMNS)


def _run_rows(run: StoredRun, checkpoint: str, mode: str) -> list[dict[str, object]]:
    known = {"profile": run.profile, "method": run.arm, "seed": run.seed, "mode": mode}
    scores = run.evaluation.get(checkpoint, {}).get("results", {}).get(mode, {})
    if not scores:
        return [known | {"benchmark": "average", "status": NOT_RUN}]
    kinds = {kind: scores[kind] for kind in KINDS if kind in scores}
    rows = [
        known
        | {"benchmark": kind, "n": entry["n"], "em": entry["em"], "searches": entry["searches"]}
        | {"em_low": entry["low"], "em_high": entry["high"], "status": "run"}
        for kind, entry in kinds.items()
    ]
    means = averages("atlas", {kind: entry["em"] for kind, entry in kinds.items()})
    searches = averages("atlas", {kind: entry["searches"] for kind, entry in kinds.items()})
    for name, members in average_members("atlas").items():
        if means[name] is not None:
            label = "average" if name == "all" else f"average_{name}"
            count = {"benchmark": label, "n": sum(kinds[kind]["n"] for kind in members)}
            rows.append(
                known | count | {"em": means[name], "searches": searches[name], "status": "run"}
            )
    return rows


def desk_view(scores: pd.DataFrame) -> pd.DataFrame:
    """Desk scores as one reads them, a method a row: the mean over seeds by kind, and of the
    averages the 95 % interval too, over seeds, or over questions where there is one seed.
    """
    rows = []
    for method, group in scores.groupby("method", sort=False):
        cells = group.groupby("benchmark", sort=False)
        row: dict[str, object] = {
            "method": method_label(str(method)),
            "seeds": group["seed"].nunique() or "–",
        }
        for name, title in ({kind: kind for kind in KINDS} | _DESK_AVERAGES).items():
            found = cells.get_group(name) if name in cells.groups else group.iloc[:0]
            found = found[found["status"] != NOT_RUN]
            row[title] = _with_interval(found, name in _DESK_AVERAGES)
        overall = group[group["benchmark"] == "average"]
        for column, title in (("sub_em", "contained"), ("valid_answers", "in tags")):
            row[title] = _number(overall[column].mean())
        row["searches"] = _number(overall["searches"].mean(), digits=1)
        rows.append(row)
    return pd.DataFrame(rows)


def published_baselines(profile: str, published: Path = PUBLISHED) -> pd.DataFrame | None:
    """The table of baselines of a profile, None when there is none."""
    path = published / profile / "baselines.csv"
    return pd.read_csv(path) if path.exists() else None


def save_table(
    table: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[StoredRun] | None = None
) -> Path:
    """Write `name`.csv under `out_dir`; return its path.

    Args:
        table: the numbers.
        out_dir: folder of the file.
        name: its name.
        runs: runs that a summary rests on, named in a column of their own; None where the table
            says so itself or comes from no run.

    Raises:
        RunError: when the folder cannot be written.
    """
    path = out_dir / f"{name}.csv"
    if runs is not None:
        table = table.assign(runs=";".join(f"{run.arm}-seed{run.seed}" for run in runs))
    write_table(path, table)
    return path


def _title(benchmark: str) -> str:
    if benchmark in BENCHMARKS:
        return BENCHMARKS[benchmark].title
    return {"general_average": "general", "multi_hop_average": "multi-hop"}.get(
        benchmark, benchmark
    )


def _number(value: float, digits: int = 3) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def _with_delta(cell: pd.Series) -> str:
    if cell["status"] == NOT_RUN:
        return NOT_RUN
    delta = "" if pd.isna(cell["delta"]) else f" ({cell['delta']:+.3f})"
    return f"{cell['ours']:.3f} [{cell['ours_low']:.3f}, {cell['ours_high']:.3f}]{delta}"


def _with_interval(found: pd.DataFrame, interval: bool) -> str:
    if found.empty:
        return NOT_RUN
    text = _number(found["em"].mean())
    if not interval:
        return text
    low, high = _bounds(found)
    return text if pd.isna(low) else f"{text} [{low:.3f}, {high:.3f}]"


def _bounds(scores: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of a mean: over questions for one seed, over seeds for more."""
    if len(scores) > 1:
        over_seeds = student_interval(scores["em"].to_numpy())
        return over_seeds.low, over_seeds.high
    low, high = scores[["em_low", "em_high"]].iloc[0]
    return low, high
