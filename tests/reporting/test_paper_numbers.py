"""Printed numbers of the papers: complete, sourced, plausible; what does not add up says so."""

from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest

from llds_core.evaluation.scores import averages
from llds_core.reporting.benchmark_scores import PAPER_AVERAGES, TABLES
from llds_core.worlds import QUESTION_SETS

PACKAGED = Path(str(files("llds_core") / "reporting" / "paper_numbers"))
OTHERS = Path(__file__).parents[2] / "results" / "paper"
PATHS = {path.stem: path for folder in (PACKAGED, OTHERS) for path in sorted(folder.glob("*.csv"))}
KEYS = ("model", "variant", "training", "method", "policy", "setting", "trick", "quantity")
MATHS = ["aime24", "aime25", "math500", "minerva", "olympiadbench"]
# Largest value of the columns that hold numbers.
LARGEST = dict.fromkeys((*QUESTION_SETS, *PAPER_AVERAGES, "llds_weight"), 1)
LARGEST |= dict.fromkeys(("collapse_step", "stable_until", "steps"), 1e5)
LARGEST |= dict.fromkeys(MATHS, 100)


def paper_table(name):
    texts = ("check", "bamboogle_n", "origin")
    table = pd.read_csv(PATHS[name], dtype=dict.fromkeys(texts, str))
    return table.fillna({text: "" for text in texts if text in table})


RESULTS = [name for name in PATHS if "bamboogle" in paper_table(name)]
ROUNDING = 0.00105  # three printed decimals of the mean and of its members


def test_the_package_holds_what_it_compares_with():
    assert {path.stem for path in PACKAGED.glob("*.csv")} == set(TABLES.values())
    assert len(PATHS) == 12 and len(RESULTS) == 6


@pytest.mark.parametrize("name", PATHS)
def test_every_table_is_complete_sourced_and_in_range(name):
    table = paper_table(name)
    assert len(table) >= 3 and table["source"].str.startswith("arXiv ").mean() > 0.5
    assert table["source"].str.strip().ne("").all()
    keys = [column for column in table if column in (*KEYS, "llds_weight")]
    assert not table.duplicated(keys).any()
    for column in set(table) & LARGEST.keys() - ({"average"} if "aime24" in table else set()):
        assert table[column].dropna().between(0, LARGEST[column]).all()


@pytest.mark.parametrize("name", RESULTS)
def test_printed_averages_follow_from_their_members_except_where_flagged(name):
    for row in paper_table(name).to_dict("records"):
        found = averages("files", row)
        names = {"general_average": "general", "multi_hop_average": "multi_hop", "average": "all"}
        wrong = [
            column
            for column, name in names.items()
            # NaN is of what is not printed.
            if found[name] is not None and abs(found[name] - row[column]) > ROUNDING
        ]
        assert wrong == (["average"] if row["check"] else []), (name, row["method"], row["check"])
        if row["check"]:
            _, printed, _, members, *_ = row["check"].split()
            assert float(printed) == row["average"]
            assert float(members) == pytest.approx(found["all"], abs=5.01e-5)
