"""Reads stored runs: the only way figures, tables and notebooks get at numbers."""

import json
import shlex
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from llds_core.config import Study, load_study, studies
from llds_core.config.given import numbers, words
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import DataError
from llds_core.files import project_path
from llds_core.reporting.run_view import StoredRun
from llds_core.runs import Run, read_manifest, read_metrics

PUBLISHED = Path("results/published")


def load_run(path: Path) -> StoredRun:
    """Read the run directory `path`."""
    manifest = read_manifest(path)
    table = pd.DataFrame(read_metrics(path))
    table = table.reindex(columns=list(dict.fromkeys([*METRICS, *table.columns])))
    numbers = table[list(METRICS)].apply(pd.to_numeric, errors="coerce").astype(float)
    return StoredRun(path, manifest, table.assign(**numbers).astype({"step": int}))


def load_runs(
    run_root: Path,
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> list[StoredRun]:
    """Read the runs of `profile` by method, then seed. A folder of published results is read like a
    folder of runs; its methods are arms.
    """
    if is_published(run_root, profile):
        present = {(run.arm, run.seed): run for run in read_published(profile, run_root)}
        for arm in methods:
            if not any((arm, seed) in present for seed in seeds):
                raise DataError(
                    f"{run_root / profile} holds no published run of {arm} with seeds "
                    f"{', '.join(map(str, seeds))}: publish one first"
                )
        return [present[pair] for pair in product(methods, seeds) if pair in present]
    runs = []
    for method, seed in product(methods, seeds):
        run = Run.load(f"{profile}/{method}", seed, run_root, overrides)
        if not run.exists:
            command = shlex.join(run.command("train"))
            raise DataError(f"no run at {run.path}: make it with python -m llds_core {command}")
        runs.append(load_run(run.path))
    return runs


def is_published(root: Path, profile: str) -> bool:
    """Whether `root` holds published runs of `profile`, rather than runs as they were made."""
    return (root / profile / "runs.csv").exists()


def published_root(study: Study) -> Path:
    """Root of the published results of a study."""
    return PUBLISHED if study.name == study.profile else PUBLISHED / study.name


def load_study_runs(root: Path, study: Study) -> list[StoredRun]:
    """Read what `root` holds of a published study, in its order and whatever the seeds, as runs
    that carry the name of their arm.
    """
    order = [*study.labels]
    found = [run for run in read_published(study.profile, root) if run.arm in order]
    for run in found:
        run.manifest["label"] = study.labels[run.arm]
    return sorted(found, key=lambda run: (order.index(run.arm), run.seed))


def study_runs(
    profile: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    run_root: Path,
    overrides: Sequence[str] = (),
    *,
    published: Path = PUBLISHED,
) -> list[StoredRun]:
    """The study of `profile` where `run_root` holds it published, else the runs of `methods`;
    nothing is trained. Where there are none, the study below `published`, which counts from the
    project's root, stands in, and a line says so. A study takes no `overrides`. Lists may be text,
    as parameters of a notebook are.
    """
    methods, seeds = words(methods), numbers(seeds)
    if profile in studies() and not overrides:
        study, root = load_study(profile), project_path(published)
        if is_published(run_root, profile):
            return load_study_runs(run_root, study)
        own = [Run.load(f"{profile}/{m}", seed, run_root) for m, seed in product(methods, seeds)]
        if is_published(root, profile) and not any(run.path.exists() for run in own):
            print(f"run_root holds no run of study {profile}: shown are those of {published}")
            return load_study_runs(root, study)
    return load_runs(run_root, profile, methods, seeds, overrides)


def published_beside(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Published runs of the methods of `runs`, to draw one's own over them; none where `runs` are
    published themselves, or nothing is of their profile.
    """
    root, methods = project_path(PUBLISHED), {run.method for run in runs}
    if root in runs[0].path.parents or not is_published(root, runs[0].profile):
        return []
    found = sorted((root / runs[0].profile / "runs").glob("*-seed*.json"))
    return [read_published_run(at) for at in found if at.stem.rpartition("-seed")[0] in methods]


def find_published(published: Path, profile: str, arm: str, seed: int) -> StoredRun | None:
    """Read one published run, None when there is none."""
    manifest = published / profile / "runs" / f"{arm}-seed{seed}.json"
    return read_published_run(manifest) if manifest.exists() else None


def read_published(profile: str, published: Path = PUBLISHED) -> list[StoredRun]:
    """Read the published runs of a profile, by arm and seed."""
    folder = published / profile / "runs"
    runs = [read_published_run(manifest) for manifest in sorted(folder.glob("*.json"))]
    if not runs:
        raise DataError(f"{folder} holds no published run: publish one first")
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def read_published_run(manifest: Path) -> StoredRun:
    """Read one published run by its manifest; its folder names the profile, which may have had
    another name when the run was made.
    """
    try:
        metrics = pd.read_csv(manifest.with_suffix(".csv.gz"))
        values = json.loads(manifest.read_text("utf-8"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{manifest} or its metrics are damaged ({error}): restore them") from error
    return StoredRun(manifest.parent, values | {"profile": manifest.parents[1].name}, metrics)
