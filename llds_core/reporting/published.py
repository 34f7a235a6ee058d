"""Published results: small copies of runs that git keeps, and the numbers the README quotes from
them.

    results/published/<profile>/<set>/
        runs.csv                       one row a run
        <method>-seed<k>.csv.gz        its metrics, one row a step
        <method>-seed<k>.json          its manifest
        <figure>.png, <figure>.csv     drawn from them

A number in the README stands between two markers and is generated from here; a test holds both
equal.
"""

import gzip
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.diagnostics.phases import WINDOW, collapse_step, decline_step, detect_phases
from llds_core.errors import DataError
from llds_core.reporting.figures import method_label
from llds_core.reporting.store import Run, load_runs
from llds_core.runs import disk_errors, write_json

PUBLISHED = Path("results/published")
# What a reader of another machine has no use for.
_LOCAL_KEYS = ("command", "start_policy")
_BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish(
    run_root: Path,
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    name: str,
    *,
    figures: Path | None = None,
    published: Path = PUBLISHED,
) -> Path:
    """Copy runs into `results/published/<profile>/<name>`.

    Args:
        run_root: folder of all runs.
        profile: name of a profile.
        methods: methods to publish.
        seeds: seeds of every method.
        name: name of the set, e.g. `quickstart`.
        figures: folder whose PNG and CSV files go along.
        published: root of all published results.

    Returns:
        The folder written.

    Raises:
        DataError: when a run is missing or not finished.
        RunError: when the folder cannot be written.
    """
    runs = load_runs(run_root, profile, methods, seeds)
    for run in runs:
        if run.status not in ("complete", "failed"):
            raise DataError(f"{run.path} is {run.status}: finish it before publishing")
    folder = published / profile / name
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            stem = f"{run.method}-seed{run.seed}"
            table = run.metrics.to_csv(index=False, float_format="%.6g").encode()
            # A fixed time stamp: the same run gives the same bytes.
            (folder / f"{stem}.csv.gz").write_bytes(gzip.compress(table, mtime=0))
            kept = {key: value for key, value in run.manifest.items() if key not in _LOCAL_KEYS}
            write_json(folder / f"{stem}.json", kept)
        pd.DataFrame([run_row(run) for run in runs]).to_csv(folder / "runs.csv", index=False)
        for file in sorted(figures.iterdir()) if figures else []:
            if file.suffix in (".png", ".csv"):
                shutil.copy(file, folder / file.name)
    return folder


def run_row(run: Run) -> dict[str, Any]:
    """One run as a row: the columns of `runs.csv`.

    `heldout_em` is the greedy exact match of the best checkpoint on test questions without injected
    search failures, empty when it was not evaluated.
    """
    metrics = run.metrics.set_index("step")
    reward = metrics["reward"]
    phases = detect_phases(run.metrics)
    collapse = collapse_step(reward)
    windowed = reward.rolling(WINDOW).mean()
    seconds = metrics["rollout_seconds"].sum() + metrics["update_seconds"].sum()
    return {
        "profile": run.profile,
        "method": run.method,
        "seed": run.seed,
        "steps": len(metrics),
        "updates": int(metrics["updates"].iloc[-1]),
        "collapsed": collapse is not None,
        "collapse_step": collapse,
        "loglik_decline_step": next((p.first for p in phases if p.name == "decay"), None),
        "reward_decline_step": decline_step(reward),
        "best_reward": round(float(windowed.max()), 4),
        "final_reward": round(float(windowed.iloc[-1]), 4),
        "heldout_em": _heldout(run),
        "minutes": round(seconds / 60, 2),
    }


def read_published(folder: Path) -> list[Run]:
    """Read the runs of a published set.

    Raises:
        DataError: when the folder holds no published run.
    """
    runs = []
    for manifest in sorted(folder.glob("*.json")):
        table = gzip.decompress(manifest.with_suffix(".csv.gz").read_bytes())
        metrics = pd.read_csv(io.BytesIO(table))
        runs.append(Run(folder, json.loads(manifest.read_text("utf-8")), metrics))
    if not runs:
        raise DataError(f"{folder} holds no published run: publish one first")
    return runs


def update_readme(readme: Path, published: Path = PUBLISHED) -> str:
    """Return the text of `readme` with every results block generated from `published`."""
    text = readme.read_text("utf-8")
    return _BLOCK.sub(lambda block: block[1] + _block(published, block[2]) + block[3], text)


def _block(published: Path, name: str) -> str:
    folder = published / name
    runs = read_published(folder)
    table = pd.read_csv(folder / "runs.csv")
    steps = {f"{run.method}-seed{run.seed}": run for run in runs}
    lines = [
        "| method | seed | steps | start | best reward | final reward | collapse | held-out EM | "
        "minutes | run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        run = steps[f"{row.method}-seed{row.seed}"]
        start = run.metrics["reward"].iloc[0]
        collapse = f"step {row.collapse_step:.0f}" if row.collapsed else "no"
        link = (PUBLISHED / name / f"{row.method}-seed{row.seed}.json").as_posix()
        heldout = "not run" if pd.isna(row.heldout_em) else f"{row.heldout_em:.3f}"
        lines.append(
            f"| {method_label(row.method)} | {row.seed} | {row.steps} | {start:.2f} "
            f"| {row.best_reward:.2f} | {row.final_reward:.2f} | {collapse} | {heldout} "
            f"| {row.minutes:.1f} | "
            f"[`{run.fingerprint}`]({link}) |"
        )
    for method, group in table.groupby("method", sort=False):
        lines.append(
            f"\n{method_label(method)} collapsed {int(group.collapsed.sum())} of {len(group)} seeds"
            f" within {group.steps.max()} steps."
        )
    return "\n".join(lines) + "\n"


def _heldout(run: Run) -> float | None:
    file = run.path / "evaluation-best-test.json"
    if not file.exists():
        return None
    return round(json.loads(file.read_text("utf-8"))["results"]["greedy"]["all"]["em"], 4)
