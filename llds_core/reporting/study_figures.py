"""Figures and tables of a study: what each arm did to the collapse.

A run that did not collapse within its steps is censored there and drawn as an open triangle: it may
have collapsed later.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llds_core.diagnostics.phases import collapse_step
from llds_core.errors import DataError
from llds_core.reporting.figures import method_label
from llds_core.reporting.published import heldout
from llds_core.reporting.stats import mean_interval
from llds_core.reporting.store import Run
from llds_core.studies import Study

_SEED_ALPHA = 0.75
_COLLAPSED, _HELD = "#D55E00", "#0072B2"
_MAP_TITLES = {"grpo": "GRPO", "llds": "GRPO + LLDS", "kl": "GRPO, larger KL weight"}


def outcomes(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: when it collapsed and how the likelihood of correct responses went.

    Returns:
        Columns `profile`, `method` (the arm), `seed`, `steps`, `updates_per_rollout`,
        `learning_rate`, `collapse_step` (NaN when the run did not collapse), `collapse_update`,
        `best_reward` and `final_reward` (means over the run's window), `slope` of `loglik_correct`
        in nats per token and ten steps, a straight line through the steps up to the proof of the
        collapse or the end.
    """
    return pd.DataFrame([_outcome(run) for run in runs])


def _outcome(run: Run) -> dict[str, object]:
    metrics = run.metrics.set_index("step")
    training = run.manifest["config"]["training"]
    collapse = collapse_step(metrics["reward"], run.window)
    means = metrics["reward"].rolling(run.window).mean()
    end = metrics.index[-1] if collapse is None else collapse + 2 * run.window - 1
    loglik = metrics["loglik_correct"].loc[:end].dropna()
    slope = np.polyfit(loglik.index, loglik, 1)[0] * 10 if len(loglik) > 1 else np.nan
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": len(metrics),
        "updates_per_rollout": training["updates_per_rollout"],
        "learning_rate": training["learning_rate"],
        "collapse_step": np.nan if collapse is None else collapse,
        "collapse_update": np.nan
        if collapse is None
        else collapse * training["updates_per_rollout"],
        "best_reward": means.max(),
        "final_reward": means.iloc[-1],
        "slope": slope,
    }


def outcomes_figure(table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Draw collapse step and likelihood slope of every run, a row an arm.

    Args:
        table: what `outcomes` returns.
        arms: rows from top to bottom; an arm without runs is named "not run".

    Raises:
        DataError: when no arm has a run.
    """
    if not table["method"].isin(arms).any():
        raise DataError("none of the arms has a run: run the study first")
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(9.2, 0.32 * len(arms) + 1.7), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for row, arm in enumerate(arms):
            chosen = table[table["method"] == arm]
            if chosen.empty:
                left.text(0.5, row, "not run", va="center", fontsize=8, color="#777777")
            offsets = (np.arange(len(chosen)) - (len(chosen) - 1) / 2) * 0.16
            for offset, (_, run) in zip(offsets, chosen.iterrows(), strict=True):
                held = np.isnan(run["collapse_step"])
                colour = _HELD if held else _COLLAPSED
                style = {"color": colour, "alpha": _SEED_ALPHA, "linestyle": "none"}
                if held:
                    left.plot(run["steps"], row + offset, marker=">", fillstyle="none", **style)
                else:
                    left.plot(run["collapse_step"], row + offset, marker="o", **style)
                right.plot(run["slope"], row + offset, marker="o", **style)
        left.set_yticks(range(len(arms)), [method_label(arm) for arm in arms])
        left.set_ylim(len(arms) - 0.5, -0.5)
        left.set_xlim(0, table["steps"].max() * 1.05)
        left.set_xlabel("collapse (step)")
        right.set_xlabel(
            "slope of the log-likelihood of correct responses\n(nats per token, ten steps)"
        )
        right.axvline(0, color="#555555", linewidth=1)
        handles = [
            Line2D([], [], color=_COLLAPSED, marker="o", linestyle="none", label="collapsed"),
            Line2D(
                [],
                [],
                color=_HELD,
                marker=">",
                fillstyle="none",
                linestyle="none",
                label="held to its last step",
            ),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def map_figure(table: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Draw updates per rollout against learning rate, a panel a method: where it learns and breaks.

    Colour is the best reward (mean over a window); the text says the step of the collapse, or that
    the cell was not run.

    Args:
        table: what `outcomes` returns; several seeds of a cell are averaged and counted.
        cells: what `map_cells` returns.
    """
    runs = table[table["method"].isin(cells["method"])]
    panels = cells["panel"].unique()
    chosen = {
        panel: runs[runs["method"].isin(cells.loc[cells["panel"] == panel, "method"])]
        for panel in panels
    }
    rates = sorted(cells["learning_rate"].unique())
    updates = sorted(cells["updates_per_rollout"].unique())
    low, high = (0.0, 1.0) if runs.empty else (runs["best_reward"].min(), runs["best_reward"].max())
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(3.4 * len(chosen) + 1, 3.3), layout="constrained")
        grid = figure.subplots(1, len(chosen), squeeze=False, sharey=True).ravel()
        for axes, (key, part) in zip(grid, chosen.items(), strict=True):
            best = part.pivot_table(
                index="updates_per_rollout", columns="learning_rate", values="best_reward"
            ).reindex(index=updates, columns=rates, fill_value=np.nan)
            image = axes.imshow(
                best, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto"
            )
            for row, update in enumerate(updates):
                for column, rate in enumerate(rates):
                    cell = part[
                        (part["updates_per_rollout"] == update) & (part["learning_rate"] == rate)
                    ]
                    dark = not cell.empty and best.iloc[row, column] < (low + high) / 2
                    axes.text(
                        column,
                        row,
                        _cell(cell),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else "black",
                    )
            axes.set_xticks(range(len(rates)), [f"{rate:.2g}" for rate in rates])
            axes.set_yticks(range(len(updates)), updates)
            axes.set_xlabel("learning rate")
            axes.set_title(_MAP_TITLES.get(key, key))
        grid[0].set_ylabel("updates per rollout")
        figure.colorbar(image, ax=list(grid), label="best reward")
    return figure


def _cell(runs: pd.DataFrame) -> str:
    if runs.empty:
        return "not run"
    steps = runs["collapse_step"].dropna()
    reward = f"{runs['best_reward'].mean():.2f} → {runs['final_reward'].mean():.2f}"
    if steps.empty:
        return f"{reward}\nheld {runs['steps'].max():.0f}"
    of = f" ({len(steps)} of {len(runs)})" if len(runs) > 1 else ""
    return f"{reward}\ncollapse at {steps.median():.0f}{of}"


def heldout_table(
    runs: Sequence[Run], arms: Sequence[str], *, checkpoint: str = "best"
) -> pd.DataFrame:
    """Held-out exact match by question kind, an arm a row: the shape of the paper's Table 3.

    Args:
        runs: runs with their evaluation.
        arms: rows; an arm without evaluation says "not run".
        checkpoint: `best` or `last`.

    Returns:
        Columns `arm`, `seeds`, and mean [95 % interval over seeds] of one-hop, two-hop and all
        questions, greedy, then all questions sampled at temperature 1 and greedy with the search
        failures of training.
    """
    columns = {
        "one-hop": ("greedy", "1-hop"),
        "two-hop": ("greedy", "2-hop"),
        "all": ("greedy", "all"),
        "sampled": ("sampled_1", "all"),
        "with failures": ("greedy_with_failures", "all"),
    }
    rows = []
    for arm in arms:
        chosen = [run for run in runs if run.arm == arm]
        row: dict[str, object] = {"arm": method_label(arm), "seeds": len(chosen)}
        for name, (mode, kind) in columns.items():
            values = [heldout(run, checkpoint, mode, kind) for run in chosen]
            row[name] = _mean_text([value for value in values if value is not None])
        rows.append(row)
    return pd.DataFrame(rows)


def _mean_text(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    found = mean_interval(np.array(values))
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def weight_arms(runs: Sequence[Run]) -> list[str]:
    """Arms that differ from GRPO by nothing but LLDS with the action gate, by weight."""
    reference = {run.arm: run.manifest["config"]["loss"] for run in runs}
    base = reference.get("llds-action", next(iter(reference.values())))
    fixed = ("gate", "normalizer", "preserve", "answer_ramp", "kl_weight")
    weights = {
        arm: loss["llds_weight"]
        for arm, loss in reference.items()
        if arm in ("grpo", "llds-action")
        or (arm.startswith("llds-weight-") and all(loss[key] == base[key] for key in fixed))
    }
    return sorted(weights, key=weights.__getitem__)


def map_cells(study: Study) -> pd.DataFrame:
    """Cells of the study's map: `panel`, `method` (the arm), `learning_rate` and
    `updates_per_rollout`.
    """
    entries = [entry for entry in study.entries() if entry.arm.group == "map"]
    return pd.DataFrame(
        {
            "panel": entry.arm.name.split("-")[1],
            "method": entry.arm.name,
            "learning_rate": entry.config.training.learning_rate,
            "updates_per_rollout": entry.config.training.updates_per_rollout,
        }
        for entry in entries
    ).drop_duplicates()


def study_progress(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row an arm: seeds run of seeds planned, and what it is for."""
    counts = Counter(run.arm for run in runs)
    return pd.DataFrame(
        {
            "group": arm.group,
            "arm": arm.name,
            "seeds run": f"{counts[arm.name]} of {len(arm.seeds)}"
            if counts[arm.name]
            else "not run",
            "note": arm.note,
        }
        for arm in study.arms
    )
