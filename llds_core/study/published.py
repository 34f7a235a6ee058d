"""Published results: small copies of runs that git keeps, and the numbers the README quotes from
them.

    results/published/<profile>/
        runs.csv                       one row a run
        phases.csv                     one row a run: onsets of its phases, the spiral test
        effects.csv                    one row an arm: what it changes against GRPO
        runs/<arm>-seed<k>.csv.gz      its metrics, one row a step
        runs/<arm>-seed<k>.json        its manifest, with the held-out evaluation

An arm is a setting of a study: a method, or a method with overrides. A number in the README stands
between two markers and is generated from here; a test holds both equal.
"""

import gzip
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llds_core.config import load_study, studies
from llds_core.errors import DataError
from llds_core.files import disk_errors, replacing, write_json, write_table
from llds_core.markdown import bounded, markdown_table, span
from llds_core.reporting.run_tables import PHASE_COLUMNS, RUN_COLUMNS, phase_row, run_row
from llds_core.reporting.stats import censored_median
from llds_core.reporting.store import PUBLISHED, Run, load_runs, read_published
from llds_core.study.claims import claims_markdown, evaluate_claims
from llds_core.study.study_tables import effects

# What a reader of another machine has no use for.
_LOCAL_KEYS = ("command", "start_policy")
_logger = logging.getLogger("llds_core")
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


def write_phases(published: Path, profile: str) -> Path:
    """Write `phases.csv` from all published runs of a profile; return its path."""
    path = published / profile / "phases.csv"
    rows = [phase_row(run) for run in read_published(profile, published)]
    write_table(path, pd.DataFrame(rows, columns=PHASE_COLUMNS).astype(object), float_format=None)
    return path


def write_tables(published: Path, profile: str) -> None:
    """Write `runs.csv`, `phases.csv`, `claims.csv` and, for a profile with a study, `effects.csv`
    anew.
    """
    write_runs_table(published, profile)
    write_phases(published, profile)
    write_claims(published, profile)
    if profile in studies():
        write_effects(published, profile)


def write_claims(published: Path, profile: str) -> Path:
    """Write `claims.csv` from the published runs and mechanism tables; return its path."""
    runs = read_published(profile, published)
    window = runs[0].window
    if any(run.window != window for run in runs):
        raise DataError(f"published runs of {profile} differ in diagnostics.window: publish again")
    mechanism = published_mechanism(published, profile)
    table = evaluate_claims(runs, mechanism, window=window)
    path = published / profile / "claims.csv"
    write_table(path, table, float_format="%.4g")
    return path


def published_mechanism(published: Path, profile: str) -> dict[str, pd.DataFrame]:
    """Mechanism tables of the published seeds; empty when there are none.

    Only seeds that were measured alike are put together: those with the most rollouts a question,
    and of these with the most questions. A warning names the seeds that this leaves out.
    """
    folders: dict[tuple[int, int], list[Path]] = {}
    for manifest in sorted((published / profile).glob("mechanism-seed*/manifest.json")):
        values = json.loads(manifest.read_text("utf-8"))
        # Tables without the key are of groups as large as in training at the time.
        measured = (values.get("rollouts", 4), values["questions"])
        folders.setdefault(measured, []).append(manifest.parent)
    chosen = folders.pop(max(folders)) if folders else []
    if folders:
        left = ", ".join(folder.name for others in folders.values() for folder in others)
        _logger.warning("%s: measured on fewer rollouts or questions, left out", left)
    tables: dict[str, list[pd.DataFrame]] = {}
    for folder in chosen:
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
    """Markdown of `runs.csv`, one row an arm: how many seeds collapsed, rewards, held-out score.

    The cells of a map, one run each, are left to its figure.
    """
    table = table[~table["method"].str.startswith("map-")]
    columns = (
        "arm",
        "seeds",
        "steps",
        "collapsed",
        "collapse step, median",
        "reward: start policy → best → last window",
        "lowest after best, of best",
        "entropy, highest over first",
        "held-out EM, best → last checkpoint",
    )
    rows = []
    for arm, group in table.groupby("method", sort=False):
        rewards = group[["start_reward", "best_reward", "final_reward"]].mean()
        scores = group[["heldout_em", "last_heldout_em"]].astype(float).mean()
        rows.append(
            (
                arm,
                len(group),
                span(group.steps, 0),
                f"{int(group.collapsed.sum())} of {len(group)}",
                censored_median(group.collapse_step),
                " → ".join(f"{reward:.2f}" for reward in rewards),
                f"{group.lowest_after_best.mean():.2f}",
                span(group.entropy_growth, 1),
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
        "last reward [95 %]",
        "held-out EM, best / last",
    )
    rows = []
    for row in table[table["group"] != "map"].itertuples():
        rows.append(
            (
                row.arm,
                row.note if isinstance(row.note, str) else "",
                f"{row.collapsed} of {row.seeds}, {row.grpo_collapsed} of {row.seeds}",
                bounded(row.steps_survived, row.steps_low, row.steps_high, "+.3g"),
                f"{row.best_reward:+.2f}",
                bounded(row.last_reward, row.last_reward_low, row.last_reward_high, "+.2f"),
                " / ".join(
                    "–" if np.isnan(em) else f"{em:+.3f}"
                    for em in (row.heldout_em, row.last_heldout_em)
                ),
            )
        )
    return markdown_table(columns, rows)


def phases_markdown(table: pd.DataFrame) -> str:
    """Markdown of those rows of `phases.csv` whose run collapsed, by arm and seed."""
    columns = (
        "run",
        "decay",
        "acceleration",
        "collapse",
        "likelihood declines",
        "reward declines",
        "lead by declines / by halves",
        "spiral conditions that fail",
    )
    rows = []
    for row in table[table["collapse"].notna()].itertuples():
        steps = (row.decay, row.acceleration, row.collapse, row.loglik_decline, row.reward_decline)
        leads = (row.likelihood_lead, row.halfway_lead)
        rows.append(
            (
                f"{row.method}-seed{row.seed}",
                *("–" if np.isnan(step) else f"{step:.0f}" for step in steps),
                " / ".join("–" if np.isnan(lead) else f"{lead:+.0f}" for lead in leads),
                row.spiral_failed.replace(";", ", ")
                if isinstance(row.spiral_failed, str)
                else "too few windows"
                if np.isnan(row.spiral)
                else "none",
            )
        )
    return markdown_table(columns, rows)


def _effects_block(published: Path, profile: str) -> str:
    return effects_markdown(pd.read_csv(published / profile / "effects.csv"))


def _claims_block(published: Path, profile: str) -> str:
    return claims_markdown(pd.read_csv(published / profile / "claims.csv"))


def _phases_block(published: Path, profile: str) -> str:
    return phases_markdown(pd.read_csv(published / profile / "phases.csv"))


_BLOCKS = {
    "phases": _phases_block,
    "runs": _runs_block,
    "effects": _effects_block,
    "claims": _claims_block,
}
