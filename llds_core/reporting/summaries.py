"""Small tables beside the figures: what became of runs, and how metrics moved."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from llds_core.reporting.figures import method_label, metric_label
from llds_core.reporting.run_tables import phase_row, run_row
from llds_core.reporting.run_view import Measured
from llds_core.reporting.store import StoredRun

_RUN_COLUMNS = {
    "method": "method",
    "seed": "seed",
    "status": "status",
    "steps": "steps",
    "best_reward": "best reward",
    "final_reward": "last reward",
    "decay": "likelihood decays",
    "acceleration": "decays faster",
    "collapse": "reward collapses",
    "likelihood_lead": "likelihood declines earlier by",
}


def runs_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per run: rewards as means over a window, and the steps at which its phases begin."""
    rows = [run_row(run) | phase_row(run) for run in runs if len(run.metrics)]
    table = pd.DataFrame(rows, columns=list(_RUN_COLUMNS)).rename(columns=_RUN_COLUMNS)
    counts = [*_RUN_COLUMNS.values()][-4:]
    return table.assign(method=table["method"].map(method_label)).astype(
        dict.fromkeys(counts, "Int64")
    )


def collapse_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per method: how many runs collapse, at which steps, and by how many steps the
    decline of likelihood comes before that of reward. Runs shorter than three windows, on which
    phases cannot be judged, are not counted.
    """
    rows = []
    for method, group in _by_method(runs).items():
        judged = [phase_row(run) for run in group if len(run.metrics) >= 3 * run.window]
        found = pd.DataFrame(judged, columns=["seed", "decay", "collapse", "likelihood_lead"])
        lead = found["likelihood_lead"].dropna()
        rows.append(
            {
                "method": method_label(method),
                "likelihood decays": _counted(found["decay"]),
                "reward collapses": _counted(found["collapse"]),
                "median lead of likelihood": f"{lead.median():g} steps" if len(lead) else "–",
            }
        )
    return pd.DataFrame(rows)


def changes_table(runs: Sequence[StoredRun], metrics: Sequence[str]) -> pd.DataFrame:
    """One row per method: means of metrics over the first window with values and over the last."""
    return pd.DataFrame(
        [
            {"method": method_label(method)}
            | {metric_label(metric): _moved(group, metric) for metric in metrics}
            for method, group in _by_method(runs).items()
        ]
    )


def _moved(runs: Sequence[StoredRun], metric: str) -> str:
    means = [Measured(run).means(metric) for run in runs]
    ends = [found[[0, -1]] for each in means if len(found := each[~np.isnan(each)])]
    return "{:.3g} → {:.3g}".format(*np.mean(ends, axis=0)) if ends else "never measured"


def _counted(steps: pd.Series) -> str:
    """`k of n`, with the steps at which it happened."""
    if steps.empty:
        return "too few steps to judge"
    found = sorted(steps.dropna())
    return f"{len(found)} of {len(steps)}" + (
        f" (from step {', '.join(f'{step:.0f}' for step in found)})" if found else ""
    )


def _by_method(runs: Sequence[StoredRun]) -> dict[str, list[StoredRun]]:
    arms = dict.fromkeys(run.arm for run in runs)
    return {arm: [run for run in runs if run.arm == arm] for arm in arms}
