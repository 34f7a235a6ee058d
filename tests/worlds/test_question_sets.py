"""Benchmarks and the training mix, from files in the published schemas."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files_world import write_files_world

from llds_core.errors import DataError
from llds_core.worlds import GENERAL, MULTI_HOP, QUESTION_SETS, Question, build_files_world
from llds_core.worlds.downloads import SOURCES
from llds_core.worlds.question_sets import MIX_COUNTS, load_mix, load_question_set

ROW = {"id": "test_0", "question": "who?", "golden_answers": ["Röntgen", "Roentgen"]}
NAN = float("nan")


def jsonl(folder: Path, *rows) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def parquet(folder: Path, *rows) -> Path:
    path = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_the_table_is_that_of_the_papers():
    assert GENERAL == ("nq", "triviaqa", "popqa")
    assert MULTI_HOP == ("hotpotqa", "2wiki", "musique", "bamboogle")
    assert sum(one.questions for one in QUESTION_SETS.values()) == 51_713
    assert sum(MIX_COUNTS.values()) == 169_615
    assert [one.file for one in QUESTION_SETS.values()] == SOURCES["questions"].files


def test_a_question_knows_its_benchmark_and_group(tmp_path, caplog):
    path = jsonl(tmp_path, ROW, ROW | {"id": 7, "golden_answers": ["", "a b", "  "]})
    first, second = load_question_set("nq", path)
    known = {"benchmark": "nq", "kind": "nq", "group": "general", "hops": "single"}
    assert first == Question("nq/test_0", "who?", ("Röntgen", "Roentgen"), known)
    assert second == Question("nq/7", "who?", ("a b",), known), "a blank answer answers nothing"
    assert load_question_set("2wiki", path)[0].metadata["hops"] == "multi"
    assert "2 questions, the papers have 3610" in caplog.text


def test_metadata_keeps_plain_values_and_no_gold_paragraphs(tmp_path):
    theirs = {"type": "bridge", "level": 3, "context": {"title": ["x"]}, "long": "x" * 300}
    row = ROW | {"metadata": theirs | {"kind": "theirs", "nan": NAN}}
    (question,) = load_question_set("hotpotqa", jsonl(tmp_path, row))
    known = {"benchmark": "hotpotqa", "kind": "hotpotqa", "group": "multi-hop", "hops": "multi"}
    assert question.metadata == {"type": "bridge", "level": 3} | known


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": True}, '"id" is True'),
        ({"id": NAN}, '"id" is nan'),
        ({"question": "  "}, "non-blank"),
        ({"question": NAN}, '"question" is nan'),
        ({"golden_answers": []}, "at least one"),
        ({"golden_answers": ["", " "]}, "at least one"),
        ({"golden_answers": "Paris"}, "\"golden_answers\" is 'Paris': give a list"),
        ({"golden_answers": [1997]}, '"golden_answers" is [1997]: give a list'),
        ({"metadata": [1]}, '"metadata" is [1]'),
        ({"id": "test_0"}, "is taken by"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, complaint):
    path = jsonl(tmp_path, ROW, ROW | {"id": "1"} | change)
    with pytest.raises(DataError) as caught:
        load_question_set("nq", path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and complaint in message and "\n" not in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data_source": "squad"}, "\"data_source\" is 'squad': it takes one of nq, triviaqa"),
        ({"question": None}, '"question" is None'),
        ({"id": "test_0"}, "is taken by"),
    ],
)
def test_a_bad_row_of_the_mix_is_named(tmp_path, change, complaint):
    row = ROW | {"data_source": "nq"}
    path = parquet(tmp_path, row, row | {"id": "test_1"} | change)
    with pytest.raises(DataError) as caught:
        load_mix(path)
    assert str(caught.value).startswith(f"{path} row 2: ") and complaint in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no question"):
        load_question_set("nq", jsonl(tmp_path))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    for path in (tmp_path / "bad.parquet", tmp_path / "none", parquet(tmp_path, {"a": 1})):
        with pytest.raises(DataError, match="cannot be read as Search-R1's parquet file"):
            load_mix(path)


def test_the_world_of_files_holds_mix_and_benchmarks(tmp_path):
    write_files_world(tmp_path, train=60, test=1)
    passages = SimpleNamespace()
    world = build_files_world(tmp_path, passages=passages)
    assert world.passages is passages, "a corpus of millions is not copied"
    assert (len(world.train), world.dev, len(world.test)) == (120, (), 7)
    assert [q.metadata["benchmark"] for q in world.test] == list(QUESTION_SETS)
    assert [world.train[0].id, world.train[-1].id] == ["nq/row_0", "hotpotqa/row_59"]

    worlds = [build_files_world(tmp_path, passages=(), seed=s, dev_fraction=0.2) for s in (0, 0, 1)]
    assert worlds[0].dev == worlds[1].dev != worlds[2].dev
    assert 10 <= len(worlds[0].dev) <= 40
    assert not {q.id for q in worlds[0].dev} & {q.id for q in worlds[0].train}

    (tmp_path / "questions/nq/test.jsonl").unlink()
    with pytest.raises(DataError, match=r"nq/test\.jsonl is missing: .* llds_core data"):
        build_files_world(tmp_path, passages=())
