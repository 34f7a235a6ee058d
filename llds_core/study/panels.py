"""Figures of a study: what each arm did to the collapse, its map, and its settings in their order.

A run that did not collapse within its steps is censored there and drawn as an open triangle: it may
have collapsed later. One that lost more than half of its best reward, but not by the strict rule of
`diagnostics.phases`, has a mark of its own.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llds_core.config.arms import Series, Study
from llds_core.errors import DataError
from llds_core.files import span
from llds_core.reporting import figures as look
from llds_core.reporting.run_view import BASELINE, StoredRun, usual_steps
from llds_core.study.claim_statistics import censored_median

_FELL_BELOW = 0.5  # of the best windowed reward
# What became of a run: name in the legend, and mark.
_OUTCOMES: dict[str, tuple[str, dict[str, Any]]] = {
    "likelihood lost": ("collapsed, likelihood lost", {"marker": "o", "fillstyle": "full"}),
    "likelihood kept": ("collapsed, likelihood kept", {"marker": "X", "fillstyle": "full"}),
    "fell": ("no collapse, but fell below half of its best", {"marker": "v", "fillstyle": "full"}),
    "none": ("no collapse to its last step", {"marker": ">", "fillstyle": "none"}),
}
_REWARD_SPAN = 0.4
Row = tuple[str, str | None, dict[str, str]]  # label, arm and style; a heading has no arm


def outcomes_figure(table: pd.DataFrame, study: Study, most: int | None = None) -> Figure:
    """Draw collapse step and likelihood slope of every run of `outcomes`, one row per arm of the
    study that has one, those of its map left out, under headings, colours by method; a group for
    which it has series is shown by series. With `most` only so many arms: GRPO, then those with
    most seeds, from those that last longest.

    Vertical lines repeat GRPO's runs in every row. The axis of steps ends at twice the steps of the
    shortest run without a collapse; later ends and collapses stand there, with their steps.
    """
    known = table[table["method"].isin({*study.labels} - study.only_on_map)]
    rows = _rows(study, {*known["method"]}) if most is None else _most_telling(known, study, most)
    shown = table[table["method"].isin([arm for _, arm, _ in rows])]
    if shown.empty:
        raise DataError("none of the arms has a run: run the study first")
    end = shown["collapse_step"].fillna(shown["steps"]).max()
    whole = shown.loc[shown["collapse_step"].isna(), "steps"]
    if len(whole):  # a single run much longer than the usual would squeeze all
        end = min(end, 2 * whole.min())
    methods = {arm.name: arm.method for arm in study.arms}
    with look.theme(grid=True):
        figure, (left, right) = look.panels(1, 2, max(0.2 * len(rows) + 1.7, 2.9), sharey=True)
        base, colour = table[table["method"] == BASELINE], look.METHOD_COLOURS[BASELINE]
        for axes, measure in ((left, "collapse_step"), (right, "slope")):
            for at in base[measure].dropna():
                axes.axvline(at, color=colour, alpha=0.2, linewidth=1.2, zorder=0)
        left.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        named = zip(left.get_yticklabels(), rows, strict=True)
        for place, (text, (_, arm, style)) in enumerate(named):
            text.set(**style)
            if arm is not None:
                colour = look.METHOD_COLOURS.get(methods[arm], look.GREY)
                _draw_row(left, right, place, table[table["method"] == arm], end, colour)
        left.set_ylim(len(rows) - 0.3, -0.7)
        left.set_xlim(0, end * 1.05)
        left.set_xlabel("step of collapse,\nor last step")
        right.set_xlabel("change of log-\nlikelihood (nats per\ntoken in 10 steps)")
        right.xaxis.set_major_locator(MaxNLocator(nbins=3))
        right.axvline(0, color=look.GREY, linewidth=1)
        marks: dict[str, Any] = {"linestyle": "", "markersize": 6, "markeredgewidth": 1}
        look.legend_below(figure, 2, dict(_OUTCOMES.values()), **marks)
        figure.suptitle(_outcomes_finding(known, study), weight="bold", size="medium")
    return figure


def _outcomes_finding(known: pd.DataFrame, study: Study) -> str:
    """Of GRPO so far, and of settings all of whose planned seeds collapsed or made all steps."""
    counts = known["collapse_step"].notna().groupby(known["method"]).agg(["sum", "size"])
    to_end = known["steps"] == known.groupby("method")["steps"].transform("max")
    seeds = known[to_end | known["collapse_step"].notna()].groupby("method")["seed"].agg(set)
    others = [arm for arm in study.arms if arm.name != BASELINE and arm.group != "mechanism"]
    whole = [arm.name for arm in others if seeds.get(arm.name, set()) >= set(arm.seeds)]
    rest = counts[counts.index.isin(whole)]
    never = rest.index[rest["sum"] == 0]
    lowest = known.groupby("method")["lowest_after_best"].min().reindex(never)
    said = (
        f"no collapse within its steps: {len(never)} of {len(rest)} other settings,\n"
        f"always above half of the best reward: {(lowest >= _FELL_BELOW).sum()}"
    )
    if BASELINE not in counts.index:
        return said
    return "GRPO collapses in {} of {} seeds; {}".format(*counts.loc[BASELINE], said)


def _most_telling(known: pd.DataFrame, study: Study, most: int) -> list[Row]:
    known = known.assign(collapsed=known["collapse_step"].notna())
    arms = known.groupby("method").agg(
        {"seed": "size", "collapsed": "mean", "final_reward": "mean"}
    )
    arms["first"] = arms.index == BASELINE
    chosen = arms.sort_values(["first", "seed", "final_reward"], ascending=False)[:most]
    ordered = chosen.sort_values(["collapsed", "final_reward"], ascending=[True, False])
    return [(study.labels[str(arm)], str(arm), {}) for arm in ordered.index]


def _rows(study: Study, known: set[str]) -> list[Row]:
    """Rows of the arms that are `known`; those of a group that are in none of its series come
    before its series.
    """
    rows: list[Row] = []
    for heading in dict.fromkeys(arm.group for arm in study.arms if arm.name in known):
        series = study.drawn(heading)
        alone = known.difference(*(one.arms for one in series))
        rows.append((heading, None, {"fontweight": "bold"}))
        of_group = [arm.name for arm in study.arms if arm.group == heading and arm.name in alone]
        rows += [(study.labels[arm], arm, {}) for arm in of_group]
        for one in series:
            rows.append((one.title, None, {"fontstyle": "italic"}))
            drawn = [(label or study.labels[arm], arm) for arm, label in one.arms.items()]
            rows += [(label, arm, {}) for label, arm in drawn if arm in known]
    return rows


def _draw_row(
    left: Axes, right: Axes, row: int, runs: pd.DataFrame, end: float, colour: str
) -> None:
    # As far apart as marks are high, but within the row.
    offsets = (np.arange(len(runs)) - (len(runs) - 1) / 2) * min(0.18, 0.8 / len(runs))
    steps = runs["collapse_step"].fillna(runs["steps"])
    for offset, step, (_, run) in zip(offsets, steps, runs.iterrows(), strict=True):
        kind = run["kind"] or ("fell" if run["lowest_after_best"] < _FELL_BELOW else "none")
        style = _OUTCOMES[kind][1] | {"color": colour, "alpha": 0.75, "linestyle": ""}
        style |= {"markersize": 5, "markeredgewidth": 1}
        left.plot(min(step, end), row + offset, **style)
        right.plot(run["slope"], row + offset, **style)
    beyond = steps[steps > end]
    if len(beyond):
        plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        text: dict[str, Any] = {"ha": "right", "va": "center", "size": "small", "bbox": plain}
        text |= {"xytext": (-7, 0), "textcoords": "offset points"}
        left.annotate(f"step {span(beyond, 0, '–')} →", (end, row), **text)


def map_figure(cells: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw `map_cells`, updates per rollout against learning rate, one panel per method with its
    title: where it learns and where it breaks.

    Colour is the last reward (mean over a window) minus that of the start policy, on a fixed scale;
    the text says the last reward and where the run collapsed, or that it fell below half of its
    best reward otherwise. A hatched cell was not run.
    """
    if cells.empty:
        raise DataError("the study has no map: name one with series of the figure map")
    rates = sorted(cells["learning_rate"].unique())
    updates = sorted(cells["updates_per_rollout"].unique())
    names = cells["panel"].unique()
    with look.theme():
        figure, grid = look.panels(1, len(names), 3.6, sharey=True)
        for axes, panel in zip(grid, names, strict=True):
            shown = cells[cells["panel"] == panel]
            gain = shown.assign(gain=shown["final_reward"] - shown["start_reward"]).pivot_table(
                index="updates_per_rollout", columns="learning_rate", values="gain", dropna=False
            )
            gain = gain.reindex(index=updates, columns=rates)
            scale: dict[str, Any] = {"cmap": "RdBu", "vmin": -_REWARD_SPAN, "vmax": _REWARD_SPAN}
            image = axes.imshow(gain, origin="lower", aspect="auto", **scale)
            # What was not run is no white cell, which would be a reward that stayed as it was.
            axes.patch.set(facecolor="#EFEFEF", hatch="///", edgecolor="#CFCFCF")
            for (row, update), (column, rate) in product(enumerate(updates), enumerate(rates)):
                here = shown["updates_per_rollout"].eq(update) & shown["learning_rate"].eq(rate)
                cell = shown[here].dropna(subset=["steps"])
                dark = abs(gain.iloc[row, column]) > 0.7 * _REWARD_SPAN
                ink = "white" if dark else "black"
                text: dict[str, Any] = {"ha": "center", "va": "center", "size": "small"}
                axes.text(column, row, _cell(cell), color=ink, **text)
            axes.set_xticks(range(len(rates)), [f"{1e4 * rate:.3g}" for rate in rates])
            axes.set_yticks(range(len(updates)), updates)
            axes.set_xlabel("learning rate (× 10⁻⁴)")
            axes.set_title(titles.get(panel, panel))
        grid[0].set_ylabel("updates per rollout")
        seeds = cells["seed"].unique()
        title = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
        made = cells["steps"].notna().sum()
        left_out = " (hatched: not run)" if made < len(cells) else ""
        title = f"{made} of {len(cells)} runs of the map{left_out}, {title}"
        figure.suptitle(title, weight="bold", size="medium")
        label = "last reward (the number) minus the start policy's"
        figure.colorbar(image, ax=list(grid), label=label, location="bottom", shrink=0.5)
    return figure


def _cell(runs: pd.DataFrame) -> str:
    if runs.empty:
        return ""
    collapsed = runs["collapse_step"].notna()
    # A run that diverges before its first full window has no mean reward.
    lines = [f"{reward:.2f}" for reward in [runs["final_reward"].mean()] if reward == reward]
    if collapsed.any():
        lines += ["collapse", f"at {censored_median(runs['collapse_step'])}"]
        lines += [f"{collapsed.sum()} of {len(runs)}"] * (len(runs) > 1)
    elif (runs["lowest_after_best"] < _FELL_BELOW).any():
        lines.append("fell")
    return "\n".join(lines)


def doses(
    runs: Sequence[StoredRun], series: Sequence[Series], section: str, key: str
) -> pd.DataFrame:
    """One row per run of the series: `profile`, `method` (its arm), `seed`, `series`, the `dose`
    that is its setting `key`, `trained` (the method that its arm changes), and its `last_reward` (a
    mean over the window) and whether it `collapsed` within the `steps` that every run was given. A
    second arm of a dose is a longer run of it, and is looked at over all of its steps.
    """
    usual, rows = usual_steps(runs), []
    for one in series:
        first: dict[float, str] = {}
        found = [run for arm in one.arms for run in runs if run.arm == arm]
        for run in found:
            dose = run.setting(section, key)
            steps = usual if first.setdefault(dose, run.arm) == run.arm else run.planned
            known = {"series": one.name, "dose": dose, "trained": run.method, "steps": steps}
            cut = run.first(steps)
            fate = {"last_reward": cut.last("reward"), "collapsed": cut.collapse is not None}
            rows.append(run.key | known | fate)
    if not rows:
        raise DataError("no run of these series: run the study first")
    return pd.DataFrame(rows)


def dose_figure(data: pd.DataFrame, name: str, paper: Mapping[float, str] | None = None) -> Figure:
    """Last reward against a setting, by its name, on a logarithmic axis with 0 at its left end: of
    `doses` a mark per seed, a cross where it collapsed, the mean with Student's interval from three
    seeds on, and above how many collapsed; faintly what the paper says of a dose. The first series
    has solid lines, the second dashed ones; a longer run of a dose is a diamond.
    """
    levels = sorted({*data["dose"], *(paper or {})})
    above = [dose for dose in levels if dose > 0]
    factor = above[1] / above[0] if len(above) > 1 else 2.0
    places = {dose: dose if dose > 0 else above[0] / factor if above else 1.0 for dose in levels}
    low, high = min(places.values()), max(places.values())
    room = max(high / low, 2) ** 0.08
    colours = {name: look.METHOD_COLOURS.get(name, look.GREY) for name in data["trained"].unique()}
    series = list(data["series"].unique())
    rows = [*(series if len(series) > 1 else ["collapsed"]), *(["paper"] if paper else [])]
    hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1}
    with look.theme():
        figure, [axes] = look.panels(1, 1, 3.4)
        limits = (low / room, high * room)
        axes.set(xscale="log", xlim=limits, xlabel=name, ylabel="last reward")
        for place, (one, line) in enumerate(zip(series, ("-", "--"), strict=False)):
            part = data[data["series"] == one]
            usual = part[part["steps"] == part["steps"].min()]
            mean = usual.groupby("dose")["last_reward"].mean().reindex(levels)  # no line over gaps
            style: dict[str, Any] = {"color": look.GREY, "linestyle": line, "zorder": 0}
            axes.plot([places[dose] for dose in mean.index], mean, linewidth=1.2, **style)
            marks: dict[str, Any] = {"y": "last_reward", "hue": "trained", "palette": colours}
            marks["x"] = data["dose"].map(places) * (1 + 0.1 * place)
            look.draw_runs(axes, usual, s=30, alpha=0.6, **marks)
            look.draw_means(axes, usual, markers="_", markersize=11, markeredgewidth=2.2, **marks)
            if len(longer := part.drop(usual.index)):
                mark = {"markers": "D", "markersize": 4, "errorbar": None} | hollow
                look.draw_means(axes, longer, **mark, **marks)
            for dose, fell in usual.groupby("dose")["collapsed"]:
                row = len(rows) - 1 - place
                _write_above(axes, places[dose], row, f"{fell.sum()}/{len(fell)}")
        for dose, text in (paper or {}).items():
            _write_above(axes, places[dose], 0, text, color=look.FAINT, style="italic")
        for place, row in enumerate(rows[::-1]):
            style = {"transform": axes.transAxes, "ha": "right", "color": look.GREY}
            axes.text(-0.01, 1.04 + 0.085 * place, row, **style)
        axes.set_xticks([places[dose] for dose in levels], [f"{dose:g}" for dose in levels])
        axes.minorticks_off()
        said = f"Within {data['steps'].min()} steps: {_dose_finding(data, name)}"
        figure.suptitle(textwrap.fill(said, 76), weight="bold", size="medium")
        entries = look.SEED_MARKS | {"mean, 95 % interval from 3 seeds on": {"marker": "_"}}
        if len(set(data["steps"])) > 1:
            entries[f"mean after {data['steps'].max()} steps"] = hollow | {"marker": "D", "ls": ""}
        look.legend_below(figure, 2, entries)
    return figure


def _write_above(axes: Axes, x: float, row: int, text: str, **style: Any) -> None:
    place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center"}
    axes.text(x, 1.04 + 0.085 * row, text, **place, **style)


def _dose_finding(data: pd.DataFrame, name: str) -> str:
    """Up to or from which dose no seed collapses, or at which some do, if not at all between."""
    # An arm of two series has the same runs in both; a longer run repeats those of its dose.
    once = data[data["steps"] == data["steps"].min()].drop_duplicates(["method", "seed"])
    counts = once.groupby("dose")["collapsed"].agg(["sum", "size"])
    broken = counts[counts["sum"] > 0]
    if broken.empty:
        return f"none of {counts['size'].sum()} runs collapses at any {name}"
    low, high = broken.index.min(), broken.index.max()
    if len(broken) < len(counts.loc[low:high]):
        named = [f"{fell} of {n} at {dose:g}" for dose, fell, n in broken.itertuples()]
        named[0] = named[0].replace("at", f"runs collapse at {name}")
        rest = counts["size"].sum() - broken["size"].sum()
        return f"{', '.join(named)}; none of {rest} at others"
    said = f"{broken['sum'].sum()} of {counts.loc[low:high, 'size'].sum()} runs collapse at"
    where = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if len(above := counts.loc[counts.index > high, "size"]):
        return f"{said} {name} {where}, none of {above.sum()} from {above.index.min():g}"
    if len(below := counts.loc[counts.index < low, "size"]):
        return f"{said} {name} {where}, none of {below.sum()} up to {below.index.max():g}"
    if len(broken) == len(counts) > 1:
        least, most = (
            f"{counts['sum'].iloc[end]} of {counts['size'].iloc[end]}" for end in (0, -1)
        )
        return f"{least} runs collapse at {name} {low:g}, {most} at {high:g}"
    return f"{said} {name} {where}"
