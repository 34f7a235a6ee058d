"""What a report writes: tables, and a record of every file with the runs behind it.

Whatever draws a file appends a line to `index.jsonl` in the file's folder; the runner of notebooks
gathers these lines into `index.json`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.files import disk_errors, write_table
from llds_core.reporting.run_view import StoredRun

KINDS = {".png": "figure", ".pdf": "figure", ".csv": "data", ".ipynb": "notebook", ".html": "page"}
RECORDED_BY = "LLDS_NOTEBOOK"  # environment variable: the notebook that runs
_RECORDS = "index.jsonl"


def save_table(
    table: pd.DataFrame, out_dir: Path, name: str, runs: Sequence[StoredRun] = ()
) -> Path:
    """Write `name`.csv under `out_dir`, record it, and return its path. `runs` are where the
    numbers come from; a summary, with no column `seed`, gets a column that names them.
    """
    path = out_dir / f"{name}.csv"
    if runs and "seed" not in table:
        table = table.assign(runs=";".join(f"{run.arm}-seed{run.seed}" for run in runs))
    write_table(path, table)
    record([path], runs)
    return path


def record(paths: Sequence[Path], runs: Sequence[StoredRun]) -> None:
    """Append a line per file, in the folder of the first: its name, kind, runs and notebook."""
    index = paths[0].parent / _RECORDS
    with disk_errors(index), index.open("a", encoding="utf-8") as file:
        for path in paths:
            line = {
                "path": path.name,
                "kind": KINDS[path.suffix],
                "runs": [run.name for run in runs],
                "notebook": os.environ.get(RECORDED_BY, ""),
            }
            file.write(json.dumps(line) + "\n")


def take_records(folder: Path) -> dict[Path, dict[str, Any]]:
    """Read the records of all files below `folder` and remove them; of a file the last counts."""
    found = {}
    for index in sorted(folder.rglob(_RECORDS)):
        for line in index.read_text("utf-8").splitlines():
            entry = json.loads(line)
            found[index.parent / entry["path"]] = entry
        index.unlink()
    return found
