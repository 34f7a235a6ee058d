"""Notebooks of own runs on stored smoke runs (06 to 09 show none), and the index."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from run_helpers import refused

from llds_core.errors import ConfigError, DataError, RunError
from llds_core.files import project_path
from llds_core.reporting.store import load_run, study_runs
from llds_core.study.notebooks import report, run_notebook
from llds_core.study.runner import ensure_runs

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[0-5]_*.ipynb"))
METHODS = ("grpo", "llds-action")


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def own_runs(smoke_runs, tmp_path_factory):
    """A copy: a notebook measures what it lacks."""
    return shutil.copytree(smoke_runs, tmp_path_factory.mktemp("own") / "runs")


@pytest.fixture(scope="module")
def made(own_runs, tmp_path_factory):
    """Folder of a report; made with a foreign kernel called python3 installed."""
    jupyter, notebooks, out_dir = map(tmp_path_factory.mktemp, ("jupyter", "notebooks", "report"))
    spec = jupyter / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/bin/false"], "display_name": "other", "language": "python"}')
    for source in NOTEBOOKS:
        shutil.copy(source, notebooks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("JUPYTER_PATH", str(jupyter))
        patch.setattr("llds_core.study.notebooks.NOTEBOOKS", notebooks)
        report("smoke", [0], own_runs, out_dir, methods=METHODS)
    executed = sorted(path.stem for path in (out_dir / "notebooks").glob("*.ipynb"))
    assert executed == [path.stem for path in NOTEBOOKS]
    return out_dir


@pytest.mark.slow
def test_every_reported_notebook_is_executed_to_its_end_and_has_a_page(made):
    for path in (made / "notebooks").glob("*.ipynb"):
        code = code_cells(path)
        assert all(cell.execution_count for cell in code)
        outputs = [output for cell in code for output in cell.outputs]
        assert not any(output.output_type == "error" for output in outputs)
        assert not any("Warning" in out.text for out in outputs if out.get("name") == "stderr")
        assert "<html" in path.with_suffix(".html").read_text()[:500]


def test_the_index_lists_every_file_with_its_notebook_and_runs(made, own_runs):
    index = json.loads((made / "index.json").read_text())
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {entry["path"] for entry in index["artefacts"]} == files - {"index.json"}
    paths = [str(own_runs / "smoke" / method / "seed0") for method in METHODS]
    assert [run["path"] for run in index["runs"]] == paths
    for run in index["runs"]:
        stored = load_run(Path(run["path"]))
        assert run["config_hash"] == stored.manifest["config_hash"]
        assert (run["method"], run["seed"], run["status"]) == (stored.method, 0, "complete")
    for entry in index["artefacts"]:
        name = Path(entry["path"]).name
        assert entry["bytes"] == (made / entry["path"]).stat().st_size > 0
        shown = paths[:1] if name.startswith("fig2") else paths  # of GRPO alone
        assert entry["runs"] == ([] if name.startswith("02_displacement") else shown)
        notebook = "05" if name.startswith("fig") else name[:2]
        assert name in ("explorer.html", "displacement.html") or entry["notebook"][:2] == notebook
    assert {entry["kind"] for entry in index["artefacts"]} == {"figure", "data", "notebook", "page"}


def written(folder, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    path = folder / "07_broken.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_failing_notebook_names_itself_the_cell_and_the_error(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    path = written(tmp_path, "x = 1", "raise ValueError('two\\nlines')")
    named = r"07_broken\.ipynb failed in cell 2: ValueError: two lines"
    refused(RunError, named, run_notebook, path, {}, tmp_path / "out")
    assert (tmp_path / "out" / "07_broken.ipynb").exists()
    assert capfd.readouterr() == ("", "")  # nothing from kernel or papermill


def test_a_kernel_that_dies_is_an_error_of_ours(tmp_path):
    path = written(tmp_path, "import os; os._exit(3)")
    lost = r"07_broken\.ipynb lost its kernel"
    refused(RunError, lost, run_notebook, path, {}, tmp_path / "out")


@pytest.mark.parametrize(
    ("methods", "words"), [(["grrpo"], "unknown method"), (METHODS, "holds no notebook")]
)
def test_what_cannot_be_run_is_refused(tmp_path, monkeypatch, methods, words):
    monkeypatch.setattr("llds_core.study.notebooks.NOTEBOOKS", tmp_path / "none")
    refused(ConfigError, words, report, "smoke", [0], tmp_path, tmp_path / "out", methods=methods)
    assert not (tmp_path / "out").exists()


def test_paths_count_from_the_project_also_when_opened_in_its_folder(monkeypatch, tmp_path):
    for folder, root in ((ROOT, ROOT), (ROOT / "notebooks", ROOT), (tmp_path, tmp_path)):
        monkeypatch.chdir(folder)
        assert project_path("results/runs") == root / "results" / "runs"
    assert project_path(tmp_path) == tmp_path


R = {"name": "ir", "display_name": "R", "language": "R"}


@pytest.mark.parametrize(("metadata", "mark"), [({}, "\ufeff"), ({"kernelspec": R}, "")])
def test_a_notebook_saved_by_another_editor_runs(tmp_path, metadata, mark) -> None:
    cells = [nbformat.v4.new_code_cell("seeds: list = [0]", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell("print(seeds)"))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    (tmp_path / "n.ipynb").write_text(mark + nbformat.writes(notebook), "utf-8")
    executed, _ = run_notebook(tmp_path / "n.ipynb", {"seeds": [5]}, tmp_path / "out")
    assert code_cells(executed)[-1].outputs[0].text == "[5]\n"


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"cells": 3, "nbformat": 4}', "\0", "[" * 5000])
def test_what_is_no_notebook_is_one_line(tmp_path, text) -> None:
    (tmp_path / "n.ipynb").write_text(text)
    named = "is not a notebook"
    refused(DataError, named, run_notebook, tmp_path / "n.ipynb", {}, tmp_path / "out")


@pytest.mark.parametrize("given", [("grpo", "0"), (["grpo", "grpo"], 0), ("grpo,", [0, 0])])
@pytest.mark.parametrize("found", [study_runs, ensure_runs])
def test_lists_of_a_notebook_may_be_text(smoke_runs, given, found) -> None:
    runs = found("smoke", *given, smoke_runs)
    assert [(run.method, run.seed) for run in runs] == [("grpo", 0)]
