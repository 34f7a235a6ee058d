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


def read_mechanism(*folders: Path) -> dict[str, pd.DataFrame]:
    """Read the tables of `measure`, or published ones, those of several seeds together."""
    parts = {name: [read_table(at / f"{name}.csv") for at in folders] for name in TABLES}
    tables = {name: pd.concat(found, ignore_index=True) for name, found in parts.items()}
    if all(table.empty for table in tables.values()):
        raise DataError(f"{folders[0]} holds no measurement: run python -m llds_core mechanism")
    return tables


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was measured, and by which code; empty before anything was."""
    path = folder / "manifest.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def read_table(path: Path) -> pd.DataFrame:
    """One table; empty before anything was measured."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=_KEYS)
