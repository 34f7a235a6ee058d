"""A run as it stands, in a dozen lines: for a terminal that follows it, and for a notebook."""

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from llds_core.monitor.diagnosis import Diagnosis
from llds_core.monitor.training_log import TrainingLog
from llds_core.runs import read_trajectories
from llds_core.worlds.text import visible

_SHOWN = ("reward", "loglik_correct", "entropy", "clip_fraction", "kl", "grad_norm")
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48
_SEVERITY = {"critical": "bold red", "warning": "yellow", "info": "dim"}


def look(log: TrainingLog, found: Diagnosis, path: Path) -> Text:
    """Curves, phase, alarms, and of a run of this package its newest stored trajectory: before each
    action its mean log-probability in nats per token, the redder the less likely. A notebook shows
    the result in colour.
    """
    view = Text(f"{found.source}: step {found.last_step}, {found.phase}\n")
    for name in _SHOWN:
        values = log.column(name)
        known = values[np.isfinite(values)]
        if len(known):
            view.append(f"  {name:<15}{sparkline(values):<{_WIDTH}} {known[-1]:.4g}\n")
    for alarm in found.alarms:
        view.append(f"  {alarm.title}\n", "dim" if alarm.passed else _SEVERITY[alarm.severity])
    if path.is_dir() and (rows := read_trajectories(path)):
        view.append_text(_trajectory(rows[-1]))
    return view


def sparkline(values: np.ndarray) -> str:
    """Blocks between the lowest and the highest finite value, a space where nothing was measured;
    means of neighbours where a line is too short for all.
    """
    parts = np.array_split(values, min(_WIDTH, len(values)))
    means = [part[np.isfinite(part)] for part in parts]
    levels = np.array([part.mean() if len(part) else np.nan for part in means])
    low, span = np.nanmin(levels), np.ptp(levels[np.isfinite(levels)])
    places = (levels - low) / (span or 1.0) * (len(_BLOCKS) - 1)
    return "".join(" " if np.isnan(place) else _BLOCKS[round(place)] for place in places)


def _trajectory(row: dict[str, Any]) -> Text:
    outcome = "correct" if row["correct"] else "not correct"
    view = Text(f"  {visible(row['question'])} (step {row['step']})\n", style="bold")
    for action in row["actions"]:
        part = slice(action["start"], action["end"])
        mean = float(np.mean(row["sampler_logprobs"][part] or [0.0]))
        red = round(200 * (1 - exp(min(mean, 0.0))))
        text = visible(action["text"]).strip().replace("\n", "\n        ")
        view.append(f"  {mean:5.2f} {text}\n", f"rgb({red},{(200 - red) * 3 // 4},60)")
    return view.append(f"  {outcome}, reward {row['reward']:g}\n")
