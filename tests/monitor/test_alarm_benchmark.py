"""The data set and its tables are what the published runs give, and thresholds too."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from llds_core.errors import DataError
from llds_core.monitor.detectors import ALARMS, DETECTORS, EVIDENCE, Detector

PUBLISHED = Path(__file__).parents[2] / "results/published"
DATA_SET = PUBLISHED / "collapse-runs"
sys.path.insert(0, str(DATA_SET))
import make as MAKE  # noqa: E402
import score as SCORE  # noqa: E402
from score import REGISTERED, RULE, benchmark, judged, load_labelled, outcome  # noqa: E402

INDEX = pd.read_csv(DATA_SET / "index.csv")
TABLE = pd.read_csv(DATA_SET / "benchmark.csv")


@pytest.fixture(scope="module")
def runs():
    return load_labelled(DATA_SET)


def as_written(table, form="%.6g"):
    return pd.read_csv(io.StringIO(table.to_csv(index=False, float_format=form)))


def test_the_index_is_that_of_the_published_studies() -> None:
    made = [MAKE.label_runs(PUBLISHED / recipe, PUBLISHED) for recipe in INDEX["recipe"].unique()]
    pd.testing.assert_frame_equal(as_written(pd.concat(made)), INDEX)
    assert [*INDEX] == ["run", "arm", "recipe", "seed", "label", "collapse_step", "steps"]
    assert INDEX["run"].is_unique
    with pytest.raises(DataError, match=r"runs\.csv does not exist"):
        MAKE.label_runs(PUBLISHED, PUBLISHED)


def test_thresholds_and_advice_are_those_of_the_runs_they_name(runs) -> None:
    """Guards the pre-registration: a change of score, rule or preset moves no threshold."""
    made = MAKE.evidence(runs, PUBLISHED / ALARMS["chosen_on"])
    assert yaml.safe_load(yaml.safe_dump(made)) == EVIDENCE


def test_tables_equal_the_runs(runs) -> None:
    measured = TABLE[TABLE["judged_by"] != "its own"].reset_index(drop=True)
    pd.testing.assert_frame_equal(as_written(benchmark(runs)), measured, check_dtype=False)
    others = TABLE[TABLE["judged_by"] == "its own"].reset_index(drop=True)
    read = as_written(MAKE.external(runs, DATA_SET / "rl_doctor_alarms.csv"))
    pd.testing.assert_frame_equal(read, others[read.columns], check_dtype=False)
    saved_of = pd.read_csv(DATA_SET / "saved_compute.csv").groupby(["recipe", "detector"])
    for (recipe, rule), kept in saved_of:
        part = [run for run in runs if run.recipe == recipe]
        saved = as_written(MAKE.saved_compute(part, judged(part, DETECTORS[rule]), DETECTORS[rule]))
        kept = kept[saved.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(saved, kept, check_dtype=False)
    verdicts = as_written(MAKE.verdicts(runs))
    assert verdicts.equals(pd.read_csv(DATA_SET / "verdicts.csv"))


def test_what_the_registrations_and_the_docs_say_of_known_runs() -> None:
    part = TABLE[(TABLE["recipe"] == ALARMS["chosen_on"]) & TABLE["auc"].notna()]
    rivals = part.set_index("detector").drop(["reuse", "clip_times_entropy"])
    rule, now = (rivals.loc[name] for name in REGISTERED)
    assert rule["early"] == rivals["early"].max() and rule["false"] <= rivals["false"].median()
    assert (rivals.loc[rivals["early"] >= 20, "median_lead"] <= rule["median_lead"]).all()
    severities = {name: each.severity for name, each in DETECTORS.items()}
    assert {n for n, s in severities.items() if s == "critical"} == {RULE, "not_finite"}
    assert (now["early"], now["false"], rule["early"]) == (27, 4, 29)
    named = part.set_index("detector")
    product, growth = named.loc["clip_times_entropy"], named.loc["gradient_growth"]
    assert product["early_by_3"] <= rule["early_by_3"]
    assert rule["early_by_3"] == rivals["early_by_3"].max()
    assert named.loc["likelihood_displacement", "early"] < rule["collapsed"] / 2
    assert growth["early"] <= 0.1 * growth["collapsed"]
    assert named.loc["reuse", "false"] > named.loc["reuse", "healthy"] / 2
    page = (DATA_SET.parents[2] / "docs/monitor.md").read_text("utf-8")
    saved = pd.read_csv(DATA_SET / "saved_compute.csv")
    blocks = [MAKE.told(TABLE, ALARMS["chosen_on"]), MAKE.told_of_saving(saved)]
    blocks += MAKE.told_of_unseen(TABLE, pd.read_csv(DATA_SET / "verdicts.csv"))
    assert MAKE.with_numbers(page, *blocks) == page


class FakeRun(SCORE.LabelledRun):
    log = SimpleNamespace(table=pd.DataFrame({"step": range(1, 41)}))


LABELS = {"a": "collapsed", "b": "healthy", "c": "healthy", "d": "declined", "e": "collapsed"}
FAKES = [
    FakeRun(name, "x" if name in "ab" else "y", "new", label, 10 if name in "ae" else None, Path())
    for name, label in LABELS.items()
]


def test_outcomes_by_hand() -> None:
    alarms = {"a": 6, "e": 10, "b": 30, "c": 31, "d": 2}
    found = outcome(FAKES, alarms)
    assert (found["collapsed"], found["early"], found["median_lead"]) == (2, 1, 4)
    assert (found["healthy"], found["false"], found["false_ever"]) == (2, 1, 2)
    assert (found["declined"], found["declined_named"]) == (1, 1)
    assert SCORE.exact(0, 10) == pytest.approx((0, 1 - 0.025 ** (1 / 10)))
    assert SCORE.exact(0, 0) == (0, 1)


def test_a_threshold_never_sees_its_own_arm() -> None:
    peaks = {"a": 9.0, "b": 1.0, "c": 5.0, "d": 7.0, "e": 9.0}
    scores = {name: np.full(40, value) for name, value in peaks.items()}
    assert SCORE.held_out("quantile", FAKES, scores) == {"x": 5.0, "y": 1.0}
    choose = SCORE.choose_threshold
    assert choose("quantile", FAKES, peaks) == 5.0 and choose(0.5, FAKES, peaks) == 0.5
    assert choose("safe", FAKES, peaks | {"a": 3.0}) == 1.0
    assert choose("quantile", FAKES[:1], peaks) == np.inf


def test_on_another_recipe_thresholds_are_the_published_ones(tmp_path: Path, runs) -> None:
    """A copy of runs under another name is scored as new ones, whatever its own best threshold."""
    (tmp_path / "set").mkdir()
    (tmp_path / "new").symlink_to(PUBLISHED / ALARMS["chosen_on"])
    part = INDEX[INDEX["recipe"] == ALARMS["chosen_on"]]
    part = part[part["arm"].isin(["grpo", "grpo-epochs-1", "grpo-kl-0.1"])]
    name = "new/" + part["run"].str.rpartition("/")[2]
    part.assign(recipe="new", run=name).to_csv(tmp_path / "set/index.csv", index=False)
    table = benchmark(load_labelled(tmp_path / "set")).set_index("detector")
    assert set(table["judged_by"]) == {"fixed"}
    assert table.loc[RULE, "threshold"] == EVIDENCE["detectors"][RULE]["threshold"]
    for rule in REGISTERED:
        told = [verdict for _, verdict, *_ in MAKE.statements(rule, table)]
        assert told == ["not tested"] * 4
        enough = table.assign(collapsed=5, healthy=10)
        assert {v for _, v, *_ in MAKE.statements(rule, enough)} <= {"holds", "does not hold"}
        mine = enough.index == rule
        low = enough.assign(early=np.where(mine, 3, 5), auc=np.where(mine, 0.5, 0.9), false=0)
        verdicts = {name: verdict for name, verdict, *_ in MAKE.statements(rule, low)}
        last = "orders runs best" if rule == "clip_saturation" else "warns of most"
        assert verdicts["warns in time"] == verdicts[last] == "does not hold"


def test_a_registration_is_judged_on_runs_that_began_after_it(runs, monkeypatch) -> None:
    runs = [run for run in runs if run.recipe in ("desk", ALARMS["chosen_on"])]
    others = [run for run in runs if run.recipe == "desk"]
    middle = sorted(run.started for run in others)[len(others) // 2]
    monkeypatch.setattr(MAKE, "REGISTERED", {"clip_saturation": "", "reward_drop": middle})
    later = [run for run in others if run.started > middle]
    found = MAKE.verdicts(runs).set_index(["rule", "statement"])["value"]
    for rule, judged_on in (("reward_drop", later), ("clip_saturation", others)):
        early = outcome(judged_on, judged(judged_on, DETECTORS[rule]))
        share = early["early"] / early["collapsed"]
        assert found[rule, "warns in time"] == pytest.approx(share)
    assert len(later) < len(others)


def test_anybodys_detector_can_be_scored(runs, capsys, tmp_path, monkeypatch) -> None:
    mine = Detector("mine", lambda reward: -np.asarray(reward), threshold=-0.1)
    row = benchmark(runs[:20], {"mine": mine}).iloc[0]
    assert row["detector"] == "mine" and row["healthy"] + row["collapsed"] + row["declined"] == 20
    assert SCORE.OTHERS["gradient_growth"].name not in DETECTORS
    SCORE.main(["score:gradient_growth"])
    said = capsys.readouterr().out
    assert "gradient_growth" in said and len(said.splitlines()) == 2
    # Of the folder that the command is given in, on any column of the runs.
    lost = "def lost(loglik_change_correct): return -loglik_change_correct\n"
    (tmp_path / "mine.py").write_text(lost + "def bad(rewrd): ...")
    monkeypatch.chdir(tmp_path)
    SCORE.main(["mine:lost"])
    head, row = capsys.readouterr().out.splitlines()
    assert row.split()[1] == "lost"
    auc = row.replace("arms held out", "held").split()[head.split().index("auc")]
    assert float(auc) != 0.5  # as of a score that is never there
    with pytest.raises(SystemExit, match="no run logs rewrd"):
        SCORE.main(["mine:bad"])


def test_rl_doctor_is_replayed_as_published() -> None:
    rl_doctor = pytest.importorskip("rl_doctor", reason="needs pip install rldoctor==0.2.0")
    if rl_doctor.__version__ != "0.2.0":
        pytest.skip(f"rl-doctor {rl_doctor.__version__} is not the published 0.2.0")
    chosen = INDEX.loc[INDEX["arm"] == "grpo", "run"].tolist()[:2]
    words = [sys.executable, str(DATA_SET / "replay_rl_doctor.py"), *chosen]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    kept = pd.read_csv(DATA_SET / "rl_doctor_alarms.csv")
    again = pd.read_csv(io.StringIO(done.stdout))
    pd.testing.assert_frame_equal(again, kept[kept["run"].isin(chosen)].reset_index(drop=True))
