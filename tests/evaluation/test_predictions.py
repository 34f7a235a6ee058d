"""Lines on disk: what a kill leaves, who may write, what is refused."""

import json

import pytest
from run_helpers import no_space, one_line

from llds_core.errors import ConfigError, DataError, RunError
from llds_core.evaluation.predictions import (
    append_predictions,
    open_evaluation,
    parse_shard,
    predictions_file,
    read_predictions,
    writing,
)

ROWS = [
    {"benchmark": "nq", "id": f"q{i}", "mode": "greedy", "sample": 0, "text": "a\u2028ü\r\n"}
    for i in range(4)
]
KEYS = [("nq", f"q{i}", "greedy", 0) for i in range(4)]


def write(path, rows):
    with writing(path):
        append_predictions(path, rows)


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("kept", [1, 20, -1])
def test_lines_come_back_and_a_torn_end_is_left_out_and_cut_off(tmp_path, lines, kept):
    path = predictions_file(tmp_path)
    write(path, ROWS[:1])
    write(path, ROWS[1:])
    assert list(read_predictions(tmp_path, KEYS).values()) == ROWS
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:lines]) + whole[lines][:kept])
    assert list(read_predictions(tmp_path, KEYS)) == KEYS[:lines]
    write(path, ROWS[lines:])
    assert path.read_bytes() == b"".join(whole)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken}", ":2 is not a prediction"),
        ('{"benchmark": "nq"}', ":2 is not a prediction"),
        ("[]", ":2 is not a prediction"),
        (json.dumps(ROWS[0]), ":2: nq/q0/greedy/0 is there twice"),
        (json.dumps(ROWS[0] | {"id": "other"}), ":2: nq/other/greedy/0 was not asked"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, words):
    text = json.dumps(ROWS[0]) + f"\n{line}\n" + json.dumps(ROWS[2]) + "\n"
    predictions_file(tmp_path).write_text(text)
    with pytest.raises(DataError) as caught:
        read_predictions(tmp_path, KEYS)
    assert words in one_line(caught)


def test_answers_of_all_shards_count_once(tmp_path):
    write(predictions_file(tmp_path, (1, 2)), [ROWS[2], ROWS[0]])
    write(predictions_file(tmp_path, (2, 2)), [ROWS[3]])
    write(predictions_file(tmp_path), [ROWS[1], ROWS[2]])
    found = read_predictions(tmp_path, KEYS)
    assert found == dict(zip(KEYS, ROWS, strict=True))


@pytest.mark.parametrize("shard", ["1-2", "4/3", "0/3", "1/", "a/b"])
def test_a_shard_is_one_of_how_many(shard):
    assert parse_shard("2/3") == (2, 3)
    with pytest.raises(ConfigError, match=f'--shard is "{shard}": give a part'):
        parse_shard(shard)


def test_a_file_has_one_writer(tmp_path):
    path = predictions_file(tmp_path, (1, 2))
    with writing(path), pytest.raises(RunError, match="being written by another process") as caught:
        write(path, ROWS)
    one_line(caught)
    write(path, ROWS)


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
    (tmp_path / "one" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest"):
        open_evaluation(tmp_path / "one", {}, {})


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(RunError, match="free space") as caught:
        append_predictions(predictions_file(tmp_path), ROWS)
    one_line(caught)
