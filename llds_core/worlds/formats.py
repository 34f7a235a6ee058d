"""Passages and questions, and the field's JSON-lines formats for them (Search-R1, FlashRAG).

    corpus     {"id": "…", "contents": "\\"title\\"\\ntext"}
    questions  {"id": "…", "question": "…", "golden_answers": ["…"], "metadata": {…}}

Reading checks every row and names file and line of the first one that is wrong.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llds_core.errors import DataError, RunError


@dataclass(frozen=True)
class Passage:
    """One passage of a corpus."""

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title in quotes on the first line, then the text."""
        return join_contents(self.title, self.text)


@dataclass(frozen=True)
class Question:
    """A question, every answer accepted for it, and what is known about it."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def join_contents(title: str, text: str) -> str:
    """Return the `contents` field of a corpus line."""
    return f'"{title}"\n{text}'


def write_corpus(path: Path, passages: Iterable[Passage]) -> None:
    """Write a corpus; the file is replaced whole or not at all."""
    _write(path, ({"id": p.id, "contents": p.contents} for p in passages))


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions; the file is replaced whole or not at all."""
    _write(
        path,
        (
            {"id": q.id, "question": q.question, "golden_answers": list(q.golden_answers), "metadata": q.metadata}
            for q in questions
        ),
    )


def read_corpus(path: Path) -> list[Passage]:
    """Read a corpus. A title without quotes is accepted; a passage of one line has its title as text.

    Raises:
        DataError: for a missing or empty file, or naming the first line that is no passage.
    """
    passages = []
    seen: set[str] = set()
    for where, row in _rows(path):
        _require(where, row, "contents", str)
        identity = _identity(where, row, seen)
        title, _, text = row["contents"].partition("\n")
        quoted = len(title) >= 2 and title[0] == title[-1] == '"'
        passages.append(Passage(identity, title[1:-1] if quoted else title, text))
    if not passages:
        raise DataError(f"corpus {path} is empty: it needs at least one passage")
    return passages


def read_questions(path: Path) -> list[Question]:
    """Read questions.

    Raises:
        DataError: for a missing or empty file, or naming the first line that is no question with answers.
    """
    questions = []
    seen: set[str] = set()
    for where, row in _rows(path):
        _require(where, row, "question", str)
        _require(where, row, "golden_answers", list)
        answers = row["golden_answers"]
        if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
            raise DataError(f"{where}: golden_answers is {_short(answers)}: give a list of at least one answer text")
        metadata = row.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise DataError(f"{where}: metadata is {_short(metadata)}: give an object or leave it out")
        questions.append(Question(_identity(where, row, seen), row["question"], tuple(answers), metadata))
    if not questions:
        raise DataError(f"question file {path} is empty: it needs at least one question")
    return questions


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): check the path") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 ({error.reason}): save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            shown = _short(line.decode())
            raise DataError(f"{where} is not JSON ({shown}): write one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is {_short(row)}, not an object: write one JSON object a line")
        yield where, row


def _require(where: str, row: dict[str, Any], key: str, kind: type) -> None:
    if key not in row:
        raise DataError(f'{where} has no "{key}" (it has {", ".join(map(str, row)) or "nothing"}): add it')
    if not isinstance(row[key], kind) or (kind is str and not row[key].strip()):
        raise DataError(f'{where}: "{key}" is {_short(row[key])}: give a non-empty {kind.__name__}')


def _identity(where: str, row: dict[str, Any], seen: set[str]) -> str:
    if not isinstance(row.get("id"), (str, int)):
        raise DataError(f'{where}: "id" is {_short(row.get("id"))}: give a text or number')
    identity = str(row["id"])
    if identity in seen:
        raise DataError(f'{where}: "id" {identity} occurs twice: make ids unique')
    seen.add(identity)
    return identity


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): free space, or choose another folder") from error
