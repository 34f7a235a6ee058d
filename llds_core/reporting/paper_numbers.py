"""Published numbers of the papers, as tables: what our own results stand beside.

The CSV files beside this module hold printed values only, each row with the place it was read
from. In the result tables `check` says where a printed average does not follow from its members,
`bamboogle_n` how many Bamboogle questions a score can be a share of (124: the official code drops
the last one; empty: neither 124 nor 125), and `origin` who ran it: `copied from ...` another paper,
the authors of the table, or `unmarked`. An empty cell is not printed.
"""

from importlib.resources import files

import pandas as pd

from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.worlds import QUESTION_SETS

AVERAGES = ("general_average", "multi_hop_average", "average")
_RESULTS = (
    *("model", "variant", "training", "method"),
    *QUESTION_SETS,
    *AVERAGES,
    *("check", "bamboogle_n", "origin", "source"),
)
_SETTINGS = ("setting", "paper", "code", "note", "source")
_MATHS = ("aime24", "aime25", "math500", "minerva", "olympiadbench", "average")

# Columns of every table.
TABLES: dict[str, tuple[str, ...]] = {
    "llds_table1": _RESULTS,
    "llds_table2": _RESULTS,
    "llds_table3": _RESULTS,
    "llds_table4": _RESULTS,
    "search_r1_table2": _RESULTS,
    "search_r1_table3": _RESULTS,
    "llds_lambda": ("llds_weight", "model", "collapse_step", "stable_until", "note", "source"),
    "llds_figures": ("figure", "quantity", "value", "model", "source"),
    "llds_hyperparameters": _SETTINGS,
    "search_r1_hyperparameters": _SETTINGS,
    "lp_reg_table1": ("model", "steps", "method", "policy", *_MATHS, "source"),
    "tricks_or_traps": ("trick", "compared", "finding", "numbers", "source"),
}
# Largest value of the columns that hold numbers.
_LARGEST = (
    dict.fromkeys((*QUESTION_SETS, *AVERAGES), 1.0)
    | {"llds_weight": 1.0, "collapse_step": 1e5, "stable_until": 1e5, "steps": 1e5}
    | {name: 100.0 for name in _MATHS if name != "average"}
)
_KEYS = ("model", "variant", "training", "method", "policy", "setting", "trick", "quantity")
MAIN_TABLES = ("llds_table1", "llds_table2", "llds_table4")


def paper_table(name: str) -> pd.DataFrame:
    """Read one published table; numbers are floats, NaN where nothing is printed.

    Args:
        name: one of `TABLES`.

    Raises:
        ConfigError: for an unknown table.
        DataError: when the file lacks a column or source, repeats a row, or a number is no number
            of its range.
    """
    if name not in TABLES:
        raise ConfigError(f'unknown table "{name}": {did_you_mean(name, TABLES)}')
    path = files("llds_core") / "reporting" / "paper_numbers" / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        return check_table(pd.read_csv(file, dtype=str, keep_default_na=False), name)


def check_table(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return `table` with its numbers as floats.

    Args:
        table: all text, as it stands in the file.
        name: one of `TABLES`.

    Raises:
        DataError: see `paper_table`.
    """
    if tuple(table.columns) != TABLES[name]:
        raise DataError(
            f"{name}.csv has columns {', '.join(table.columns)}: it takes {', '.join(TABLES[name])}"
        )
    keys = [column for column in table.columns if column in _KEYS or column == "llds_weight"]
    for row, cells in enumerate(table.to_dict("records"), start=2):
        if not cells["source"].strip():
            raise DataError(f"{name}.csv:{row} has no source: say where it was read")
    if table.duplicated(keys).any():
        row = int(table.duplicated(keys).to_numpy().argmax()) + 2
        raise DataError(f"{name}.csv:{row} repeats an earlier row: keep one of them")
    largest = _LARGEST | ({"average": 100.0} if name == "lp_reg_table1" else {})
    for column in set(table.columns) & set(largest):
        table[column] = _numbers(table[column], largest[column], f"{name}.csv")
    return table


def _numbers(cells: pd.Series, largest: float, file: str) -> pd.Series:
    numbers = pd.to_numeric(cells.where(cells != ""), errors="coerce").astype(float)
    bad = (cells != "") & ~numbers.between(0, largest)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise DataError(
            f'{file}:{row + 2}: {cells.name} is "{cells.iloc[row]}": give a number from 0 to '
            f"{largest:g}"
        )
    return numbers


def main_results() -> pd.DataFrame:
    """LLDS's Tables 1, 2 and 4 in long form: `model`, `variant`, `method`, `benchmark`, `em` in
    [0, 1] and `source`, one row a printed score of a benchmark; averages are left to
    `llds_core.worlds.QUESTION_SETS`.
    """
    wide = pd.concat([paper_table(name) for name in MAIN_TABLES], ignore_index=True)
    long = wide.melt(
        id_vars=["model", "variant", "method", "source"],
        value_vars=list(QUESTION_SETS),
        var_name="benchmark",
        value_name="em",
    ).dropna(subset="em")
    columns = ["model", "variant", "method", "benchmark", "em", "source"]
    return long[columns].reset_index(drop=True)
