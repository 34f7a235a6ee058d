"""The seven benchmarks and the training mix of Search-R1 as questions, and the world made of them.

A benchmark is a JSON-lines file of FlashRAG (`id`, `question`, `golden_answers`, `metadata`); the
training mix is Search-R1's parquet file, with a column `data_source` besides. The `kind` of a
question is its benchmark. A source's own metadata are not read: several benchmarks attach the
paragraphs that hold the answer.

Licences: the questions as collected by FlashRAG are CC BY-SA 4.0, the passages (Wikipedia of
December 2018) CC BY-SA.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from llds_core.config.seeding import child_seed
from llds_core.errors import DataError, one_line
from llds_core.worlds.atlas import World
from llds_core.worlds.records import (
    Passage,
    Question,
    QuestionRow,
    check_row,
    parse_object,
    reading,
    shown,
)

MIX_COUNTS = {"nq": 79_168, "hotpotqa": 90_447}

# Where `make data` puts things, below the data folder.
CORPUS_FILE = "corpus/wiki-18.jsonl"
QUESTIONS_FOLDER = "questions"
MIX_FILE = "train/train.parquet"

_COLUMNS = ["id", "question", "golden_answers", "data_source"]
_logger = logging.getLogger("llds_core")


@dataclass(frozen=True)
class QuestionSet:
    """One benchmark: its name in tables and metadata, and its title as its authors write it."""

    name: str
    title: str
    group: Literal["general", "multi-hop"]  # as the papers average
    split: Literal["test", "dev"]  # scored is test where there is one with answers
    questions: int  # that the papers score
    source: str  # its name in FlashRAG's repository and in Search-R1's `data_source`

    @property
    def file(self) -> str:
        """Its path in FlashRAG's repository."""
        return f"{self.source}/{self.split}.jsonl"


QUESTION_SETS = {
    one.name: one
    for one in (
        QuestionSet("nq", "NQ", "general", "test", 3_610, "nq"),
        QuestionSet("triviaqa", "TriviaQA", "general", "test", 11_313, "triviaqa"),
        QuestionSet("popqa", "PopQA", "general", "test", 14_267, "popqa"),
        QuestionSet("hotpotqa", "HotpotQA", "multi-hop", "dev", 7_405, "hotpotqa"),
        QuestionSet("2wiki", "2WikiMultiHopQA", "multi-hop", "dev", 12_576, "2wikimultihopqa"),
        QuestionSet("musique", "MuSiQue", "multi-hop", "dev", 2_417, "musique"),
        QuestionSet("bamboogle", "Bamboogle", "multi-hop", "test", 125, "bamboogle"),
    )
}
GENERAL = tuple(one.name for one in QUESTION_SETS.values() if one.group == "general")
MULTI_HOP = tuple(one.name for one in QUESTION_SETS.values() if one.group == "multi-hop")
_BY_SOURCE = {one.source: one for one in QUESTION_SETS.values()}


def load_questions(path: Path, expected: int, source: str = "") -> tuple[Question, ...]:
    """Read the JSON-lines file of the benchmark `source`, or Search-R1's training mix, NQ and then
    HotpotQA, from its parquet file; the papers have `expected` questions.
    """
    questions: dict[str, Question] = {}
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path, source)
    for where, row in rows:
        question = _read_question(row, where)
        if question.id in questions:
            raise DataError(f"{where}: the id {question.id!r} is there twice: give each its own")
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path}: holds no question: give another file")
    if len(questions) != expected:
        _logger.warning("%s: %s questions, the papers have %s", path, len(questions), expected)
    return tuple(questions.values())


def build_files_world(
    folder: Path, *, passages: Sequence[Passage], seed: int = 0, dev_fraction: float = 0.0
) -> World:
    """Build the world of the files in `folder`, which `make data` filled: train on the mix, test on
    the seven benchmarks. Held out as dev questions is the expected share `dev_fraction`, in [0, 1),
    of the mix, drawn with `seed`; the papers hold out none.
    """
    splits: dict[bool, list[Question]] = {False: [], True: []}
    for question in load_questions(_present(folder, MIX_FILE), sum(MIX_COUNTS.values())):
        share = child_seed(seed, "files", "split", question.id) / 2**63
        splits[share < dev_fraction].append(question)
    test: list[Question] = []
    for known in QUESTION_SETS.values():
        path = _present(folder, f"{QUESTIONS_FOLDER}/{known.file}")
        test += load_questions(path, known.questions, known.source)
    return World("files", passages, tuple(splits[False]), tuple(splits[True]), tuple(test), {})


def published_prompt(folder: Path) -> str:
    """The instructions that Search-R1's training file in the data folder gives with every question,
    with `{question}` where that stands; a `DataError` when there is no such file, or its prompts
    differ in more than the question.
    """
    template = ""
    for where, row in _read_parquet(_present(folder, MIX_FILE), ["question", "prompt"]):
        asked, found = f"{str(row['question']).strip().removesuffix('?')}?", ""
        match row["prompt"]:
            case [{"role": "user", "content": str(text)}] if asked in text:
                before, _, after = text.rpartition(asked)
                found = f"{before}{{question}}{after}"
        template = template or found
        if not found or found != template:
            raise DataError(
                f"{where}: the prompt {shown(row['prompt'])} is not that of the first row with its "
                "own question: set rollout.prompt=search-r1"
            )
    return template


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        # The same files for every profile of the paper.
        part = "train" if name == MIX_FILE else "questions"
        command = f"python -m llds_core data paper-3b --only {part} --folder {quote(str(folder))}"
        raise DataError(f"{path} is missing: fetch it with {command}")
    return path


def _read_parquet(
    path: Path, columns: Sequence[str] = _COLUMNS
) -> list[tuple[str, dict[str, Any]]]:
    """The rows of Search-R1's parquet file, each after where it stands."""
    import pyarrow
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path, columns=list(columns)).to_pylist()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as Search-R1's parquet file ({one_line(error)}): check the "
            "path, or fetch it again"
        ) from error
    return [(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]


def _read_lines(path: Path, source: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSON-lines file, each after where it stands."""
    rows = []
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                rows.append((where, parse_object(line, where) | {"data_source": source}))
    return rows


def _read_question(row: dict[str, Any], where: str) -> Question:
    source, answers = row["data_source"], row.get("golden_answers")
    known = _BY_SOURCE.get(str(source).removeprefix("searchR1_"))  # as verl's copies name them
    if known is None:
        raise DataError(
            f'{where}: "data_source" is {shown(source)}: it takes one of {", ".join(_BY_SOURCE)}'
        )
    if isinstance(answers, list):  # a blank answer beside others answers nothing
        filled = [one for one in answers if not isinstance(one, str) or one.strip()]
        row = row | {"golden_answers": filled}
    checked = check_row(QuestionRow, row, where)
    metadata = {"kind": known.name, "hops": "multi" if known.group == "multi-hop" else "single"}
    # Ids start anew in every source.
    identity = f"{known.name}/{checked.id}"
    return Question(identity, checked.question, tuple(checked.golden_answers), metadata)
