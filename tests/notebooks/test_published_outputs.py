"""Stored outputs of notebooks and published figures against what the code draws."""

import base64
import io
import re
from decimal import Decimal

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from llds_core.config import load_study
from llds_core.config.arms import MAIN_ARMS
from llds_core.files import project_path
from llds_core.study import notebooks
from llds_core.study.redraw import small_outputs

PUBLISHED = project_path("results/published")
NOTEBOOKS = sorted(project_path("notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?")

pytestmark = pytest.mark.slow


class NoPage:
    """In place of nbconvert's: `test_report.py` makes the pages."""

    def from_filename(self, name):
        return "", {}


def one_by_one(sources, parameters, target, at_once):
    return {
        source.name: notebooks.run_notebook(source, parameters, target / "notebooks")
        for source in sources
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folder of a report on the published study, one notebook after the other."""
    folder = tmp_path_factory.mktemp("drawn")
    [grpo] = load_study("desk").chosen(["grpo"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(notebooks.RECORDED_BY, "")  # each sets it
        patch.setattr("nbconvert.HTMLExporter", NoPage)
        patch.setattr(notebooks, "_run_notebooks", one_by_one)
        notebooks.report("desk", grpo.seeds, PUBLISHED, folder, methods=MAIN_ARMS)
    for path in (folder / "notebooks").glob("*.ipynb"):
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)  # to the end of each
    return folder


def say_the_same(stored, shown):
    """Words are equal; numbers differ by one in their last digit at most, as rounding may."""
    assert NUMBER.sub("#", stored) == NUMBER.sub("#", shown)
    for one, other in zip(NUMBER.findall(stored), NUMBER.findall(shown), strict=True):
        first, second = (Decimal(text.replace("−", "-")) for text in (one, other))
        assert abs(first - second) <= Decimal(1).scaleb(first.as_tuple().exponent), (one, other)


def look_the_same(stored, shown):
    """Pictures are of one size, and of their pixels at most one in a thousand is another grey."""
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)
        for data in (stored, shown)
    )
    assert first.shape == second.shape
    assert (abs(first - second) > 32).mean() < 0.001


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_stores_what_its_cells_show(source, drawn):
    shown = small_outputs(drawn / "notebooks" / source.name, PUBLISHED / "desk")
    for cell in nbformat.read(source, 4).cells:
        if cell.cell_type != "code":
            continue
        assert len(cell.outputs) == len(shown[cell.id])
        for stored, fresh in zip(cell.outputs, shown[cell.id], strict=True):
            assert stored.output_type == fresh.output_type
            say_the_same(stored.get("text", ""), fresh.get("text", ""))
            kinds = stored.get("data", {})
            assert kinds.keys() == fresh.get("data", {}).keys()
            for kind, data in kinds.items():
                same = look_the_same if kind == "image/png" else say_the_same
                same(data, fresh.data[kind])


def test_published_figures_are_drawn_from_the_published_runs(drawn):
    stored, fresh = (sorted(folder.rglob("figures/*")) for folder in (PUBLISHED / "desk", drawn))
    assert [path.name for path in stored] == [path.name for path in fresh]
    for one, other in zip(stored, fresh, strict=True):
        if one.suffix == ".csv":
            first, second = map(pd.read_csv, (one, other))
            pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-7)
        if one.suffix == ".png":
            look_the_same(*(base64.b64encode(path.read_bytes()) for path in (one, other)))
