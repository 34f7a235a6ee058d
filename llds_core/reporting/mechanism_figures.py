"""Figures of the mechanism: Figures 3, 5, 6 and 9 of arXiv 2512.04220 and a check of its theorem.

The numbers come from `llds_core.diagnostics.measure` (checkpoints measured one by one) and from the
metrics
of runs. A collapsed policy hardly has a correct response whose likelihood could fall: figures and
summary are of tables that went through `before_collapse`, as claims are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llds_core.config import load_experiment
from llds_core.diagnostics.measure import covered, measure, mechanism_path, read_mechanism
from llds_core.diagnostics.summary import negative_share
from llds_core.errors import DataError
from llds_core.markdown import span
from llds_core.reporting import run_view as claim_evidence
from llds_core.reporting.figures import (
    METHOD_COLOURS,
    SEEDS_FOR_INTERVAL,
    draw_seeds,
    log_scale,
    method_label,
)
from llds_core.reporting.run_view import Measured
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import StoredRun, is_published

PANEL = (3.9, 3.0)  # inches
OPTIMIZER = "adamw"  # that of training; each response was counted once for every optimizer
_KEPT = "checkpoints before the collapse of their run"
_FACTOR_LABELS = {
    "driver": "driver score of Theorem 4.2",
    "pull": "pull of incorrect tokens",
    "own": "gradient of the response itself",
    "support": "support by other correct ones",
    "error_product": "product of prediction errors",
    "state_cosine": "similarity of token states",
    "similarity": "similarity of pooled states",
    "loglik_incorrect": "log-likelihood of incorrect",
    "loglik_correct": "control: log-likelihood of correct",
    "correct": "control: number of correct",
}


def ensure_mechanism(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    *,
    questions: int = 16,
) -> dict[str, pd.DataFrame]:
    """Read the mechanism tables of all seeds that were measured; what the first lacks is measured
    where checkpoints are stored.

    A policy that was not made here may be large: those are measured by command only.

    Args:
        profile: name of a profile.
        methods: methods whose runs are looked at.
        seeds: seeds of the runs; of others than the first what is there is read.
        run_root: folder of all runs.
        questions: how many to measure where nothing was measured before.

    Raises:
        DataError: when nothing is published, or a run has no checkpoint.
    """
    run_root = Path(run_root)
    made_here = not load_experiment(f"{profile}/{methods[0]}").policy.path
    folders = [mechanism_path(run_root, profile, seed) for seed in seeds]
    done, asked = covered(folders[0])
    if made_here and not is_published(run_root, profile) and not set(methods) <= set(done):
        questions = asked or questions
        measure(profile, methods, seeds[0], run_root, questions=questions)
    found = [read_mechanism(folder) for folder in folders if folder.is_dir()]
    if not found:
        raise DataError(
            f"no checkpoint of seeds {', '.join(map(str, seeds))} is measured: run python -m "
            f"llds_core mechanism {profile}"
        )
    return {name: pd.concat([tables[name] for tables in found]) for name in found[0]}


def before_collapse(
    tables: Mapping[str, pd.DataFrame], runs: Sequence[StoredRun]
) -> dict[str, pd.DataFrame]:
    """Leave out the checkpoints that a run reached once its reward had collapsed.

    Args:
        tables: what `ensure_mechanism` returns.
        runs: where collapses are looked up; what was measured without one of these is kept.
    """
    measured = [Measured(run) for run in runs]
    return {name: claim_evidence.before_collapse(table, measured) for name, table in tables.items()}


def share_table(changes: pd.DataFrame, optimizer: str = OPTIMIZER) -> pd.DataFrame:
    """Share of questions whose correct responses lose likelihood, a row a method and checkpoint.

    Columns `profile`, `method`, `seed`, `step` and those of `negative_share`.
    """
    keys = ["profile", "method", "seed", "step"]
    chosen = changes[changes["optimizer"] == optimizer]
    rows = [
        dict(zip(keys, key, strict=True)) | negative_share(group)
        for key, group in chosen.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows)


def likelihood_change_figure(changes: pd.DataFrame, optimizer: str = OPTIMIZER) -> Figure:
    """Fig. 3: change of each question under one update, share that falls, similarity of states.

    Changes are those of the first seed; the share is a thin line a seed, their mean as long as all
    have a checkpoint and, from three seeds on, Student's 95 % interval; the states are of all.

    Raises:
        DataError: when no question could be measured.
    """
    measured = changes[(changes["optimizer"] == optimizer) & changes["delta"].notna()]
    if measured.empty:
        raise DataError("every group had a single outcome: nothing changes, measure more questions")
    methods = list(dict.fromkeys(measured["method"]))
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.05):
        width, height = PANEL
        columns = len(methods) + 2
        figure = Figure(figsize=(width * columns * 0.85, height), layout="constrained")
        grid = figure.subplots(1, columns)
        for axes, method in zip(grid, methods, strict=False):
            own = measured[measured["method"] == method]
            seed = own["seed"].min()
            _sorted_changes(axes, own[own["seed"] == seed])
            axes.set_title(method_label(method), fontsize="medium")
            axes.set_xlabel(f"questions of seed {seed}, sorted")
        shares = share_table(changes, optimizer)
        for method, group in shares.groupby("method", sort=False):
            colour = METHOD_COLOURS.get(str(method), "#555555")
            by_seed = group.pivot(index="step", columns="seed", values="share")
            draw_seeds(grid[-2], by_seed, colour, marker="o")
        grid[-2].set(xlabel="step", ylabel="share of questions\nwith a fall", ylim=(0, 1))
        for method, group in measured.groupby("method", sort=False):
            colour = METHOD_COLOURS.get(str(method), "#555555")
            grid[-1].scatter(
                group["similarity"],
                group["delta"],
                s=7,
                alpha=0.4,
                color=colour,
                label=method_label(str(method)),
            )
        grid[-1].axhline(0, color="#777777", linewidth=0.8)
        grid[-1].set_yscale("symlog", linthresh=0.1)
        grid[-1].set_xlabel("similarity of correct and\nincorrect states (cosine)")
        grid[-1].set_ylabel("change of log-likelihood\n(nats per response)")
        handles, labels = grid[-1].get_legend_handles_labels()
        style = {"loc": "outside upper center", "ncols": len(methods), "frameon": False}
        figure.legend(handles, labels, title=_KEPT, **style)
        for axes in grid:
            sns.despine(ax=axes)
    return figure


def _sorted_changes(axes: Axes, measured: pd.DataFrame) -> None:
    """Questions sorted by their change, a line a checkpoint."""
    steps = sorted(measured["step"].unique())
    colours = sns.color_palette("flare", len(steps))
    for step, colour in zip(steps, colours, strict=True):
        values = np.sort(measured.loc[measured["step"] == step, "delta"])
        position = (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(position, values, color=colour, linewidth=1.3, label=f"{step:.0f}")
    axes.axhline(0, color="#777777", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylabel("change of log-likelihood\n(nats per response)")
    axes.legend(title="step", fontsize=6, title_fontsize=7, ncols=2, frameon=False)


def rounds_figure(rounds: pd.DataFrame) -> Figure:
    """Fig. 6: negative log-likelihood against search rounds, by position and by total, at the first
    and at the last checkpoint of every seed; lines as in `draw_seeds`.
    """
    rounds = _ends(rounds)
    with sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=1.05):
        width, height = PANEL
        figure = Figure(figsize=(width * 2 + 2.6, height), layout="constrained")
        grid = figure.subplots(1, 2)
        titles = {
            "position": ("rounds before the action", "actions by position"),
            "total": ("search rounds of the response", "whole responses"),
        }
        for axes, (view, (label, title)) in zip(grid, titles.items(), strict=True):
            log_scale(axes)
            for (method, end), group in rounds[rounds["view"] == view].groupby(["method", "end"]):
                draw_seeds(
                    axes,
                    group.pivot(index="rounds", columns="seed", values="nll"),
                    METHOD_COLOURS.get(str(method), "#555555"),
                    marker="o",
                    linestyle=":" if end == "first" else "-",
                    label=_end_label(str(method), str(end), group["step"]),
                )
            axes.set(xlabel=label, ylabel="negative log-likelihood\n(nats per token)", title=title)
            axes.xaxis.get_major_locator().set_params(integer=True)
            sns.despine(ax=axes)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, title=_KEPT, loc="outside right", frameon=False)
    return figure


def _end_label(method: str, end: str, steps: pd.Series) -> str:
    """Name of a method with the checkpoints that are drawn, which differ where seeds collapse."""
    if end == "scripted":
        return "SmolLM2-135M, scripted"
    return f"{method_label(method)}, {end}: step {span(steps, 0)}"


def _ends(rounds: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first and the last checkpoint of every run, named in the column `end`."""
    steps = rounds.groupby(["method", "seed"])["step"]
    first, last = steps.transform("min"), steps.transform("max")
    ends = np.select(
        [rounds["method"] == "smollm2", rounds["step"] == first, rounds["step"] == last],
        ["scripted", "first", "last"],
        default="",
    )
    return rounds.assign(end=ends)[ends != ""]


def theorem_figure(theorem: pd.DataFrame) -> Figure:
    """Rank correlation of the measured change with each cause that the theorem names.

    One panel an optimizer; a faint dot a checkpoint, a marker the mean over seeds of the means of
    their checkpoints, with Student's 95 % interval from three seeds on; on the shaded side the sign
    is the one expected.
    """
    optimizers = list(dict.fromkeys(theorem["optimizer"]))
    factors = [name for name in _FACTOR_LABELS if name in set(theorem["factor"])]
    methods = list(dict.fromkeys(theorem["method"]))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        figure = Figure(figsize=(4.6 * len(optimizers) + 1.5, 4.2), layout="constrained")
        grid = figure.subplots(1, len(optimizers), sharey=True, squeeze=False).ravel()
        for axes, optimizer in zip(grid, optimizers, strict=True):
            for row, factor in enumerate(factors):
                part = theorem[
                    (theorem["optimizer"] == optimizer) & (theorem["factor"] == factor)
                ].dropna(subset=["spearman"])
                expected = part["expected"].iloc[0] if len(part) else 0
                axes.barh(row, expected, height=0.95, color="#EEF3EA", zorder=0, linewidth=0)
                for offset, method in zip(_offsets(methods), methods, strict=True):
                    found = part.loc[part["method"] == method]
                    colour, y = METHOD_COLOURS.get(method, "#555555"), row + offset
                    dots = {"linestyle": "none", "marker": ".", "alpha": 0.35}
                    axes.plot(found["spearman"], [y] * len(found), color=colour, **dots)
                    mean = student_interval(found.groupby("seed")["spearman"].mean())
                    if mean.n >= SEEDS_FOR_INTERVAL:
                        axes.plot([mean.low, mean.high], [y, y], color=colour, linewidth=2)
                    axes.plot(mean.estimate, y, color=colour, marker="D", markersize=6)
            axes.axvline(0, color="#555555", linewidth=1)
            axes.set(xlim=(-1.02, 1.02), title=optimizer, xlabel="rank correlation with the change")
        grid[0].set_yticks(range(len(factors)), [_FACTOR_LABELS[name] for name in factors])
        grid[0].set_ylim(len(factors) - 0.5, -0.5)
        for method in methods:
            colour = METHOD_COLOURS.get(method, "#555555")
            grid[0].plot([], [], color=colour, marker="D", label=method_label(method))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, title=_KEPT, loc="outside upper center", ncols=2, frameon=False
        )
    return figure


def _offsets(methods: Sequence[str]) -> np.ndarray:
    return (np.arange(len(methods)) - (len(methods) - 1) / 2) * 0.4


def mechanism_summary(tables: Mapping[str, pd.DataFrame]) -> str:
    """Markdown: what the tables say, a sentence a question."""
    lines = []
    shares = share_table(tables["likelihood_change"])
    for method, group in shares.groupby("method", sort=False):
        runs = group.groupby("seed")
        first, last = runs.first().sum(), runs.last().sum()
        lines.append(
            f"**{method_label(str(method))}**, {runs.ngroups} of the seeds: one update lowers the "
            f"likelihood of the correct responses of {first['negative']:.0f} of "
            f"{first['measured']:.0f} questions at the start, and of {last['negative']:.0f} of "
            f"{last['measured']:.0f} at the last checkpoints before a collapse; the largest share "
            f"of a checkpoint is {group['share'].max():.2f}."
        )
    theorem = tables["theorem"].dropna(subset=["spearman"])
    driver = theorem[theorem["factor"] == "driver"]
    for (method, optimizer), group in driver.groupby(["method", "optimizer"]):
        right = int((np.sign(group["spearman"]) == group["expected"]).sum())
        sure = int((group["high"] < 0).sum())
        lines.append(
            f"Driver score against measured change, {method_label(str(method))}, {optimizer}: "
            f"median rank correlation {group['spearman'].median():.2f}, with the expected sign at "
            f"{right} of {len(group)} checkpoints, and an interval below zero at {sure}."
        )
    return "\n".join(f"- {line}" for line in lines)
