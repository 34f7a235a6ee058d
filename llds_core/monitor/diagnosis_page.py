"""A diagnosis as one HTML page that needs nothing beside it, curves included."""

import io
from collections.abc import Iterable
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llds_core.diagnostics.metrics import METRICS
from llds_core.monitor.detectors import DETECTORS
from llds_core.monitor.diagnosis import Diagnosis
from llds_core.monitor.training_log import TrainingLog

_DRAWN = {column for each in DETECTORS.values() for column in each.columns} | {"grad_norm"}
_COLOURS = {"critical": "#B3261E", "warning": "#C77700", "info": "#5F6B7A"}
_CURVE = "#1F5F8B"
_MOST_POINTS = 2000
_STYLE = """
.llds-monitor { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }
.llds-monitor h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
.llds-monitor h2 { font-size: 1.05rem; margin-top: 1.6rem; }
.llds-monitor .alarm { border-left: 4px solid; padding: .2rem .8rem; margin: .6rem 0; }
.llds-monitor .phase { padding: .1rem .7rem; border-radius: 1rem; background: #eef1f4; }
.llds-monitor svg { width: 100%; height: auto; }
.llds-monitor .small { color: #57606a; font-size: .9rem; }
"""


def page(diagnosis: Diagnosis, log: TrainingLog) -> str:
    """The page as HTML; text of the log is escaped."""
    title = f"Diagnosis of {escape(diagnosis.source)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"</head><body>{fragment(diagnosis, log)}</body></html>\n"
    )


def fragment(diagnosis: Diagnosis, log: TrainingLog) -> str:
    """The part that shows in a notebook as well."""
    back = diagnosis.go_back_to
    alarms = [
        f'<div class="alarm" style="border-color:{_COLOURS[alarm.severity]}">'
        f"<b>{escape(alarm.title)}</b><br>"
        f"{escape(alarm.evidence)}<details><summary>{escape(alarm.measured)}</summary><ul>"
        f"{''.join(f'<li>{escape(rate)}</li>' for rate in alarm.rates)}</ul></details></div>"
        for alarm in diagnosis.alarms
    ]
    parts = [
        f"<style>{_STYLE}</style>",
        f'<div class="llds-monitor"><h1>{escape(diagnosis.source)}</h1>',
        f'<p>Phase <span class="phase">{escape(diagnosis.phase)}</span>, '
        f"{diagnosis.rows} rows of {escape(diagnosis.framework)}, to step {diagnosis.last_step}.",
        "" if back is None else f" Go back to step <b>{back}</b>.",
        "</p>",
        _section("A possible cause", [diagnosis.cause] if diagnosis.cause else []),
        _section("What to do", diagnosis.advice),
        "<h2>Alarms</h2>",
        *(alarms or ["<p>None.</p>"]),
        f"<h2>Curves</h2>{curves(diagnosis, log)}",
        _section("What cannot be said", diagnosis.missing),
        _section("Notes", diagnosis.notes),
        '<p class="small">Thresholds and rates come from published runs of a small model: see '
        "docs/monitor.md before relying on them.</p></div>",
    ]
    return "\n".join(parts)


def _section(title: str, entries: Iterable[str]) -> str:
    found = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<h2>{title}</h2><ul>{found}</ul>" if found else ""


def curves(diagnosis: Diagnosis, log: TrainingLog) -> str:
    """Metrics against the step as SVG, with the alarms that each of them raised."""
    shown = [name for name in METRICS if name in _DRAWN and name in log.table]
    if not shown:
        return "<p>No metric to draw.</p>"
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(9, 2.3 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).ravel())
    steps = log.table["step"].tolist()
    thinned = slice(None, None, -(-len(steps) // _MOST_POINTS))
    for name, axes in zip(shown, grid, strict=False):
        points = log.table[["step", name]].dropna()[thinned]
        marker = "o" if len(points) <= 60 else ""
        axes.plot(points["step"], points[name], color=_CURVE, lw=1.5, marker=marker, ms=3)
        raised = [alarm for alarm in diagnosis.alarms if name in DETECTORS[alarm.name].columns]
        for alarm in raised:
            axes.axvline(alarm.step, color=_COLOURS[alarm.severity], ls="--", lw=1.2)
        said = [f"{alarm.name.replace('_', ' ')} {alarm.step}" for alarm in raised]
        label, unit = name.replace("_", " "), METRICS[name].unit
        axes.set_title(label if unit in label else f"{label} ({unit})", loc="left", fontsize=10)
        colour = _COLOURS[raised[0].severity if raised else "info"]
        axes.set_title(", ".join(said), loc="right", fontsize=9, color=colour)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axes.margins(y=0.15)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "llds", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
