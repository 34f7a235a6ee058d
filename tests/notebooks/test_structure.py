"""House rules of notebooks, checked without running them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from papermill import inspect_notebook

from llds_core.config import load_study

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = {"profile", "methods", "seeds", "overrides", "run_root", "out_dir", "style"}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def prose(path):
    cells = nbformat.read(path, 4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_valid_and_shows_the_published_study(path):
    """That the outputs are those of the cells is what `test_published_outputs.py` tests."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert any(cell.outputs for cell in code_cells(path)) and path.stat().st_size < 1_500_000
    for cell in code_cells(path):
        assert cell.execution_count is None
        assert not any(output.get("name") == "stderr" for output in cell.outputs)
        # The explorer is a page of its own, and a megabyte: a picture of it stands in.
        shown = [str(output.get("data", "")) for output in cell.outputs]
        assert not any("<iframe" in data for data in shown)
        left_out = any("Run this cell" in data for data in shown)
        assert not left_out or "framed(" in cell.source or "sliders()" in cell.source
        assert "framed(" not in cell.source or "image/png" in shown[0]


def test_few_short_cells_of_calls_instead_of_code(path):
    assert len(code_cells(path)) <= 12
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 10, cell.source
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}  # no ! nor %
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.While}


def test_one_cell_of_literal_parameters_with_types_and_help_texts(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code_cells(path)[:1]
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)
    found = inspect_notebook(str(path))
    assert found.keys() == PARAMETERS
    assert all(len(parameter["help"]) > 10 for parameter in found.values())


def test_text_states_no_results(path):
    """Numbers with a decimal point are results; those belong into generated text."""
    cited = r"arXiv\s\d+\.\d+|Theorem \d\.\d|CC BY 4\.0|llds_core\.[\w.]+"
    assert not re.search(r"\d\.\d", re.sub(cited, "", prose(path)))


def test_seeds_named_for_the_published_study_are_those_of_its_main_arm(path):
    [grpo] = load_study("desk").chosen(["grpo"])
    for seeds in re.findall(r"`seeds = (\[.*?\])`", prose(path)):
        assert tuple(ast.literal_eval(seeds)) == grpo.seeds
