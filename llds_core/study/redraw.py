"""Draws anew what is published, from the runs stored there: tables, claims, figures, outputs of the
notebooks, report and README.
"""

import base64
import re
import shutil
from pathlib import Path

import nbformat

from llds_core.config import load_study, studies
from llds_core.config.arms import MAIN_ARMS
from llds_core.files import NOTEBOOKS, disk_errors, project_path, write_text
from llds_core.reporting.store import PUBLISHED, published_root, read_published
from llds_core.study.notebooks import report
from llds_core.study.published import write_tables
from llds_core.study.report_page import render_report, update_readme
from llds_core.study.verdict import small_png, write_page

_FRAME = re.compile(r'<iframe title="(\w+)" srcdoc=')
_TABLE = re.compile(r"\bT_[0-9a-f]{5}")  # drawn at random by pandas
_NOTEBOOKS_SHOW = "desk"  # whose outputs are stored in the notebooks themselves


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
