"""What runs show, in words and a table; every sentence is computed from the runs.

For notebooks: the text next to a figure says what these runs did, whatever that is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from llds_core.diagnostics.metrics import METRICS
from llds_core.diagnostics.phases import (
    WINDOW,
    PhaseName,
    detect_phases,
    windowed_mean,
)
from llds_core.markdown import bounded
from llds_core.reporting.figures import BASELINE, method_label, metric_label
from llds_core.reporting.mechanism_figures import OPTIMIZER
from llds_core.reporting.run_tables import gradient_sizes
from llds_core.reporting.run_view import Measured, final_gain
from llds_core.reporting.stats import student_interval
from llds_core.reporting.store import StoredRun

_COLLAPSE_METRICS = ("reward", "loglik_correct", "loglik_incorrect", "grad_norm")
_CHANGES = "From the first {window} steps to the last: "
# Rows of one measurement: every question is measured with each optimizer.
_VIEWS = {"position": "before an action", "total": "in a whole response"}


def runs_table(runs: Sequence[StoredRun], *, window: int = WINDOW) -> pd.DataFrame:
    """One row a run: status, steps, reward at its best and at the end, decline and collapse."""
    return pd.DataFrame([_row(run, window) for run in runs])


def collapse_summary(runs: Sequence[StoredRun], *, window: int = WINDOW) -> str:
    """Markdown: per method, how many runs collapse and how reward and likelihood went."""
    lines = []
    for method, group in _by_method(runs).items():
        long = [run for run in group if len(run.metrics) >= 3 * window]
        if not long:
            lines.append(_too_short(method, group, window))
            continue
        steps = {run.seed: _start(run, "collapse", window) for run in long}
        text = f"**{method_label(method)}** collapses in {_counted(steps, len(long))}"
        declines = {run.seed: _start(run, "decay", window) for run in long}
        text += "; the likelihood of correct responses declines for good in "
        text += _counted(declines, len(long)) + ". " + _CHANGES.format(window=window)
        text += _changes(long, _COLLAPSE_METRICS, window) + "."
        lines.append(text)
    return _bullets(lines)


def gradient_summary(runs: Sequence[StoredRun], *, window: int = WINDOW) -> str:
    """Markdown: per method, the span of the gradient norm, and how it first compares to GRPO's."""
    groups = _by_method(runs)
    sizes = gradient_sizes(runs, list(groups)).set_index("arm")["over GRPO's"]
    lines = []
    for method, group in groups.items():
        means = np.concatenate([_means(run, "grad_norm", window) for run in group])
        if not len(means):
            continue
        label = method_label(method)
        text = f"**{label}**: means of the gradient norm over {window} steps lie between "
        text += f"{means.min():.2g} and {means.max():.2g}"
        if method != BASELINE and np.isfinite(sizes[label]):
            text += f"; over the first steps it is {sizes[label]:.2g} times GRPO's of the same "
            text += "seeds"
        lines.append(f"{text}.")
    return _bullets(lines)


def behaviour_summary(
    runs: Sequence[StoredRun], panels: Sequence[str], *, window: int = WINDOW
) -> str:
    """Markdown: per method, how each of `panels` moved from the first steps to the last."""
    lines = []
    for method, group in _by_method(runs).items():
        long = [run for run in group if len(run.metrics) >= 3 * window]
        if long:
            changes = _CHANGES.format(window=window) + _changes(long, panels, window)
            lines.append(f"**{method_label(method)}**. {changes}.")
        else:
            lines.append(_too_short(method, group, window))
    return _bullets(lines)


def phases_summary(run: StoredRun, *, window: int = WINDOW) -> str:
    """Markdown: the phases of one run, or that it is too short to have any."""
    found = detect_phases(run.metrics, window=window)
    title = f"{method_label(run.arm)}, seed {run.seed}"
    if not found:
        return (
            f"*{title}*: {len(run.metrics)} steps, too few to tell phases (at least {3 * window})."
        )
    if len(found) == 1:
        steps = f"steps {found[0].first}–{found[0].last}"
        return f"*{title}*: no decline of likelihood and no collapse of reward in {steps}."
    spans = ", ".join(f"{phase.name} {phase.first}–{phase.last}" for phase in found)
    return f"*{title}*: {spans} (steps, judged on means over {window} steps)."


def measured_summary(changes: pd.DataFrame) -> str:
    """Markdown: how many questions, responses and checkpoints a table of changes is of."""
    asked: dict[tuple[int, ...], list[str]] = {}
    for seed, rows in changes.groupby("seed"):
        responses = (rows["correct"] + rows["incorrect"]).unique()
        asked.setdefault((rows["question_id"].nunique(), *sorted(responses)), []).append(str(seed))
    lines = [
        f"Seeds {', '.join(seeds)}: {questions} questions, "
        f"{' or '.join(map(str, responses))} responses to each."
        for (questions, *responses), seeds in asked.items()
    ]
    for method, rows in changes.groupby("method", sort=False):
        checkpoints = len(rows[["seed", "step"]].drop_duplicates())
        lines.append(
            f"**{method_label(str(method))}**: checkpoints {checkpoints}, seeds "
            f"{rows['seed'].nunique()}, steps {rows['step'].min()}–{rows['step'].max()}."
        )
    return _bullets(lines)


def first_action_summary(
    runs: Sequence[StoredRun], changes: pd.DataFrame, *, window: int = WINDOW
) -> str:
    """Markdown: per method, the likelihood of first and later actions up to a collapse, and how
    many incorrect responses began with a search that found what a correct one's found.

    Args:
        runs: their metrics up to the collapse are looked at.
        changes: table of `measure`, whose counts of matching first searches are pooled.
        window: steps of the means.
    """
    lines = []
    once = changes[changes["optimizer"] == OPTIMIZER]
    for method, group in _by_method(runs).items():
        parts = []
        for outcome in ("correct", "incorrect"):
            first, later = (
                _moved(group, f"loglik_{outcome}_{which}", window, to_collapse=True)
                for which in ("first", "later")
            )
            parts.append(f"{outcome} responses, first actions {first}, later ones {later}")
        text = f"**{method_label(method)}**. {_CHANGES.format(window=window)[:-2]} before a "
        text += f"collapse: {'; '.join(parts)} nats per token."
        lines.append(text + _matches(once[once["method"] == method]))
    return _bullets(lines)


def _matches(rows: pd.DataFrame) -> str:
    """Matching first searches at the first and the last checkpoints of all seeds, if any counts."""
    steps = rows.groupby("seed")["step"]
    columns = ["first_search_reached_equal", "first_search_reached_incorrect"]
    counted = []
    for which, step in (("first", steps.transform("min")), ("last", steps.transform("max"))):
        equal, incorrect = rows.loc[rows["step"] == step, columns].sum()
        if incorrect:
            share = f"{equal} of {incorrect} ({equal / incorrect:.0%})"
            counted.append(f"{share} at the {which} checkpoints")
    if not counted:
        return ""
    return f" Incorrect responses whose first search matches: {', '.join(counted)}."


def rounds_summary(rounds: pd.DataFrame) -> str:
    """Markdown: per method, the negative log-likelihood in nats per token with the fewest and with
    the most searches (their number), at the first and the last checkpoint of every seed; means over
    seeds.
    """
    lines = []
    for method, rows in rounds.groupby("method", sort=False):
        steps = rows.groupby("seed")["step"]
        first, last = steps.transform("min"), steps.transform("max")
        ends = {" at the first checkpoints": first, " at the last": last}
        if (first == last).all():
            ends = {"": first}
        parts = []
        for view, meaning in _VIEWS.items():
            at_ends = []
            for end, step in ends.items():
                chosen = rows[(rows["step"] == step) & (rows["view"] == view)]
                nll = chosen.groupby("rounds")["nll"].mean()
                if len(nll) > 1:
                    fewest, most = (f"{nll.iloc[at]:.2g} ({nll.index[at]})" for at in (0, -1))
                    at_ends.append(f"{fewest} → {most}{end}")
            if at_ends:
                parts.append(f" By searches {meaning}: {', '.join(at_ends)}.")
        if parts:
            name = "SmolLM2-135M" if method == "smollm2" else method_label(str(method))
            lines.append(f"**{name}**.{''.join(parts)}")
    return _bullets(lines)


def factors_summary(theorem: pd.DataFrame) -> str:
    """Markdown: per method and optimizer, the mean rank correlation of every factor of Theorem 4.2
    with the change of likelihood, over the means of seeds, each beside the sign that is expected;
    then that of the driver given the two controls.
    """
    signs = {1: "+", -1: "-", 0: "control"}
    lines = []
    measured = theorem.dropna(subset=["spearman"])
    for (method, optimizer), rows in measured.groupby(["method", "optimizer"], sort=False):
        by_seed = rows.groupby(["factor", "expected", "seed"], sort=False)["spearman"].mean()
        means = by_seed.groupby(level=["factor", "expected"], sort=False).mean()
        told = [
            f"{factor.replace('_', ' ')} {mean:+.2f} ({signs[expected]})"
            for (factor, expected), mean in means.items()
        ]
        given = rows[rows["factor"] == "driver"].groupby("seed")["partial"].mean().mean()
        lines.append(
            f"**{method_label(str(method))}**, {optimizer}: {', '.join(told)}. Given the controls, "
            f"the driver score correlates by {given:+.2f}."
        )
    return _bullets(lines)


def dilution_summary(runs: Sequence[StoredRun]) -> str:
    """Markdown: LLDS beside GRPO at a seventh of the learning rate, on the seeds that both have, up
    to the last step that both have.
    """
    arms = {
        arm: {run.seed: Measured(run) for run in runs if run.arm == arm}
        for arm in ("llds-action", "grpo-lr-seventh")
    }
    seeds = sorted(set.intersection(*(set(found) for found in arms.values())))
    if not seeds:
        return _bullets(["No seed has a run of both: the question is open."])
    ends = {seed: min(found[seed].length for found in arms.values()) for seed in seeds}
    lines = []
    for arm, found in arms.items():
        best, last, entropy = (
            np.mean([value(found[seed], ends[seed]) for seed in seeds])
            for value in (
                lambda run, end: run.best("reward", end),
                lambda run, end: run.tail("reward", end),
                lambda run, end: run.tail("entropy", end) / run.head("entropy"),
            )
        )
        lines.append(
            f"**{method_label(arm)}**, means of seeds {', '.join(map(str, seeds))}: best reward "
            f"{best:.2f}, last reward {last:.2f}, last entropy {entropy:.2g} times that of the "
            "first steps."
        )
    slow = arms["grpo-lr-seventh"]
    gain = student_interval([final_gain(arms["llds-action"][s], slow[s]) for s in seeds])
    lines.append(
        "Last reward of LLDS minus that of GRPO at a seventh of the learning rate: "
        f"{bounded(gain.estimate, gain.low, gain.high, '+.3f')}."
    )
    return _bullets(lines)


def _row(run: StoredRun, window: int) -> dict[str, object]:
    reward = _series(run, "reward")
    means = windowed_mean(reward.to_numpy(float), min(window, max(len(reward), 1)))
    return {
        "method": method_label(run.arm),
        "seed": run.seed,
        "status": run.status,
        "steps": len(reward),
        "best reward": np.nanmax(means) if len(means) else np.nan,
        "last reward": means[-1] if len(means) else np.nan,
        "decline": _shown(_start(run, "decay", window)),
        "collapse": _shown(_start(run, "collapse", window)),
        "run": run.fingerprint,
    }


def _start(run: StoredRun, name: PhaseName, window: int) -> int | None:
    """First step of a phase of `run`, or None when it has no such phase."""
    phases = detect_phases(run.metrics, window=window)
    return next((phase.first for phase in phases if phase.name == name), None)


def _shown(step: int | None) -> str:
    return "–" if step is None else str(step)


def _counted(steps: Mapping[int, int | None], total: int) -> str:
    """`k of n runs`, with the step of each seed that has one."""
    found = [f"seed {seed} from step {step}" for seed, step in steps.items() if step is not None]
    return f"{len(found)} of {total} runs" + (f" ({', '.join(found)})" if found else "")


def _changes(runs: Sequence[StoredRun], metrics: Sequence[str], window: int) -> str:
    return "; ".join(_change(runs, metric, window) for metric in metrics)


def _change(runs: Sequence[StoredRun], metric: str, window: int) -> str:
    """`_moved` with name and unit of the metric."""
    label, unit = metric_label(metric), METRICS[metric].unit
    moved = _moved(runs, metric, window)
    return f"{label} {moved}" + (f" {unit}" if "→" in moved and unit not in label else "")


def _moved(
    runs: Sequence[StoredRun], metric: str, window: int, *, to_collapse: bool = False
) -> str:
    """How the runs' mean of `metric` moved from the first window with values to the last one, of
    the whole run or before its collapse.
    """
    if to_collapse:
        starts = [_start(run, "collapse", window) for run in runs]
        runs = [run.first(at and at - 1) for run, at in zip(runs, starts, strict=True)]
    found = [means for run in runs if len(means := _means(run, metric, window))]
    if not found:
        return "never measured"
    first, last = (np.mean([means[end] for means in found]) for end in (0, -1))
    return f"{first:.3g} → {last:.3g}"


def _means(run: StoredRun, metric: str, window: int) -> np.ndarray:
    """Means of a metric over `window` steps, without those that have no value."""
    means = windowed_mean(_series(run, metric).to_numpy(float), window)
    return means[~np.isnan(means)]


def _too_short(method: str, group: Sequence[StoredRun], window: int) -> str:
    most = max(len(run.metrics) for run in group)
    return (
        f"**{method_label(method)}**: {most} steps, too few to judge "
        f"(phases need {3 * window}): this run shows that the chain works, nothing more."
    )


def _by_method(runs: Sequence[StoredRun]) -> dict[str, list[StoredRun]]:
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    return groups


def _series(run: StoredRun, metric: str) -> pd.Series:
    return run.metrics.set_index("step")[metric]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
