"""Published numbers: they are read whole, and they say of themselves what does not add up."""

import math

import pandas as pd
import pytest

from llds_core.errors import ConfigError, DataError
from llds_core.evaluation.suites import averages
from llds_core.reporting.paper_numbers import (
    MAIN_TABLES,
    TABLES,
    check_table,
    main_results,
    paper_table,
)
from llds_core.worlds import QUESTION_SETS

RESULTS = [name for name, columns in TABLES.items() if "bamboogle" in columns]
ROUNDING = 0.00105  # three printed decimals of the mean and of its members


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_complete_and_sourced(name):
    table = paper_table(name)
    assert len(table) >= 3 and table["source"].str.startswith("arXiv ").mean() > 0.5
    assert not table["source"].eq("").any()


@pytest.mark.parametrize("name", RESULTS)
def test_printed_averages_follow_from_their_members_except_where_flagged(name):
    for row in paper_table(name).to_dict("records"):
        found = averages("files", row)
        ours = {
            "general_average": found["general"],
            "multi_hop_average": found["multi_hop"],
            "average": found["all"],
        }
        wrong = [
            column
            for column, value in ours.items()
            if value is not None
            and not math.isnan(row[column])
            and abs(value - row[column]) > ROUNDING
        ]
        assert wrong == (["average"] if row["check"] else []), (name, row["method"], row["check"])
        if row["check"]:
            _, printed, _, members, *_ = row["check"].split()
            assert float(printed) == row["average"]
            assert float(members) == pytest.approx(found["all"], abs=5.01e-5)


def test_two_rows_are_flagged():
    flagged = {
        (name, row["method"], row["model"])
        for name in RESULTS
        for row in paper_table(name).to_dict("records")
        if row["check"]
    }
    assert flagged == {
        ("llds_table2", "StepSearch", "Qwen2.5-7B"),
        ("search_r1_table2", "IRCoT", "Qwen2.5-7B"),
    }


@pytest.mark.parametrize("name", RESULTS)
def test_bamboogle_scores_are_shares_of_the_stated_number_of_questions(name):
    for row in paper_table(name).to_dict("records"):
        fits = {
            n
            for n in (124, 125)
            if abs(round(row["bamboogle"] * n) / n - row["bamboogle"]) <= 0.0005001
        }
        stated = {int(n) for n in row["bamboogle_n"].split("/") if n}
        assert fits == stated, (name, row["method"])


def test_copied_rows_equal_search_r1s_except_two():
    """LLDS Table 2 changed two scores of R1 and one of Search-o1."""
    theirs = pd.concat([paper_table("search_r1_table2"), paper_table("search_r1_table3")])
    theirs["method"] = theirs["method"].replace({"GRPO": "Search-R1-GRPO", "PPO": "Search-R1-PPO"})
    key = ["model", "variant", "method"]
    theirs = theirs.drop_duplicates(key).set_index(key)
    differing = set()
    for name in ("llds_table1", "llds_table2"):
        table = paper_table(name)
        for row in table[table["origin"].str.startswith("copied from Search-R1")].to_dict(
            "records"
        ):
            other = theirs.loc[tuple(row[k] for k in key)]
            differing |= {(row["method"], b) for b in QUESTION_SETS if row[b] != other[b]}
    assert differing == {("R1", "popqa"), ("R1", "bamboogle"), ("Search-o1", "musique")}


@pytest.mark.parametrize(
    ("model", "variant", "before", "after", "gain"),
    [
        ("Qwen2.5-3B", "base", "Search-R1-GRPO", "GRPO+LLDS-MA", 41.0),
        # The 45.2 % that the paper prints: 0.303 is Search-R1's PPO, not its GRPO.
        ("Qwen2.5-3B", "base", "Search-R1-PPO", "GRPO+LLDS-MA", 45.2),
        ("Qwen2.5-3B", "instruct", "Search-R1-GRPO", "GRPO+LLDS", 31.3),
        ("Qwen2.5-3B", "instruct", "Search-R1-GSPO", "GSPO+LLDS", 36.3),
        ("Qwen2.5-7B", "base", "Search-R1-GRPO", "GRPO+LLDS", 37.1),
        ("Qwen2.5-7B", "instruct", "Search-R1-GRPO", "GRPO+LLDS", 22.0),
    ],
)
def test_headline_gains_follow_from_the_tables(model, variant, before, after, gain):
    table = pd.concat([paper_table(name) for name in MAIN_TABLES])
    scores = table.set_index(["model", "variant", "method"])["average"]
    ratio = scores[model, variant, after] / scores[model, variant, before]
    assert 100 * (ratio - 1) == pytest.approx(gain, abs=0.06)


def test_lp_reg_averages_follow_from_their_members():
    table = paper_table("lp_reg_table1")
    members = ["aime24", "aime25", "math500", "minerva", "olympiadbench"]
    assert (table[members].mean(axis=1) - table["average"]).abs().max() < 0.0101


def test_main_results_are_one_row_a_score():
    table = main_results()
    assert list(table.columns) == ["model", "variant", "method", "benchmark", "em", "source"]
    # CriticSearch prints no general benchmark, in two tables.
    assert len(table) == 7 * (20 + 17 + 3) - 2 * 3
    assert not table.duplicated(["model", "variant", "method", "benchmark"]).any()
    row = table.query("model == 'Qwen2.5-3B' and method == 'GSPO+LLDS' and benchmark == 'nq'")
    assert row["em"].tolist() == [0.489]


def test_a_damaged_table_is_named():
    table = pd.DataFrame([["0.1", "m", "", "", "", "here"]], columns=TABLES["llds_lambda"])
    check_table(table.copy(), "llds_lambda")
    for column, value, complaint in (
        ("source", " ", r"llds_lambda\.csv:2 has no source"),
        ("llds_weight", "much", 'llds_weight is "much"'),
        ("llds_weight", "1.5", "from 0 to 1"),
        ("collapse_step", "nan", 'collapse_step is "nan"'),
    ):
        with pytest.raises(DataError, match=complaint):
            check_table(table.assign(**{column: value}), "llds_lambda")
    with pytest.raises(DataError, match="repeats an earlier row"):
        check_table(pd.concat([table, table], ignore_index=True), "llds_lambda")
    with pytest.raises(DataError, match="it takes llds_weight"):
        check_table(table.drop(columns="note"), "llds_lambda")
    with pytest.raises(ConfigError, match='did you mean "llds_table'):
        paper_table("llds_tables")
