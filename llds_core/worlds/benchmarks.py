"""The seven benchmarks and the training mix of Search-R1 as questions, and the world made of them.

A benchmark is a JSON-lines file of FlashRAG (`id`, `question`, `golden_answers`, `metadata`); the
training mix is Search-R1's parquet file, one row a prompt, and its test file holds all seven
benchmarks. Both come from a local file or, at a pinned commit, from the hub. Every question knows
its benchmark (`metadata["benchmark"]`, also its `kind`) and its group. Of a source's own metadata
only plain values are kept: several benchmarks attach the paragraphs that hold the answer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llds_core.errors import ConfigError, DataError, did_you_mean
from llds_core.seeding import child_seed
from llds_core.worlds.atlas import World
from llds_core.worlds.hub import cached_file
from llds_core.worlds.question_rows import json_rows, parquet_rows, to_questions
from llds_core.worlds.records import Passage, Question, read_corpus

# Commits are those that several public projects lock to; they could not be checked against the hub
# when this was written. The hub refuses a commit it does not have.
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
FLASHRAG_REVISION = "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c"
MIX = "PeterJinGo/nq_hotpotqa_train"
MIX_REVISION = "b7d80abfee334a7a91cb377544f09180d58b34f6"
MIX_COUNTS = {"nq": 79_168, "hotpotqa": 90_447}

# Where `make data` puts things, below the data folder.
CORPUS_FILE = "corpus/wiki-18.jsonl"
QUESTIONS_FOLDER = "questions"
MIX_FILE = "train/train.parquet"

_ATTRIBUTION = (
    "Questions: Natural Questions, TriviaQA, PopQA, HotpotQA, 2WikiMultiHopQA, MuSiQue and "
    "Bamboogle as collected by FlashRAG (CC BY-SA 4.0) and Search-R1. Passages: Wikipedia of "
    "December 2018 (CC BY-SA)."
)


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set.

    Attributes:
        name: as in tables and metadata.
        title: as its authors write it.
        group: `general` or `multi-hop`, as the papers average.
        split: the one that is scored: test where there is one with answers, else dev.
        questions: how many the papers score.
        file: path in the repository of FlashRAG.
        source: its name there and in Search-R1's `data_source`.
    """

    name: str
    title: str
    group: Literal["general", "multi-hop"]
    split: Literal["test", "dev"]
    questions: int
    file: str
    source: str


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("nq", "NQ", "general", "test", 3_610, "nq/test.jsonl", "nq"),
        Benchmark(
            "triviaqa", "TriviaQA", "general", "test", 11_313, "triviaqa/test.jsonl", "triviaqa"
        ),
        Benchmark("popqa", "PopQA", "general", "test", 14_267, "popqa/test.jsonl", "popqa"),
        Benchmark(
            "hotpotqa", "HotpotQA", "multi-hop", "dev", 7_405, "hotpotqa/dev.jsonl", "hotpotqa"
        ),
        Benchmark(
            "2wiki",
            "2WikiMultiHopQA",
            "multi-hop",
            "dev",
            12_576,
            "2wikimultihopqa/dev.jsonl",
            "2wikimultihopqa",
        ),
        Benchmark("musique", "MuSiQue", "multi-hop", "dev", 2_417, "musique/dev.jsonl", "musique"),
        Benchmark(
            "bamboogle", "Bamboogle", "multi-hop", "test", 125, "bamboogle/test.jsonl", "bamboogle"
        ),
    )
}
GENERAL = tuple(b.name for b in BENCHMARKS.values() if b.group == "general")
MULTI_HOP = tuple(b.name for b in BENCHMARKS.values() if b.group == "multi-hop")
_METADATA = {
    b.source: {
        "benchmark": b.name,
        "kind": b.name,
        "group": b.group,
        "hops": "multi" if b.group == "multi-hop" else "single",
    }
    for b in BENCHMARKS.values()
}


def general_average(scores: Mapping[str, float | None]) -> float | None:
    """Mean over NQ, TriviaQA and PopQA; None when one of them has no score."""
    return _mean(scores, GENERAL)


def multi_hop_average(scores: Mapping[str, float | None]) -> float | None:
    """Mean over HotpotQA, 2Wiki, MuSiQue and Bamboogle; None when one of them has no score."""
    return _mean(scores, MULTI_HOP)


def average(scores: Mapping[str, float | None]) -> float | None:
    """Mean over the seven benchmarks, whatever their sizes; None when one has no score."""
    return _mean(scores, BENCHMARKS)


def _mean(scores: Mapping[str, float | None], names: Iterable[str]) -> float | None:
    values = [scores.get(name) for name in names]
    if any(value is None or math.isnan(value) for value in values):
        return None
    return math.fsum(values) / len(values)


def load_benchmark(name: str, path: str | Path | None = None) -> tuple[Question, ...]:
    """Read one benchmark.

    Args:
        name: one of `BENCHMARKS`.
        path: its JSON-lines file, or a parquet file in Search-R1's form of which its rows are
            taken; None fetches the pinned file from the hub into the hub's own cache.

    Raises:
        ConfigError: for an unknown benchmark.
        DataError: for a file that is missing, holds none of its questions or a bad one.
        DownloadError: when the hub does not give the file.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f'unknown benchmark "{name}": {did_you_mean(name, BENCHMARKS)}')
    benchmark = BENCHMARKS[name]
    path = Path(path or cached_file(FLASHRAG, benchmark.file, FLASHRAG_REVISION))
    if path.suffix == ".parquet":
        rows = (row for row in parquet_rows(path) if row[1]["data_source"] == benchmark.source)
    else:
        source = {"data_source": benchmark.source}
        rows = ((where, row | source) for where, row in json_rows(path))
    return to_questions(path, rows, _METADATA, expected=benchmark.questions)


def load_mix(path: str | Path | None = None, *, split: str = "train") -> tuple[Question, ...]:
    """Read Search-R1's training mix, NQ and then HotpotQA, or with `split="test"` its test file.

    Args:
        path: a parquet file; None fetches the pinned one from the hub into the hub's own cache.
        split: `train` or `test`.

    Raises:
        DataError: for a file that is missing, holds no question or a bad one.
        DownloadError: when the hub does not give the file.
    """
    path = Path(path or cached_file(MIX, f"{split}.parquet", MIX_REVISION))
    sizes = {"train": MIX_COUNTS, "test": {b.name: b.questions for b in BENCHMARKS.values()}}
    return to_questions(path, parquet_rows(path), _METADATA, expected=sum(sizes[split].values()))


def build_files_world(
    folder: str | Path,
    *,
    passages: Sequence[Passage] | None = None,
    seed: int = 0,
    dev_fraction: float = 0.0,
) -> World:
    """Build the world of downloaded files: train on the mix, test on the seven benchmarks.

    Args:
        folder: what `make data` filled.
        passages: the corpus; None reads it into memory, which is for small corpora only.
        seed: root seed of the dev split.
        dev_fraction: expected share of training questions held out as dev questions, in [0, 1);
            the papers hold out none.

    Raises:
        DataError: when a file is missing or bad.
    """
    folder = Path(folder)
    if passages is None:
        passages = read_corpus(_present(folder, CORPUS_FILE))
    splits: dict[bool, list[Question]] = {False: [], True: []}
    for question in load_mix(_present(folder, MIX_FILE)):
        share = child_seed(seed, "files", "split", question.id) / 2**63
        splits[share < dev_fraction].append(question)
    test = [
        question
        for benchmark in BENCHMARKS.values()
        for question in load_benchmark(
            benchmark.name, _present(folder, f"{QUESTIONS_FOLDER}/{benchmark.file}")
        )
    ]
    return World(
        name="files",
        passages=passages,
        train=tuple(splits[False]),
        dev=tuple(splits[True]),
        test=tuple(test),
        attribution=_ATTRIBUTION,
        answers_by_kind={},
    )


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} is missing: fetch it with python -m llds_core data <profile>")
    return path
