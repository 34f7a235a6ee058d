"""Benchmarks and the training mix, from files in the published schemas."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files_world import write_files_world
from run_helpers import refused

from llds_core.errors import DataError
from llds_core.rollout.prompts import prompt_text
from llds_core.worlds import QUESTION_SETS, Question, build_files_world
from llds_core.worlds import question_sets as module
from llds_core.worlds.downloads import SOURCES
from llds_core.worlds.question_sets import MIX_FILE, load_questions, published_prompt

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
    assert module.GENERAL == ("nq", "triviaqa", "popqa")
    assert module.MULTI_HOP == ("hotpotqa", "2wiki", "musique", "bamboogle")
    assert sum(one.questions for one in QUESTION_SETS.values()) == 51_713
    assert sum(module.MIX_COUNTS.values()) == 169_615
    assert [one.file for one in QUESTION_SETS.values()] == SOURCES["questions"].files


def test_a_question_knows_its_benchmark_and_its_hops(tmp_path, caplog):
    theirs = {"level": 3, "kind": "theirs", "context": {"title": ["gold paragraph"]}}
    rows = [ROW, ROW | {"id": 7, "golden_answers": ["", "a b", "  "], "metadata": theirs}]
    first, second = load_questions(jsonl(tmp_path, *rows), 3_610, "nq")
    known = {"kind": "nq", "hops": "single"}
    assert first == Question("nq/test_0", "who?", ("Röntgen", "Roentgen"), known)
    assert second == Question("nq/7", "who?", ("a b",), known), "a blank answer answers nothing"
    (question, _) = load_questions(tmp_path / "test.jsonl", 2, "2wikimultihopqa")
    assert question.metadata == {"kind": "2wiki", "hops": "multi"}
    (message,) = caplog.messages
    assert "2 questions, the papers have 3610" in message


@pytest.mark.parametrize(
    ("write", "change", "complaint"),
    [
        (jsonl, {"id": True}, '"id" is True'),
        (jsonl, {"id": NAN}, '"id" is nan'),
        (jsonl, {"question": "  "}, "non-blank"),
        (jsonl, {"question": NAN}, '"question" is nan'),
        (jsonl, {"golden_answers": []}, "at least one"),
        (jsonl, {"golden_answers": ["", " "]}, "at least one"),
        (jsonl, {"golden_answers": "Paris"}, "\"golden_answers\" is 'Paris': give a list"),
        (jsonl, {"golden_answers": [1997]}, '"golden_answers" is [1997]: give a list'),
        (jsonl, {"id": "test_0"}, "is there twice"),
        (parquet, {"id": "test_0"}, "is there twice"),
        (parquet, {"question": None}, '"question" is None'),
        (parquet, {"data_source": "squad"}, "is 'squad': it takes one of nq, triviaqa"),
    ],
)
def test_a_bad_row_is_named(tmp_path, write, change, complaint):
    row = ROW | {"data_source": "nq"}
    path = write(tmp_path, row, row | {"id": "1"} | change)
    message = refused(DataError, None, load_questions, path, 2, "nq")
    where = f"{path}:2: " if write is jsonl else f"{path} row 2: "
    assert message.startswith(where) and complaint in message


def test_the_world_of_files_holds_mix_and_benchmarks(tmp_path):
    write_files_world(tmp_path, train=60, test=1)
    passages = SimpleNamespace()
    world = build_files_world(tmp_path, passages=passages)
    assert world.passages is passages, "a corpus of millions is not copied"
    assert (len(world.train), world.dev, len(world.test)) == (120, (), 7)
    assert [q.metadata["kind"] for q in world.test] == list(QUESTION_SETS)
    assert [world.train[0].id, world.train[-1].id] == ["nq/row_0", "hotpotqa/row_59"]

    worlds = [build_files_world(tmp_path, passages=(), seed=s, dev_fraction=0.2) for s in (0, 0, 1)]
    assert worlds[0].dev == worlds[1].dev != worlds[2].dev
    assert 10 <= len(worlds[0].dev) <= 40
    assert not {q.id for q in worlds[0].dev} & {q.id for q in worlds[0].train}

    (tmp_path / "questions/nq/test.jsonl").unlink()
    named = r"nq/test\.jsonl is missing: .* data paper-3b --only questions --folder /"
    refused(DataError, named, build_files_world, tmp_path, passages=())


def asking(folder: Path, *texts: str, question: str = " Who was X ") -> Path:
    rows = [{"question": question, "prompt": [{"role": "user", "content": t}]} for t in texts]
    (folder / MIX_FILE).parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / MIX_FILE)
    return folder


def test_the_published_prompt_is_what_stands_around_the_question(tmp_path):
    text = "Who? Search {a}. Question: Who was X?\n"
    template = published_prompt(asking(tmp_path, text, text))
    assert template == "Who? Search {a}. Question: {question}\n"
    assert prompt_text("Where is Y?", template) == "Who? Search {a}. Question: Where is Y?\n"


@pytest.mark.parametrize("texts", [["Question: Who was Y?"], ["Q: Who was X?", "A: Who was X?"]])
def test_prompts_that_share_no_wording_are_refused(tmp_path, texts):
    named = f"row {len(texts)}: the prompt .* is not that of the first row"
    refused(DataError, named, published_prompt, asking(tmp_path, *texts))


def test_sources_are_read_under_the_names_of_verls_copies(tmp_path) -> None:
    [question] = load_questions(parquet(tmp_path, ROW | {"data_source": "searchR1_nq"}), 1)
    assert (question.id, question.metadata["kind"]) == ("nq/test_0", "nq")
