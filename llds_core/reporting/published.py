"""Published results: small copies of runs that git keeps, and the numbers the README quotes from
them.

    results/published/<profile>/
        runs.csv                       one row a run
        effects.csv                    one row an arm: what it changes against GRPO
        runs/<arm>-seed<k>.csv.gz      its metrics, one row a step
        runs/<arm>-seed<k>.json        its manifest, with the held-out evaluation

An arm is a setting of a study: a method, or a method with overrides. A number in the README stands
between two markers and is generated from here; a test holds both equal.
"""

import gzip
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llds_core.diagnostics.phases import detect_phases
from llds_core.errors import DataError
from llds_core.files import disk_errors, replacing, write_json, write_table
from llds_core.markdown import markdown_table
from llds_core.reporting.claim_evidence import Measured
from llds_core.reporting.claims import claims_markdown, evaluate_claims
from llds_core.reporting.stats import censored_median
from llds_core.reporting.store import PUBLISHED, Run, load_runs, read_published
from llds_core.reporting.study_tables import effects
from llds_core.studies import load_study, studies

RUN_COLUMNS = (
    "profile",
    "method",
    "seed",
    "steps",
    "updates",
    "collapsed",
    "collapse_step",
    "loglik_decline_step",
    "reward_decline_step",
    "best_reward",
    "final_reward",
    "heldout_em",
    "minutes",
    "status",
    "first_reward",
    "last_heldout_em",
    "config_hash",
)
# What a reader of another machine has no use for.
_LOCAL_KEYS = ("command", "start_policy")
_BLOCK = re.compile(r"(<!-- results: (\S+)/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish_run(run: Run, arm: str | None = None, published: Path = PUBLISHED) -> Path:
    """Copy one run, as the seed of an arm.

    Args:
        run: a finished run.
        arm: name of the arm; None for the method's name.
        published: root of all published results.

    Returns:
        The manifest written.

    Raises:
        DataError: when the run is not finished, or failed without having diverged.
        RunError: when the folder cannot be written.
    """
    if not run.is_result:
        raise DataError(f"{run.path} is {run.status}: finish it before publishing")
    folder = published / run.profile / "runs"
    stem = f"{arm or run.method}-seed{run.seed}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    table = run.metrics.to_csv(index=False, float_format="%.6g").encode()
    # A fixed time stamp: the same run gives the same bytes.
    with replacing(folder / f"{stem}.csv.gz") as file:
        file.write(gzip.compress(table, mtime=0))
    kept = {key: value for key, value in run.manifest.items() if key not in _LOCAL_KEYS}
    kept |= {"arm": arm or run.method, "evaluation": run.evaluation}
    write_json(folder / f"{stem}.json", kept)
    return folder / f"{stem}.json"


def publish(
    run_root: Path,
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    published: Path = PUBLISHED,
) -> Path:
    """Copy runs of plain methods and write `runs.csv` anew.

    Returns:
        The path of `runs.csv`.

    Raises:
        DataError: when a run is missing or not finished.
        RunError: when the folder cannot be written.
    """
    for run in load_runs(run_root, profile, methods, seeds):
        publish_run(run, published=published)
    return write_runs_table(published, profile)


def write_runs_table(published: Path, profile: str) -> Path:
    """Write `runs.csv` from all published runs of a profile; return its path."""
    path = published / profile / "runs.csv"
    rows = [run_row(run) for run in read_published(profile, published)]
    write_table(path, pd.DataFrame(rows, columns=RUN_COLUMNS), float_format=None)
    return path


def run_row(run: Run) -> dict[str, Any]:
    """One run as a row of `runs.csv`; `method` is the name of its arm.

    `heldout_em` is the greedy exact match of the best checkpoint on test questions without injected
    search failures, `last_heldout_em` that of the last; empty when not evaluated. Rewards are means
    over the run's window.
    """
    metrics = run.metrics.set_index("step")
    measured = Measured(run, run.window)
    phases = detect_phases(run.metrics, window=run.window)
    windowed = metrics["reward"].rolling(run.window).mean()
    seconds = metrics["rollout_seconds"].sum() + metrics["update_seconds"].sum()
    return {
        "profile": run.profile,
        "method": run.arm,
        "seed": run.seed,
        "steps": len(metrics),
        "updates": int(metrics["updates"].iloc[-1]),
        "collapsed": measured.collapse is not None,
        "collapse_step": measured.step_at(measured.collapse),
        "loglik_decline_step": next((p.first for p in phases if p.name == "decay"), None),
        "reward_decline_step": measured.step_at(measured.reward_decline()),
        "best_reward": round(float(windowed.max()), 4),
        "final_reward": round(float(windowed.iloc[-1]), 4),
        "heldout_em": run.heldout(),
        "minutes": round(seconds / 60, 2),
        "status": run.status,
        "first_reward": round(float(windowed.dropna().iloc[0]), 4)
        if windowed.notna().any()
        else None,
        "last_heldout_em": run.heldout("last"),
        "config_hash": run.manifest["config_hash"],
    }


def write_tables(published: Path, profile: str) -> None:
    """Write `runs.csv`, `claims.csv` and, for a profile with a study, `effects.csv` anew."""
    write_runs_table(published, profile)
    write_claims(published, profile)
    if profile in studies():
        write_effects(published, profile)


def write_claims(published: Path, profile: str) -> Path:
    """Write `claims.csv` from the published runs and mechanism tables; return its path."""
    runs = read_published(profile, published)
    window = runs[0].window
    if any(run.window != window for run in runs):
        raise DataError(f"published runs of {profile} differ in diagnostics.window: publish again")
    scores = {
        (run.arm, run.seed, name): score
        for run in runs
        for name in run.evaluation
        if (score := run.heldout(name)) is not None
    }
    mechanism = published_mechanism(published, profile)
    table = evaluate_claims(runs, mechanism, window=window, heldout=scores)
    path = published / profile / "claims.csv"
    write_table(path, table, float_format="%.4g")
    return path


def published_mechanism(published: Path, profile: str) -> dict[str, pd.DataFrame]:
    """Mechanism tables of all published seeds; empty when there are none."""
    folders = sorted((published / profile).glob("mechanism-seed*"))
    tables: dict[str, list[pd.DataFrame]] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.csv")):
            tables.setdefault(file.stem, []).append(pd.read_csv(file))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def publish_mechanism(run_root: Path, profile: str, seed: int, published: Path = PUBLISHED) -> Path:
    """Copy the mechanism tables of a seed; return the folder.

    Raises:
        DataError: when they were not measured.
    """
    name = f"mechanism-seed{seed}"
    source, target = run_root / profile / name, published / profile / name
    if not (source / "manifest.json").exists():
        raise DataError(f"no tables in {source}: run python -m llds_core mechanism {profile}")
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.iterdir()):
            if file.suffix in (".csv", ".json"):
                shutil.copy(file, target / file.name)
    return target


def update_readme(readme: Path, published: Path = PUBLISHED) -> str:
    """Return the text of `readme` with every results block generated from `published`."""
    text = readme.read_text("utf-8")
    return _BLOCK.sub(
        lambda block: block[1] + _BLOCKS[block[3]](published, block[2]) + block[4], text
    )


def arms_table(table: pd.DataFrame) -> str:
    """Markdown of `runs.csv`, one row an arm: how many seeds collapsed, rewards, held-out score."""
    columns = (
        "arm",
        "seeds",
        "steps",
        "collapsed",
        "collapse step, median",
        "start",
        "best reward",
        "final reward",
        "held-out EM, best → last checkpoint",
    )
    rows = []
    for arm, group in table.groupby("method", sort=False):
        steps = dict.fromkeys([group.steps.min(), group.steps.max()])
        rewards = group[["first_reward", "best_reward", "final_reward"]].mean()
        scores = group[["heldout_em", "last_heldout_em"]].astype(float).mean()
        rows.append(
            (
                arm,
                len(group),
                "–".join(map(str, steps)),
                f"{int(group.collapsed.sum())} of {len(group)}",
                censored_median(group.collapse_step),
                *(f"{reward:.2f}" for reward in rewards),
                " → ".join("not run" if np.isnan(em) else f"{em:.3f}" for em in scores),
            )
        )
    return markdown_table(columns, rows)


def _runs_block(published: Path, profile: str) -> str:
    return arms_table(pd.read_csv(published / profile / "runs.csv"))


def write_effects(published: Path, profile: str) -> Path:
    """Write `effects.csv`, what each arm of the profile's study changes; return its path."""
    path = published / profile / "effects.csv"
    write_table(path, effects(read_published(profile, published), load_study(profile)), "%.4g")
    return path


def effects_markdown(table: pd.DataFrame) -> str:
    """Markdown of `effects`, one row an arm."""
    columns = (
        "arm",
        "what it is",
        "collapsed, GRPO on the same seeds",
        "steps survived [95 %]",
        "best reward",
        "held-out EM, best / last",
    )
    rows = []
    for row in table.itertuples():
        bounds = f" [{row.steps_low:+.3g}, {row.steps_high:+.3g}]"
        rows.append(
            (
                row.arm,
                row.note if isinstance(row.note, str) else "",
                f"{row.collapsed} of {row.seeds}, {row.grpo_collapsed} of {row.seeds}",
                f"{row.steps_survived:+.3g}{'' if np.isnan(row.steps_low) else bounds}",
                f"{row.best_reward:+.2f}",
                f"{row.heldout_em:+.3f} / {row.last_heldout_em:+.3f}",
            )
        )
    return markdown_table(columns, rows)


def _effects_block(published: Path, profile: str) -> str:
    return effects_markdown(pd.read_csv(published / profile / "effects.csv"))


def _claims_block(published: Path, profile: str) -> str:
    return claims_markdown(pd.read_csv(published / profile / "claims.csv"))


_BLOCKS = {"runs": _runs_block, "effects": _effects_block, "claims": _claims_block}
