"""Times of runs in the README are those of their manifests."""

import json
from datetime import datetime

import pandas as pd
from published_study import NUMBERS, PUBLISHED, ROOT, STEPS, run_alone, span

from llds_core.diagnostics.phases import collapse_step


def test_times_of_runs_alone_are_those_of_their_manifests() -> None:
    minutes = {}
    for path in (PUBLISHED / "alone").glob("*.json"):
        manifest = json.loads(path.read_text("utf-8"))
        began, ended = (datetime.fromisoformat(manifest[key]) for key in ("started", "finished"))
        minutes[path.stem] = f"{(ended - began).total_seconds() / 60:.1f}"
        assert manifest["last_step"] == STEPS
    one, two = (run_alone(threads, 147) for threads in (1, 2))
    proved = next(step for step in one.index if collapse_step(one["reward"].loc[:step]) is not None)
    until = one.loc[:proved, ["rollout_seconds", "update_seconds"]].sum().sum() / 60
    same = int((one["loglik_correct"] == two["loglik_correct"]).cummin().sum())
    collapses = [collapse_step(run["reward"]) for run in (one, two)]
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    for phrase in (
        f"took {minutes['grpo-threads-2-seed147']} and {minutes['grpo-threads-2-seed148']} minutes "
        "with `training.threads=2`",
        f"took {minutes['grpo-threads-1-seed147']}, {until:.1f} of them until its collapse",
        f"equal for {NUMBERS[same]} steps, and collapsed at step {collapses[0]} on one thread, at "
        f"step {collapses[1]} on two",
    ):
        assert phrase in text


def test_times_of_the_reporting_runs_are_those_of_the_table() -> None:
    runs = pd.read_csv(PUBLISHED / "runs.csv")
    minutes = span(runs.loc[runs["method"] == "grpo", "minutes"], 1, " to ")
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"five reporting runs took {minutes} minutes" in text
