"""Lines on disk: what a kill leaves, who may write, what is refused."""

import json

import pytest
from run_helpers import refused

from llds_core.errors import DataError, RunError
from llds_core.evaluation.predictions import Predictions
from llds_core.files import append_lines

ROWS = [
    {"benchmark": "nq", "id": f"q{i}", "mode": "greedy", "sample": 0, "text": "a\u2028ü\r\n"}
    for i in range(4)
]
KEYS = [("nq", f"q{i}", "greedy", 0) for i in range(4)]


def write(folder, rows, shard=None):
    made = Predictions(folder, shard)
    with made.writing():
        append_lines(made.path, rows)
    return made


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("kept", [1, 20, -1])
def test_lines_come_back_and_a_torn_end_is_left_out_and_cut_off(tmp_path, lines, kept):
    write(tmp_path, ROWS[:1])
    made = write(tmp_path, ROWS[1:])
    assert list(made.read().values()) == ROWS
    whole = made.path.read_bytes().splitlines(keepends=True)
    made.path.write_bytes(b"".join(whole[:lines]) + whole[lines][:kept])
    assert list(made.read()) == KEYS[:lines]
    write(tmp_path, ROWS[lines:])
    assert made.path.read_bytes() == b"".join(whole)


@pytest.mark.parametrize("line", ["{broken}", '{"benchmark": "nq"}', "[]"])
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    made = Predictions(tmp_path)
    made.path.write_text(json.dumps(ROWS[0]) + f"\n{line}\n" + json.dumps(ROWS[2]) + "\n")
    refused(DataError, ":2 is not a prediction", made.read)


def test_answers_of_all_shards_count_once(tmp_path):
    write(tmp_path, [ROWS[2], ROWS[0]], (1, 2))
    write(tmp_path, [ROWS[3]], (2, 2))
    made = write(tmp_path, [ROWS[1], ROWS[2]])
    assert made.read() == dict(zip(KEYS, ROWS, strict=True))


def test_a_folder_holds_one_evaluation(tmp_path):
    identity = {"model": "abc", "limit": None, "names": ["x"]}
    made = Predictions(tmp_path / "one")
    made.claim(identity, {"command": "c"})
    made.claim(identity, {"command": "d"})
    for other, words in (
        (identity | {"limit": 5}, "limit=None, now 5"),
        (identity | {"new": 1}, "new=None, now 1"),
        ({"model": "abc", "limit": None}, r"names=\['x'\], now None"),
    ):
        assert "--out" in refused(RunError, words, made.claim, other, {})
    (tmp_path / "one" / "manifest.json").write_text("{}")
    refused(DataError, r"manifest\.json is not a manifest", made.claim, {}, {})
