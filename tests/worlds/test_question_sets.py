"""Benchmarks and the training mix, from files in the published schemas."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llds_core.worlds.benchmarks import (
    BENCHMARKS,
    GENERAL,
    MIX_COUNTS,
    MULTI_HOP,
    average,
    build_files_world,
    general_average,
    load_benchmark,
    load_mix,
    multi_hop_average,
)

from llds_core.errors import ConfigError, DataError
from llds_core.rollout.rewards import exact_match
from llds_core.worlds import benchmarks
from llds_core.worlds.records import Passage, Question, write_corpus

NQ_ROW = {"id": "test_0", "question": "who?", "golden_answers": ["Röntgen", "Roentgen"]}


def jsonl(folder: Path, *rows, name: str = "test.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def mix_row(source: str, index: int, *, split: str = "train", question: str = "who?", answers=None):
    return {
        "id": f"{split}_{index}",
        "question": question,
        "golden_answers": answers or ["a"],
        "data_source": source,
        "prompt": [{"role": "user", "content": f"Answer. Question: {question}\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers or ["a"]}},
        "extra_info": {"index": index, "split": split},
    }


def parquet(folder: Path, *rows, name: str = "train.parquet") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_the_table_is_that_of_the_papers():
    assert GENERAL == ("nq", "triviaqa", "popqa")
    assert MULTI_HOP == ("hotpotqa", "2wiki", "musique", "bamboogle")
    assert sum(b.questions for b in BENCHMARKS.values()) == 51_713
    assert sum(MIX_COUNTS.values()) == 169_615
    assert all(b.file == f"{b.source}/{b.split}.jsonl" for b in BENCHMARKS.values())


def test_a_question_knows_its_benchmark_and_group(tmp_path, caplog):
    path = jsonl(tmp_path, NQ_ROW, NQ_ROW | {"id": 7})
    first, second = load_benchmark("nq", path)
    assert first == Question(
        "nq/test_0",
        "who?",
        ("Röntgen", "Roentgen"),
        {"benchmark": "nq", "kind": "nq", "group": "general", "hops": "single"},
    )
    assert second.id == "nq/7"
    assert load_benchmark("2wiki", path)[0].metadata["hops"] == "multi"
    assert "2 questions, the papers have 3610" in caplog.text


def test_metadata_keeps_plain_values_and_no_gold_paragraphs(tmp_path):
    theirs = {"type": "bridge", "level": 3, "context": {"title": ["x"]}, "long": "x" * 300}
    row = NQ_ROW | {"metadata": theirs | {"kind": "theirs", "nan": float("nan")}}
    (question,) = load_benchmark("hotpotqa", jsonl(tmp_path, row))
    known = {"benchmark": "hotpotqa", "kind": "hotpotqa", "group": "multi-hop", "hops": "multi"}
    assert question.metadata == {"type": "bridge", "level": 3} | known


def test_odd_answers_are_kept_or_left_out_and_counted(tmp_path, caplog):
    """An answer of articles alone is scored by the papers too; a blank one answers nothing."""
    path = jsonl(
        tmp_path,
        NQ_ROW | {"golden_answers": ["The", "Röntgen"]},
        NQ_ROW | {"id": "test_1", "golden_answers": ["", "a b", "  "]},
    )
    with caplog.at_level(logging.WARNING):
        first, second = load_benchmark("nq", path)
    assert first.golden_answers == ("The", "Röntgen") and second.golden_answers == ("a b",)
    assert exact_match("an", first.golden_answers) == 1.0
    assert "left out 2 blank answers" in caplog.text
    assert "in 1 questions an answer is only articles or marks" in caplog.text


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "q?", "golden_answers": ["a"]}, 'no "id"'),
        ({"id": "1", "golden_answers": ["a"]}, 'no "question"'),
        ({"id": "1", "question": "q?"}, '"golden_answers" is None'),
        (NQ_ROW | {"id": "1", "question": "  "}, "non-blank"),
        (NQ_ROW | {"id": True}, '"id" is True'),
        (NQ_ROW | {"id": float("nan")}, '"id" is nan'),
        (NQ_ROW | {"id": "1", "question": float("nan")}, '"question" is nan'),
        (NQ_ROW | {"id": "1", "golden_answers": []}, "at least one"),
        (NQ_ROW | {"id": "1", "golden_answers": ["", " "]}, "at least one"),
        (NQ_ROW | {"id": "1", "golden_answers": "Paris"}, "list of strings"),
        (NQ_ROW | {"id": "1", "golden_answers": [1997]}, "list of strings"),
        (NQ_ROW | {"id": "1", "golden_answers": [float("nan")]}, "list of strings"),
        (NQ_ROW | {"id": "1", "metadata": [1]}, '"metadata" is [1]'),
        (NQ_ROW, "is taken by"),
        ([], "no object"),
        (b'{"id": "1"', "not JSON"),
        (b'{"id": "caf\xe9"}', "not UTF-8"),
        (b'{"id": "1", "question": "half \\ud83d"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, complaint):
    path = jsonl(tmp_path, NQ_ROW, row)
    with pytest.raises(DataError) as caught:
        load_benchmark("nq", path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and complaint in message and "\n" not in message


def test_an_empty_or_missing_file_and_an_unknown_benchmark_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no question"):
        load_benchmark("nq", jsonl(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        load_benchmark("nq", tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match='did you mean "hotpotqa"'):
        load_benchmark("hotpot", tmp_path)


def test_the_mix_has_ids_of_their_own_and_the_answers_of_the_reward(tmp_path):
    rows = [mix_row("nq", 0), mix_row("nq", 1), mix_row("hotpotqa", 0, answers=["x", "y"])]
    nq, _, hotpot = load_mix(parquet(tmp_path, *rows))
    assert nq.id == "nq/train_0" and hotpot.id == "hotpotqa/train_0"
    assert hotpot.golden_answers == ("x", "y") and hotpot.metadata["group"] == "multi-hop"


def test_a_mix_with_search_r1_columns_only_is_read(tmp_path):
    rows = [mix_row("nq", 3, question="is a Question: here?")]
    for row in rows:
        for column in ("id", "question", "golden_answers"):
            del row[column]
    (question,) = load_mix(parquet(tmp_path, *rows))
    assert question.id == "nq/train_3" and question.question == "here?"


def test_one_test_file_holds_all_benchmarks(tmp_path):
    rows = [mix_row(b.source, 0, split=b.split) for b in BENCHMARKS.values()]
    path = parquet(tmp_path, *rows, name="test.parquet")
    assert [q.metadata["kind"] for q in load_mix(path, split="test")] == list(BENCHMARKS)
    (question,) = load_benchmark("2wiki", path)
    assert question.id == "2wiki/dev_0"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data_source": "squad"}, "\"data_source\" is 'squad': it takes one of nq, triviaqa"),
        ({"question": " "}, "\"question\" is ' '"),
        ({"id": "train_0"}, "is taken by"),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": []}}}, "at least one"),
        ({"reward_model": None}, "ground_truth.target"),
        ({"question": None, "prompt": [{"role": "user", "content": "who?"}]}, '"Question: "'),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, complaint):
    path = parquet(tmp_path, mix_row("nq", 0), mix_row("nq", 1) | change)
    with pytest.raises(DataError) as caught:
        load_mix(path)
    assert str(caught.value).startswith(f"{path} row 2: ") and complaint in str(caught.value)


def test_a_file_that_is_no_such_parquet_is_named(tmp_path):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 and then nothing")
    for path in (bad, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="cannot be read as parquet"):
            load_mix(path)
    with pytest.raises(DataError, match=r"columns \['a'\]"):
        load_mix(parquet(tmp_path, {"a": 1}))


def test_without_a_path_the_pinned_file_of_the_hub_is_read(tmp_path, monkeypatch):
    asked = []
    path = jsonl(tmp_path, NQ_ROW)
    monkeypatch.setattr(benchmarks, "cached_file", lambda *what: asked.append(what) or path)
    load_benchmark("musique")
    assert asked == [
        ("RUC-NLPIR/FlashRAG_datasets", "musique/dev.jsonl", benchmarks.FLASHRAG_REVISION)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for benchmark in BENCHMARKS.values():
        jsonl(tmp_path, NQ_ROW, name=f"questions/{benchmark.file}")
    rows = [mix_row(source, i) for source in MIX_COUNTS for i in range(100)]
    parquet(tmp_path, *rows, name="train/train.parquet")
    return tmp_path


def test_the_world_of_files_holds_mix_and_benchmarks(data):
    write_corpus(data / "corpus/wiki-18.jsonl", [Passage("0", "T", "text")])
    world = build_files_world(data)
    assert (len(world.train), world.dev, len(world.test)) == (200, (), 7)
    assert world.passages == (Passage("0", "T", "text"),)
    assert {q.metadata["benchmark"] for q in world.test} == set(BENCHMARKS)


def test_passages_are_taken_as_they_are_given(data):
    lazy = SimpleNamespace()
    assert build_files_world(data, passages=lazy).passages is lazy


def test_dev_questions_are_held_out_of_training_by_the_seed_alone(data):
    worlds = [build_files_world(data, passages=(), seed=s, dev_fraction=0.2) for s in (0, 0, 1)]
    assert worlds[0].dev == worlds[1].dev != worlds[2].dev
    assert 20 <= len(worlds[0].dev) <= 60
    assert not {q.id for q in worlds[0].dev} & {q.id for q in worlds[0].train}


def test_a_missing_download_names_the_command(data):
    (data / "questions/nq/test.jsonl").unlink()
    with pytest.raises(DataError, match=r"nq/test\.jsonl is missing: .* llds_core data"):
        build_files_world(data, passages=())


def test_averages_weigh_benchmarks_alike_and_need_them_all():
    """GRPO+LLDS on Qwen2.5-3B-Instruct, LLDS Table 1: 0.519, 0.383, 0.441."""
    values = (0.462, 0.627, 0.468, 0.443, 0.447, 0.197, 0.444)
    scores: dict[str, float | None] = dict(zip(BENCHMARKS, values, strict=True))
    assert general_average(scores) == pytest.approx(0.5190, abs=1e-4)
    assert multi_hop_average(scores) == pytest.approx(0.38275, abs=1e-6)
    assert average(scores) == pytest.approx(0.4411, abs=1e-4)
    del scores["nq"]
    assert general_average(scores) is None and average(scores) is None
    assert multi_hop_average(scores) is not None
    assert multi_hop_average(scores | {"musique": None}) is None
    assert multi_hop_average(scores | {"musique": float("nan")}) is None
