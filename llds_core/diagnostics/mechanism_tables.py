"""Tables of `measure`, as runs and published folders hold them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from llds_core.errors import DataError

TABLES = ("likelihood_change", "theorem", "nll_by_round")
_KEYS = ["profile", "method", "seed"]


def mechanism_path(root: Path, profile: str, seed: int) -> Path:
    """Folder of the tables of one seed, in a folder of runs."""
    return root / profile / f"mechanism-seed{seed}"


def covered(folder: Path) -> tuple[list[str], int | None]:
    """Methods that the tables of `folder` cover to their end, and the number of their questions."""
    manifest = read_manifest(folder)
    return [*manifest.get("runs", ())], manifest.get("questions")


def read_mechanism(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of `measure`, or published ones."""
    tables = {name: read_table(folder / f"{name}.csv") for name in TABLES}
    if all(table.empty for table in tables.values()):
        raise DataError(f"{folder} holds no measurement: run python -m llds_core mechanism")
    return tables


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was measured, and by which code; empty before anything was."""
    path = folder / "manifest.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def read_table(path: Path) -> pd.DataFrame:
    """One table; empty before anything was measured."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=_KEYS)
