"""Published results: small copies of runs that git keeps, and the tables made of them.

What is in such a folder is listed in `results/README.md`.
An arm is a setting of a study: a method, or a method with overrides. A study that is not named as
its profile has a folder of its own: `results/published/<study>/<profile>/`.
"""

import base64
import gzip
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pandas as pd

from llds_core.config import Study, load_study, studies
from llds_core.errors import ConfigError, DataError
from llds_core.evaluation import POLICY
from llds_core.files import (
    NOTEBOOKS,
    disk_errors,
    project_path,
    replacing,
    write_json,
    write_table,
    write_text,
)
from llds_core.reporting.benchmark_scores import read_scores
from llds_core.reporting.explorer import readable_rollouts, store_rollouts
from llds_core.reporting.run_tables import phase_row, run_row
from llds_core.reporting.store import PUBLISHED, StoredRun, published_root, read_published
from llds_core.runs.checkpoints import checkpoint_steps
from llds_core.study.claims import load_claims
from llds_core.study.claims_view import checked_claims
from llds_core.study.notebooks import MAIN_ARMS, report
from llds_core.study.report_page import render_report, update_readme
from llds_core.study.tables import effects
from llds_core.study.verdict import small_png, write_page

# What a reader of another machine has no use for.
_LOCAL_KEYS = ("command", "start_policy")
_FRAME = re.compile(r'<iframe title="(\w+)" srcdoc=')
_TABLE = re.compile(r"\bT_[0-9a-f]{5}")  # drawn at random by pandas
_NOTEBOOKS_SHOW = "desk"  # whose outputs are stored in the notebooks themselves


def publish_run(
    run: StoredRun,
    arm: str | None = None,
    published: Path = PUBLISHED,
    *,
    rollouts: bool = False,
) -> Path:
    """Copy a finished run as the seed of an arm, named as its method unless given, with what the
    explorer shows of its `rollouts` where asked; return the manifest written.
    """
    if not run.is_result:
        raise DataError(f"{run.path} is {run.status}: finish it before publishing")
    folder = published / run.profile / "runs"
    stem = f"{arm or run.method}-seed{run.seed}"
    table = run.metrics.to_csv(index=False, float_format="%.6g").encode()
    # A fixed time stamp: the same run gives the same bytes.
    with replacing(folder / f"{stem}.csv.gz") as file:
        file.write(gzip.compress(table, mtime=0))
    kept = {key: value for key, value in run.manifest.items() if key not in _LOCAL_KEYS}
    kept |= {"arm": arm or run.method, "evaluation": run.evaluation}
    # A run that diverged early has no checkpoint, and so no tokenizer.
    if rollouts and checkpoint_steps(run.path / "checkpoint"):
        store_rollouts(readable_rollouts(run.path), folder / f"{stem}.rollouts.jsonl.gz")
    write_json(folder / f"{stem}.json", kept)
    return folder / f"{stem}.json"


def write_runs_table(published: Path, profile: str) -> list[StoredRun]:
    """Write `runs.csv` from all published runs of a profile; return them."""
    runs = read_published(profile, published)
    write_table(published / profile / "runs.csv", pd.DataFrame(map(run_row, runs)), None)
    return runs


def write_tables(published: Path, profile: str, study: Study | None = None) -> None:
    """Write `runs.csv`, `phases.csv` and, of a study, `effects.csv` and `claims.csv` anew.

    Runs are those of `study`, else of the study that is named as the profile, if any.
    """
    folder, runs = published / profile, write_runs_table(published, profile)
    phases = pd.DataFrame(map(phase_row, runs)).astype(object)
    write_table(folder / "phases.csv", phases, None)
    if study is None and profile in studies():
        study = load_study(profile)
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


def store_outputs(executed: Path, source: Path, of: Path) -> None:
    """Copy the `small_outputs` of an executed notebook into the notebook itself."""
    shown = small_outputs(executed, of)
    notebook = nbformat.read(source, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = shown[cell.id]
    write_text(source, nbformat.writes(notebook, 4) + "\n")


def small_outputs(executed: Path, of: Path) -> dict[str, list[nbformat.NotebookNode]]:
    """What each cell of an executed notebook shows, by its name, as a notebook in git keeps it: the
    same in every run, pictures small, and instead of a page its picture in folder `of`.
    """
    cells = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    return {cell.id: [_small(output, cell.id, of) for output in cell.outputs] for cell in cells}


def _small(output: nbformat.NotebookNode, cell: str, of: Path) -> nbformat.NotebookNode:
    if output.output_type == "execute_result":
        output.execution_count = None
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        data = output.data = {"text/html": "<p><i>Sliders. Run this cell to move them.</i></p>"}
    if page := _FRAME.search(data.get("text/html", "")):
        data["text/html"] = "<p><i>A picture. Run this cell for the page itself.</i></p>"
        data["image/png"] = small_png((of / f"{page[1]}.png").read_bytes())
    elif "image/png" in data:
        data["image/png"] = small_png(base64.b64decode(data["image/png"]))
    if "text/html" in data:
        data["text/html"] = _TABLE.sub(f"T_{cell}", data["text/html"])
    if len(data) > 1:
        data.pop("text/plain", None)  # with an address in memory
    return output


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


def report_published(name: str) -> Path:
    """Redraw what is published from the runs stored there: tables, claims, figures, outputs of the
    notebooks, report, README; return its folder. `name` is of a study, or of a profile without one.
    """
    study = load_study(name) if name in studies() else None
    profile = study.profile if study else name
    root = project_path(published_root(study) if study else PUBLISHED)
    runs = read_published(profile, root)
    write_tables(root, profile, study)
    main = [arm for arm in MAIN_ARMS if any(run.arm == arm for run in runs)]
    seeds = sorted({run.seed for run in runs if run.arm in main})
    drawn = project_path(Path("results") / name / "published")
    # What an earlier call drew may be of runs that are no longer published.
    shutil.rmtree(drawn, ignore_errors=True)
    index = report(profile, seeds, root, drawn, methods=main)
    target = root / profile / "figures"
    with disk_errors(target):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(drawn / "figures", target)
        if (explorer := drawn / "explorer.html").exists():
            shutil.copy(explorer, root / profile / explorer.name)
    if profile == _NOTEBOOKS_SHOW:
        for executed in sorted((drawn / "notebooks").glob("*.ipynb")):
            store_outputs(executed, project_path(NOTEBOOKS) / executed.name, root / profile)
    shown = [run for run in runs if run.arm in main]
    write_page(index, shown, published=root, folder=root / profile)
    if study and (page := render_report(root, study)):
        write_text(root / profile / "REPORT.md", page)
        readme = project_path("README.md")
        write_text(readme, update_readme(readme, root, study))
    return root / profile
