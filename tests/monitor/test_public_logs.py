"""Logs of other people: how they are judged, and that the page says what the table holds."""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llds_core.monitor.training_log import TrainingLog, to_log

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published"
README = (ROOT / "README.md").read_text("utf-8")
sys.path.insert(0, str(PUBLISHED / "collapse-runs"))
import public_logs as LOGS  # noqa: E402
from make import with_numbers  # noqa: E402
from score import NOT_LOGGED, end_row, load_labelled, public_counts  # noqa: E402

YES, NOT, NONE = "holds", "does not hold", "not tested"
RISE = [i / 20 for i in range(1, 21)]  # the mean of three is 0.95 at best
REWARDS = {
    "collapsed": [*RISE, *[0.5] * 3, *[0.1] * 10],
    "dipped": [*RISE, *[0.5] * 4, *[0.9] * 9],
    "fell": [*RISE, *[0.8] * 10, *[0.5] * 3],
    "healthy": [*RISE, *[0.9] * 13],
    "negative": [-0.1, *RISE, *[0.1] * 12],
    "returned": [*RISE, *[0.5] * 8, *[1.0] * 5],
}


def folder_of(path: Path, names: Sequence[str], floor: str = "") -> Path:
    """Logs `<k>.csv` with an index; every one of a repository of its own."""
    rows = []
    for number, name in enumerate(names):
        file, rewards = f"{number}.csv", REWARDS.get(name, ())
        steps = range(10, 10 * len(rewards) + 10, 10)
        made = pd.DataFrame({"step": steps, "reward": rewards}).to_csv(index=False)
        (path / file).write_text(made if rewards else "no log\n")
        rows.append((f"them/{number:02}", "c" * 40, "a.csv", file, "search", floor))
    columns = ["repository", "commit", "path", "file", "kind", "floor"]
    pd.DataFrame(rows, columns=columns).to_csv(path / "index.csv", index=False)
    return path


def test_a_log_gets_the_label_of_the_data_set_and_its_alarms(tmp_path: Path) -> None:
    table = LOGS.read_all(folder_of(tmp_path, [*REWARDS, "broken"]))
    labels = ["collapsed", "declined", "declined", "healthy", "not judged", "healthy", "not read"]
    assert table["label"].tolist() == labels
    # Means of three: 0.5 at row 23, and below half of 0.95 from row 24 on.
    assert table["collapse_row"].tolist()[0] == 24 and table["collapse_row"].isna().sum() == 6
    assert table["reward_drop"].tolist()[:6] == [23, 23, 33, 0, 0, 23]
    for ends in LOGS.ENDS:  # the sixth row of the alarm
        assert table[ends].dropna().to_dict() == {0: 28, 5: 28}
    for later in ("ends_later", "ends_registered_steady_later", "ends_now_later"):
        assert table[later].dropna().to_dict() == pytest.approx({0: 0.1 / 0.95, 5: 1 / 0.95})
    assert table["steady_label"].tolist()[:6] == labels[:6]
    assert (table["entropy_rise"][:6] == NOT_LOGGED).all()
    assert "no number of a known metric" in table["not_read"][6]
    assert LOGS.fates(table) == {"collapsed": 1, "ended below": 1, "came back": 2}
    row = public_counts(table).loc["reward_drop"]
    assert row.tolist() == [1, 1, 4, 2, 3]  # row 33 is behind the first 30


def test_rewards_count_from_the_floor_that_the_index_tells(tmp_path: Path) -> None:
    table = LOGS.read_all(folder_of(tmp_path, ["negative"], floor="-0.1"), None)
    assert table["label"].tolist() == ["collapsed"]


@pytest.mark.parametrize(
    ("names", "alarm", "stop"),
    [
        (["collapsed"] * 4 + ["healthy"] * 20, [NONE] * 3, [NONE] * 3),
        (["collapsed"] * 5 + ["healthy"] * 10, [YES] * 3, [YES] * 3),
        (["collapsed"] * 5 + ["dipped"] * 10, [YES, NOT, YES], [NONE, NONE, YES]),
        (["collapsed"] * 8 + ["healthy"] * 8 + ["returned"] * 2, [YES] * 3, [NOT, YES, YES]),
        (["collapsed"] * 7 + ["healthy"] * 8 + ["returned"] * 2, [YES] * 3, [NOT, YES, NOT]),
    ],
)
def test_statements_by_hand(tmp_path, names: list[str], alarm: list[str], stop: list[str]) -> None:
    table = LOGS.read_all(folder_of(tmp_path, names))
    verdict = [said.partition(",")[0] for _, said in LOGS.statements(table)]
    assert verdict == alarm
    for ends, means in product(LOGS.ENDS, LOGS.MEANS):
        assert [s.partition(",")[0] for s in LOGS.stop_statements(table, ends, means)] == stop
    rules = (("0", "first"), *(("lowest", when) for when in LOGS.GATHERED))
    every = [table.assign(counted_from=name, gathered=when) for name, when in rules]
    said = LOGS.told(pd.concat(every))
    assert said.count(f"{len(names)} logs of {len(names)} repositories. Not read: 0.") == 3


def log_of(reward: np.ndarray) -> TrainingLog:
    return to_log([{"step": s, "reward": r} for s, r in enumerate(reward.tolist(), 1)], "made up")


def test_a_fall_out_of_the_noise_ends_a_run() -> None:
    """One response per row, right in half of them: the fall shows in means of more rows."""
    reward = np.random.default_rng(0).binomial(1, 0.5, 200)
    reward[120:] = 0
    assert 125 < (end_row(log_of(reward)) or 0) < 160


@pytest.mark.parametrize(
    ("rows", "share", "responses"), [(500, 0.1, 64), (500, 0.3, 8), (300, 0.2, 8), (60, 0.3, 24)]
)
def test_noise_alone_ends_no_run(rows: int, share: float, responses: int) -> None:
    """Runs whose mean never changes. Six low rows alone end most of the long ones."""
    rng = np.random.default_rng(1)
    logs = [log_of(rng.binomial(responses, share, rows) / responses) for _ in range(20)]
    low = sum(end_row(log, lambda *_: True) is not None for log in logs)
    assert low >= (15 if rows > 60 else 1)
    assert sum(end_row(log) is not None for log in logs) <= 1


def test_steady_means_by_hand() -> None:
    assert LOGS.steady_window(np.array([0.5] * 9)) == 3
    # Noise of 0.14: the best mean of 3 is 0.53, of which a tenth asks for 8 rows; of the best mean
    # of 8, which is 0.5, it is no more.
    waves = np.array([0.4, 0.6] * 20)
    assert LOGS.steady_window(waves) == 8
    assert LOGS.steady_window(waves[:7]) is None and LOGS.steady_window(np.zeros(9)) is None


def test_the_page_says_what_the_table_holds() -> None:
    page = LOGS.PAGE.read_text("utf-8")
    table = pd.read_csv(LOGS.PUBLIC, dtype={"counted_from": str})
    assert with_numbers(page, LOGS.told(table), marker="public") == page
    seen = public_counts(table[table["counted_from"] != "0"]).loc["reward_drop"]
    warned = f"warned of {seen['early']} of {seen['collapsed']} collapses"
    said = f"{warned}, and of {seen['ever']} of {seen['others']} runs without one"
    text = " ".join(page.split())
    assert said in README and said in text
    judged = table[(table["counted_from"] != "0") & table["label"].isin(LOGS.LABELS)]
    better = (judged["ends_now_later"] > 1).sum()
    ended = f"{judged['ends_now'].notna().sum()} of the {len(judged)} public logs"
    assert f"{ended} that have a label, of which {better} got better later" in text


def test_what_the_docs_say_of_patience_on_the_runs_made_here() -> None:
    counts = Counter[str]()
    for run in load_labelled(PUBLISHED / "collapse-runs"):
        if run.recipe != "smol":
            ended = end_row(run.log) is not None
            counts += Counter({run.label: 1, f"{run.label}, ended": int(ended)})
    page = LOGS.PAGE.read_text("utf-8")
    assert f"{counts['collapsed, ended']} of {counts['collapsed']} collapsed ones, " in page
    assert f"{counts['declined, ended']} of {counts['declined']} that declined" in page
    assert counts["healthy"] > 90 and not counts["healthy, ended"]
