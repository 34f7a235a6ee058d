"""Published numbers beside ours: deltas by hand, and what was not run."""

import json

import numpy as np
import pandas as pd
import pytest
from run_helpers import refused

from llds_core.errors import ConfigError, DataError
from llds_core.files import project_path
from llds_core.reporting import benchmark_scores
from llds_core.reporting.artefacts import save_table
from llds_core.reporting.benchmark_scores import desk_scores, desk_view, paper_comparison
from llds_core.reporting.run_view import StoredRun
from llds_core.study.published import publish_evaluation
from llds_core.worlds import QUESTION_SETS
from llds_core.worlds.atlas import KINDS

SCORES = ("em", "f1", "sub_em", "em_tagged", "valid_answers", "searches")


def entry(em, **values):
    bounds = {f"{name}_{side}": em for name in SCORES[:3] for side in ("low", "high")}
    return dict.fromkeys(SCORES, em) | bounds | {"em_low": em - 0.01, "em_high": em + 0.02} | values


def summary(ems, method="grpo", seed=0, agent="policy"):
    """A summary of the seven sets; `ems` in their order."""
    means = {"general": np.mean(ems[:3]), "multi_hop": np.mean(ems[3:]), "all": np.mean(ems)}
    sets = zip(QUESTION_SETS, ems, strict=True)
    scores = {
        "benchmarks": {name: entry(em, n=100, seconds=1.0) for name, em in sets},
        "averages": {name: entry(mean) for name, mean in means.items()},
    }
    known = {"profile": "paper-3b-instruct", "agent": agent, "method": method, "run_seed": seed}
    known |= {"questions": 700, "identity": {"limit": None, "split": "test"}}
    return known | {"world": "files", "modes": {"greedy": scores, "sampled": scores}}


def published(tmp_path, *summaries):
    for number, each in enumerate(summaries):
        folder = tmp_path / f"made{number}"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(each))
        publish_evaluation(folder, tmp_path / "published")
    return benchmark_scores.published_evaluations(tmp_path / "published")


@pytest.mark.parametrize(
    ("limit", "split", "deviations", "status"),
    [
        (None, "test", [], "run"),
        (70, "test", [], "run with 700 questions instead of all"),
        (None, "dev", [], "run with the dev split instead of test"),
        (70, "test", ["evaluation.questions is 70"], "run with evaluation.questions is 70"),
    ],
)
def test_a_part_of_the_questions_is_said(tmp_path, limit, split, deviations, status):
    said = {"identity": {"limit": limit, "split": split}, "deviations": deviations}
    table = published(tmp_path, summary([0.5] * 7) | said)
    assert set(paper_comparison("table1", table)["status"]) == {"not run", status}


def cell(table, method, benchmark, variant="instruct"):
    of = table[(table["method"] == method) & (table["benchmark"] == benchmark)]
    return of[of["variant"] == variant].iloc[0]


def test_nothing_run_is_said_in_every_row(tmp_path):
    none = benchmark_scores.published_evaluations(tmp_path)
    tables = [paper_comparison(name, none) for name in benchmark_scores.TABLES]
    assert none.empty and {*benchmark_scores.METHODS} <= {*pd.concat(tables)["method"]}
    for table in tables:
        assert (table["status"] == benchmark_scores.NOT_RUN).all() and table["ours"].isna().all()
        assert (table["n"] == 0).all() and table["source"].str.contains("arXiv").all()
        view = benchmark_scores.comparison_view(table)
        assert (view["ours"] == "–").all() and len(view) == len(table) // 10


def test_ours_stands_beside_the_published_number_with_its_delta(tmp_path):
    found = published(tmp_path, summary([0.4, 0.6, 0.5, 0.3, 0.3, 0.1, 0.2]))
    table = paper_comparison("table1", found)
    row = cell(table, "Search-R1-GRPO", "nq")
    assert (row["published"], row["ours"], row["n"], row["seeds"]) == (0.397, 0.4, 100, 1)
    assert row["delta"] == pytest.approx(0.003)
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((0.39, 0.42))
    average = cell(table, "Search-R1-GRPO", "average")
    assert average["ours"] == pytest.approx(2.4 / 7)
    assert average["delta"] == pytest.approx(2.4 / 7 - 0.336) and average["n"] == 700
    for method, variant in (("Search-R1-GRPO", "base"), ("GRPO+LLDS", "instruct"), ("R1", "base")):
        assert cell(table, method, "nq", variant)["status"] == benchmark_scores.NOT_RUN
    view = benchmark_scores.comparison_view(table)
    [index] = view.index[view["method"] == "ours (delta)"]
    assert view["method"][index - 1] == "Search-R1-GRPO"
    assert view["NQ"][index] == "0.400 [0.390, 0.420] (+0.003)"
    assert view["ours"][index - 1] == "10 of 10"


def test_several_seeds_are_averaged(tmp_path):
    runs = [summary([em] * 7, "llds-action", seed) for seed, em in enumerate((0.40, 0.44, 0.48))]
    row = cell(paper_comparison("table1", published(tmp_path, *runs)), "GRPO+LLDS", "nq")
    assert row["seeds"] == 3 and row["ours"] == pytest.approx(0.44)
    # Deviation 0.04 over three seeds, t(2) at 97.5 % is 4.3027: half width 0.0994.
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((0.3406, 0.5394), abs=1e-4)


def test_a_baseline_is_published_under_its_own_name_a_score_of_nobody_only_printed(tmp_path):
    found = published(tmp_path, summary([0.1] * 7, method=None, agent="direct"))
    assert set(found["method"]) == {"direct"}
    assert cell(paper_comparison("table1", found), "Direct Inference", "nq")["ours"] == 0.1
    (tmp_path / "summary.json").write_text(json.dumps(summary([0.25] * 7, method=None)))
    text = benchmark_scores.score_lines(tmp_path)
    assert "bamboogle  greedy 100 0.250 [0.240, 0.270]" in text and "average_multi_hop" in text
    into = tmp_path / "published"
    refused(ConfigError, "--method", publish_evaluation, tmp_path, into)
    refused(DataError, "holds no scores", publish_evaluation, tmp_path / "absent", into)


def test_what_the_paper_says_of_a_weight_and_of_a_figure():
    figures, weights = benchmark_scores.paper_says(project_path("results/paper"))
    assert weights == {0.0: "≈ 200", 0.01: "≈ 220", 0.2: "none"}
    assert figures["observation match at step 140"] == "about 60 %"


def run(seed, em=None, **manifest):
    evaluation = {}
    if em is not None:
        entry = {"n": 10, "em": em, "low": em - 0.1, "high": em + 0.1, "searches": 1.5}
        kinds = dict.fromkeys(KINDS, entry) | {"all": {"em": 9.0}}
        kinds["city-country"] = entry | {"em": em + 0.28, "n": 30}
        evaluation = {"best": {"results": {"greedy": kinds}}}
    manifest |= {"profile": "desk", "method": "grpo", "seed": seed, "evaluation": evaluation}
    return StoredRun(None, manifest, pd.DataFrame())


def test_desk_averages_are_over_kinds_and_seeds(tmp_path):
    scores = desk_scores([run(1, 0.2), run(2, 0.4)], "desk", tmp_path)
    one = scores[(scores["seed"] == 1) & (scores["benchmark"] == "average")].iloc[0]
    assert one["em"] == pytest.approx(0.2 + 0.28 / 7) and one["n"] == 90
    row, *_ = desk_view(scores).to_dict("records")
    assert (row["method"], row["seeds"], row["city-capital"]) == ("GRPO", 2, "0.300")
    assert (row["one-hop"], row["two-hop"]) == ("0.370", "0.300")  # two seeds have no interval
    assert row["all"] == "0.340" and row["contained"] == "–"
    three = [run(1, 0.0), run(2, 0.4), run(3, 0.7)]
    for runs, name, shown in (
        (three, "one-hop", "0.437 [0.000, 1.000]"),  # of a share
        ([run(1, 0.2)], "all", "0.240"),
    ):
        assert desk_view(desk_scores(runs, "desk", tmp_path))[name][0] == shown


def test_what_was_not_run_has_no_row_among_the_desk_scores(tmp_path):
    runs = [run(0), run(1, 0.2, arm="grpo-kl-0.1", label="GRPO, KL 0.1")]
    (row,) = desk_view(desk_scores(runs, "desk", tmp_path), runs).to_dict("records")
    assert (row["method"], row["seeds"]) == ("GRPO, KL 0.1", 1)  # as its study calls it
    assert desk_view(desk_scores(runs[:1], "desk", tmp_path)).empty


def test_baselines_stand_below_the_runs(tmp_path):
    rows = [
        {"baseline": "rag", "mode": mode, "benchmark": name, "n": 9, "searches": 1.0}
        | {"em": 0.1, "em_low": 0.05, "em_high": 0.2, "sub_em": 0.5, "valid_answers": 0.25}
        for mode in ("greedy", "sampled")
        for name in (*KINDS, "average_one_hop", "average_two_hop", "average")
    ]
    save_table(pd.DataFrame(rows), tmp_path / "desk", "baselines")
    scores = desk_scores([run(1, 0.2)], "desk", tmp_path)
    assert (scores["profile"] == "desk").all()
    row = desk_view(scores).to_dict("records")[1]
    assert row["method"] == "SmolLM2 rag" and row["all"] == "0.100 [0.050, 0.200]"
    assert (row["contained"], row["in tags"], row["searches"]) == ("0.500", "0.250", "1.0")
    assert row["seeds"] == "–"
    none = scores.assign(em=0.0, em_low=0.0, em_high=0.0)
    assert desk_view(none).to_dict("records")[1]["all"] == "0.000 [0.000, 0.336]"
