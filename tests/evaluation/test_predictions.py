"""Lines on disk: what a kill leaves, who may write, what is refused."""

import json

import pytest
from run_helpers import no_space, one_line

from llds_core.errors import DataError, RunError
from llds_core.evaluation.predictions import (
    PredictionWriter,
    key_of,
    locked,
    merge,
    open_evaluation,
    predictions_file,
    read_predictions,
)

ROWS = [
    {"benchmark": "nq", "id": f"q{i}", "mode": "greedy", "sample": 0, "text": "a\u2028ü\r\n"}
    for i in range(4)
]
KEYS = [key_of(row) for row in ROWS]


def write(path, rows):
    with PredictionWriter(path) as writer:
        writer.append(rows)


def test_lines_come_back_as_they_were_written(tmp_path):
    path = predictions_file(tmp_path)
    write(path, ROWS[:1])
    write(path, ROWS[1:])
    assert list(read_predictions(path, KEYS).values()) == ROWS
    assert len(path.read_text("utf-8").split("\n")) == 5


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_end_is_left_out_and_cut_off(tmp_path, kept):
    path = predictions_file(tmp_path)
    write(path, ROWS)
    whole = path.read_bytes()
    first, last = whole[: whole.index(b"\n") + 1], whole.splitlines(keepends=True)[1]
    path.write_bytes(first + last[:kept])
    assert list(read_predictions(path, KEYS)) == KEYS[:1]
    write(path, ROWS[1:])
    assert path.read_bytes() == whole


def test_nothing_but_a_torn_line_is_an_empty_file(tmp_path):
    path = predictions_file(tmp_path)
    path.write_bytes(b'{"benchmark": "n')
    assert read_predictions(path, KEYS) == {}
    write(path, [])
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken}", ":2 is no prediction"),
        ('{"benchmark": "nq"}', ":2 is no prediction"),
        ("[]", ":2 is no prediction"),
        (json.dumps(ROWS[0]), ":2: nq/q0/greedy/0 is there twice"),
        (json.dumps(ROWS[0] | {"id": "other"}), ":2: nq/other/greedy/0 was not asked"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, words):
    path = predictions_file(tmp_path)
    path.write_text(json.dumps(ROWS[0]) + f"\n{line}\n" + json.dumps(ROWS[2]) + "\n")
    with pytest.raises(DataError) as caught:
        read_predictions(path, KEYS)
    assert words in one_line(caught)


def test_shards_are_merged_in_the_order_of_the_questions(tmp_path):
    write(predictions_file(tmp_path, (1, 2)), [ROWS[2], ROWS[0]])
    write(predictions_file(tmp_path, (2, 2)), [ROWS[3]])
    write(predictions_file(tmp_path), [ROWS[1]])
    assert merge(tmp_path, KEYS).keys() == set(KEYS)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["predictions.jsonl"]
    assert list(read_predictions(predictions_file(tmp_path), KEYS).values()) == ROWS


def test_a_merge_that_was_killed_is_merged_again(tmp_path):
    for file in (predictions_file(tmp_path), predictions_file(tmp_path, (1, 2))):
        write(file, ROWS[:2])
    assert list(merge(tmp_path, KEYS)) == KEYS[:2]


def test_a_shard_that_is_being_written_is_not_merged(tmp_path):
    shard = predictions_file(tmp_path, (1, 2))
    write(shard, ROWS[:1])
    with locked(shard), pytest.raises(RunError, match="being written by another process"):
        merge(tmp_path, KEYS)
    assert shard.exists()


def test_a_folder_holds_one_evaluation(tmp_path):
    identity = {"model": "abc", "limit": None, "names": ["x"]}
    open_evaluation(tmp_path / "one", identity, {"command": "c"})
    open_evaluation(tmp_path / "one", identity, {"command": "d"})
    for other, words in (
        (identity | {"limit": 5}, "limit=None, now 5"),
        (identity | {"new": 1}, "new=None, now 1"),
        ({"model": "abc", "limit": None}, r"names=\['x'\], now None"),
    ):
        with pytest.raises(RunError, match=words) as caught:
            open_evaluation(tmp_path / "one", other, {})
        assert "--out" in one_line(caught)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is no manifest"):
        open_evaluation(tmp_path, {}, {})


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    with PredictionWriter(predictions_file(tmp_path)) as writer:
        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(RunError, match="free space") as caught:
            writer.append(ROWS)
        one_line(caught)
