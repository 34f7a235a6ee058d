"""Published results: small copies of runs that git keeps, and the tables made of them.

`results/README.md` lists them. A study that is not named as its profile has a folder of its own:
`results/published/<study>/<profile>/`.
"""

import gzip
import shlex
import shutil
from pathlib import Path

import pandas as pd

from llds_core.config import Study
from llds_core.errors import ConfigError, DataError
from llds_core.evaluation.predictions import POLICY
from llds_core.files import disk_errors, replacing, write_json, write_table
from llds_core.reporting.benchmark_scores import read_scores
from llds_core.reporting.explorer import readable_rollouts, store_rollouts
from llds_core.reporting.run_tables import phase_row, run_row
from llds_core.reporting.store import PUBLISHED, StoredRun, read_published
from llds_core.runs.checkpoints import checkpoint_steps
from llds_core.study.claims import load_claims
from llds_core.study.claims_view import checked_claims
from llds_core.study.tables import effects

# What a reader of another machine has no use for.
_LOCAL_KEYS = ("command", "start_policy")


def publish_run(
    run: StoredRun, arm: str | None = None, published: Path = PUBLISHED, *, rollouts: bool = False
) -> Path:
    """Copy a finished run as the seed of an arm, named as its method unless given, with what the
    explorer shows of its `rollouts` where asked; return the manifest written.
    """
    if not run.is_result:
        raise DataError(f"{run.path} is {run.status}: finish it before publishing")
    path = published / run.profile / "runs" / f"{arm or run.method}-seed{run.seed}.json"
    table = run.metrics.to_csv(index=False, float_format="%.6g").encode()
    # A fixed time stamp: the same run gives the same bytes.
    with replacing(path.with_suffix(".csv.gz")) as file:
        file.write(gzip.compress(table, mtime=0))
    kept = {key: value for key, value in run.manifest.items() if key not in _LOCAL_KEYS}
    kept |= {"arm": arm or run.method, "evaluation": run.evaluation}
    # A run that diverged early has no checkpoint, and so no tokenizer.
    if rollouts and checkpoint_steps(run.path / "checkpoint"):
        store_rollouts(readable_rollouts(run.path), path.with_suffix(".rollouts.jsonl.gz"))
    write_json(path, kept)
    return path


def write_runs_table(published: Path, profile: str) -> list[StoredRun]:
    """Write `runs.csv` from all published runs of a profile; return them."""
    runs = read_published(profile, published)
    write_table(published / profile / "runs.csv", pd.DataFrame(map(run_row, runs)), None)
    return runs


def write_tables(published: Path, profile: str, study: Study | None = None) -> None:
    """Write `runs.csv`, `phases.csv` and, of a study, `effects.csv` and `claims.csv` anew."""
    folder, runs = published / profile, write_runs_table(published, profile)
    phases = pd.DataFrame(map(phase_row, runs)).astype(object)
    write_table(folder / "phases.csv", phases, None)
    if study is None:
        return
    write_table(folder / "effects.csv", effects(runs, study), "%.4g")
    if load_claims(study).claims:
        checked = checked_claims(study, runs, published).drop(columns="of")
        write_table(folder / "claims.csv", checked, "%.4g")


def publish_mechanism(run_root: Path, profile: str, seed: int, published: Path = PUBLISHED) -> Path:
    """Copy the mechanism tables of a seed; return the folder."""
    name = f"mechanism-seed{seed}"
    source, target = run_root / profile / name, published / profile / name
    if not (source / "manifest.json").exists():
        words = shlex.join([profile, "--seed", str(seed), "--run-root", str(run_root)])
        raise DataError(f"no tables in {source}: run python -m llds_core mechanism {words}")
    with disk_errors(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def publish_evaluation(
    folder: Path, published: Path = PUBLISHED, *, name: str | None = None
) -> Path:
    """Copy the summary of an evaluation below `published`, a root of published results or of runs,
    under `name`, or that of the method or baseline; return the file.
    """
    summary = read_scores(folder / "summary.json")
    if not (name := name or summary["method" if summary["agent"] == POLICY else "agent"]):
        raise ConfigError(f"{folder} does not say what was trained: evaluate it with --method")
    identity, deviations = summary["identity"], list(summary.get("deviations", ()))
    if identity["limit"] is not None and not any("evaluation.questions" in d for d in deviations):
        deviations.append(f"{summary['questions']} questions instead of all")
    if identity["split"] != "test":
        deviations.append(f"the {identity['split']} split instead of test")
    path = published / summary["profile"] / "evaluations" / f"{name}-seed{summary['run_seed']}.json"
    write_json(path, summary | {"deviations": deviations})
    return path
