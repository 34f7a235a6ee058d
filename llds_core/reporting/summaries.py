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
from llds_core.reporting.figures import method_label, metric_label
from llds_core.reporting.store import Run

_COLLAPSE_METRICS = ("reward", "loglik_correct", "loglik_incorrect", "grad_norm")
_CHANGES = "From the first {window} steps to the last: "


def runs_table(runs: Sequence[Run], *, window: int = WINDOW) -> pd.DataFrame:
    """One row a run: status, steps, reward at its best and at the end, decline and collapse."""
    return pd.DataFrame([_row(run, window) for run in runs])


def collapse_summary(runs: Sequence[Run], *, window: int = WINDOW) -> str:
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


def behaviour_summary(runs: Sequence[Run], panels: Sequence[str], *, window: int = WINDOW) -> str:
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


def phases_summary(run: Run, *, window: int = WINDOW) -> str:
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


def _row(run: Run, window: int) -> dict[str, object]:
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


def _start(run: Run, name: PhaseName, window: int) -> int | None:
    """First step of a phase of `run`, or None when it has no such phase."""
    phases = detect_phases(run.metrics, window=window)
    return next((phase.first for phase in phases if phase.name == name), None)


def _shown(step: int | None) -> str:
    return "–" if step is None else str(step)


def _counted(steps: Mapping[int, int | None], total: int) -> str:
    """`k of n runs`, with the step of each seed that has one."""
    found = [f"seed {seed} from step {step}" for seed, step in steps.items() if step is not None]
    return f"{len(found)} of {total} runs" + (f" ({', '.join(found)})" if found else "")


def _changes(runs: Sequence[Run], metrics: Sequence[str], window: int) -> str:
    return "; ".join(_change(runs, metric, window) for metric in metrics)


def _change(runs: Sequence[Run], metric: str, window: int) -> str:
    """How the runs' mean of `metric` moved from the first window with values to the last."""
    label = metric_label(metric)
    starts, ends = [], []
    for run in runs:
        means = windowed_mean(_series(run, metric).to_numpy(float), window)
        means = means[~np.isnan(means)]
        if len(means):
            starts.append(means[0])
            ends.append(means[-1])
    if not starts:
        return f"{label} never measured"
    unit = METRICS[metric].unit
    unit = "" if unit in label else f" {unit}"
    return f"{label} {np.mean(starts):.3g} → {np.mean(ends):.3g}{unit}"


def _too_short(method: str, group: Sequence[Run], window: int) -> str:
    most = max(len(run.metrics) for run in group)
    return (
        f"**{method_label(method)}**: {most} steps, too few to judge "
        f"(phases need {3 * window}): this run shows that the chain works, nothing more."
    )


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    return groups


def _series(run: Run, metric: str) -> pd.Series:
    return run.metrics.set_index("step")[metric]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
