"""The penalty in another repository: two copied files, on an older Python, without this package."""

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

LOSSES = Path(str(files("llds_core"))) / "losses"
PAGE = Path(__file__).parents[2] / "docs/integrations.md"
LINE, FOLDER = "from llds_core.losses.aggregate import (", "verl/workers/actor"
MOVED = "from verl.workers.actor.aggregate import ("
USE = """
import sys
sys.modules["llds_core"] = None  # importing it fails
import torch
from verl.workers.actor.llds import llds_penalty
old = torch.zeros(1, 2)
penalty, _ = llds_penalty(old - 1, old, old + 1, torch.ones(1))
assert penalty == 1
"""


def test_two_copied_files_with_one_line_changed_work_without_the_package(tmp_path: Path) -> None:
    page = PAGE.read_text("utf-8")
    assert f"`{LINE}`" in page and f"`{MOVED}`" in page
    (tmp_path / FOLDER).mkdir(parents=True)
    for name, changed in (("llds.py", 1), ("aggregate.py", 0)):
        assert f"`llds_core/losses/{name}`" in page
        text = (LOSSES / name).read_text("utf-8")
        ast.parse(text, feature_version=(3, 9))
        # There `float | None` is no expression; without this line annotations are expressions.
        assert "\nfrom __future__ import annotations" in text
        assert text.count("llds_core.") == text.count(LINE) == changed
        (tmp_path / FOLDER / name).write_text(text.replace(LINE, MOVED), "utf-8")
    subprocess.run([sys.executable, "-c", USE], check=True, cwd=tmp_path, env={})
