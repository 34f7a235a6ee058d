"""The view of a run that `llds watch` and notebooks show."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np

from llds_core.monitor.diagnosis import judge
from llds_core.monitor.live import look, sparkline
from llds_core.monitor.training_log import read_log

ROOT = Path(__file__).parents[2]
LOG = ROOT / "results/published/collapse-runs/example-verl.log"


def test_a_sparkline_shows_height_gaps_and_long_series() -> None:
    nan = np.nan
    assert sparkline(np.array([0, nan, 7, np.inf, 3.5])) == "▁ █ ▅"
    assert sparkline(np.array([2.0, 2.0])) == "▁▁"
    assert len(sparkline(np.linspace(0, 1, 1000))) == 48


def test_a_view_has_curves_alarms_and_the_newest_trajectory(smoke_runs: Path) -> None:
    path = smoke_runs / "smoke/grpo/seed0"
    log = read_log(path)
    view = look(log, judge(log), path)
    assert all(name in view.plain for name in ("reward", "entropy", "grad_norm", "(step 3)"))
    colours = {str(span.style) for span in view.spans}
    assert any(colour.startswith("rgb(") for colour in colours)
    assert "<pre" in view._repr_mimebundle_(["text/html"], [])["text/html"]
    log = read_log(LOG)
    assert "CRITICAL reward_drop, step" in look(log, judge(log), LOG).plain


def test_a_terminal_gets_the_view_in_place_and_ctrl_c_ends_it() -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "llds_core", "watch", str(LOG), "--every", "0.1"]
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, cwd=ROOT) as process:
        os.close(theirs)
        shown = b""
        while b"reward_drop" not in shown:
            shown += os.read(ours, 4096)
        process.terminate()
    os.close(ours)
    assert process.returncode == 130 and "▁".encode() in shown
