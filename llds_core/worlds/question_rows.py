"""Rows of published question files, checked one by one.

A row comes from a JSON-lines file of FlashRAG or from a parquet file of Search-R1; every complaint
names file and line, or file and row. What is odd about a file as a whole, but usable, is said once
in the log.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llds_core.errors import DataError
from llds_core.rollout.rewards import normalize_answer
from llds_core.worlds.records import Question, identity_of, read_rows, shown, string_of

Row = tuple[str, dict[str, Any]]  # where it stands, and what it says
_COLUMNS = (
    "id",
    "question",
    "golden_answers",
    "data_source",
    "prompt",
    "reward_model",
    "extra_info",
)
_LONGEST = 200  # characters of a metadata value that is kept
_logger = logging.getLogger("llds_core")


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file.

    Raises:
        DataError: when it cannot be read, or a line is no JSON object.
    """
    return ((f"{path}:{number}", row) for number, row in read_rows(path))


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file of Search-R1 with the keys of FlashRAG and `data_source`.

    Answers are the reward's ground truth; the question comes from the prompt, and the id from
    `extra_info`, where they have no column of their own.

    Raises:
        DataError: when the file cannot be read, or lacks a column.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            asks = "question" in names or "prompt" in names
            if not asks or "data_source" not in names or "reward_model" not in names:
                raise DataError(
                    f"{path}: columns {shown(names)}: give a file with data_source, prompt and "
                    "reward_model, as Search-R1 writes it"
                )
            columns = [name for name in _COLUMNS if name in names]
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield _flat(row, f"{path} row {number}")
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: cannot be read as parquet ({reason}): check the path, or fetch it again"
        ) from error


def _flat(row: dict[str, Any], where: str) -> Row:
    truth = row["reward_model"]
    for key in ("ground_truth", "target"):
        if not isinstance(truth, dict) or key not in truth:
            raise DataError(
                f'{where}: "reward_model" is {shown(row["reward_model"])}: give it '
                "ground_truth.target, a list of strings"
            )
        truth = truth[key]
    flat = {
        "question": row.get("question") or _asked(row, where),
        "golden_answers": truth,
        "data_source": row["data_source"],
        "id": row.get("id"),
    }
    if flat["id"] is None:
        origin = row.get("extra_info") or {}
        flat["id"] = f"{origin.get('split')}_{origin.get('index')}" if origin else None
    return where, flat


def _asked(row: dict[str, Any], where: str) -> str:
    messages = row.get("prompt")
    content = messages[-1].get("content") if isinstance(messages, list) and messages else None
    if not isinstance(content, str) or "Question: " not in content:
        raise DataError(
            f'{where}: no "question", and no "Question: " in the prompt {shown(content)}: '
            "give one of them"
        )
    return content.rpartition("Question: ")[2].strip()


def to_questions(
    path: Path, rows: Iterable[Row], metadata: Mapping[str, Mapping[str, Any]], *, expected: int
) -> tuple[Question, ...]:
    """Turn rows into questions.

    Args:
        path: where they come from.
        rows: each with `data_source`, which must be a key of `metadata`.
        metadata: what the questions of a source get; `benchmark` of it goes before their ids,
            which start anew in every source.
        expected: how many questions the papers have.

    Raises:
        DataError: for a bad row, an id that occurs twice, or no row at all.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    blank = bare = 0
    for where, row in rows:
        source = row["data_source"]
        if not isinstance(source, str) or source not in metadata:
            raise DataError(
                f'{where}: "data_source" is {shown(source)}: it takes one of {", ".join(metadata)}'
            )
        question = _question(row, where, metadata[source])
        first = seen.setdefault(question.id, where)
        if first != where:
            raise DataError(
                f"{where}: the id {shown(row['id'])} is taken by {first}: give every question of "
                f"{source} its own id"
            )
        questions.append(question)
        blank += len(row["golden_answers"]) - len(question.golden_answers)
        bare += any(not normalize_answer(answer) for answer in question.golden_answers)
    if not questions:
        raise DataError(f"{path}: holds no question of what was asked for: give another file")
    if len(questions) != expected:
        _logger.warning("%s: %s questions, the papers have %s", path, len(questions), expected)
    if blank:
        _logger.warning("%s: left out %s blank answers beside others", path, blank)
    if bare:
        # Kept, as the papers score them: an article alone answers such a question.
        _logger.warning("%s: in %s questions an answer is only articles or marks", path, bare)
    return tuple(questions)


def _question(row: dict[str, Any], where: str, known: Mapping[str, Any]) -> Question:
    answers = row.get("golden_answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise DataError(
            f'{where}: "golden_answers" is {shown(answers)}: give a list of strings, e.g. ["Paris"]'
        )
    filled = tuple(answer for answer in answers if answer.strip())
    if not filled:
        raise DataError(
            f'{where}: "golden_answers" is {shown(answers)}: give at least one non-blank answer'
        )
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(f'{where}: "metadata" is {shown(metadata)}: make it an object')
    plain = {key: value for key, value in metadata.items() if _is_plain(value)}
    identity = identity_of(row, where)
    text = string_of(row, "question", where)
    return Question(f"{known['benchmark']}/{identity}", text, filled, plain | dict(known))


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str) and len(json.dumps(value)) <= _LONGEST
