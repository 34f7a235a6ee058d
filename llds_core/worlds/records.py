"""Passages and questions, and the JSON-lines files that hold them.

The schema is that of FlashRAG and Search-R1, so that their corpora and question sets load here
and ours load there: a corpus line is `{"id", "contents"}` with the title in double quotes on the
first line of `contents`; a question line is `{"id", "question", "golden_answers", "metadata"}`.
Every defect of a file is one `DataError` that names file and line.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llds_core.errors import DataError
from llds_core.files import replacing

_SHOWN = 60  # characters of a bad value that a message repeats


@dataclass(frozen=True)
class Passage:
    """One retrievable document.

    Attributes:
        id: unique in its corpus.
        title: one line.
        text: any text; it is data, never markup, whatever tags it holds.
    """

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title in double quotes, a newline, the text."""
        return join_contents(self.title, self.text)


@dataclass(frozen=True)
class Question:
    """One question and every answer that counts as correct.

    Attributes:
        id: unique in its set.
        question: the question as asked.
        golden_answers: accepted answers, the usual one first; never empty.
        metadata: whatever the source knows; the atlas gives `kind`, `hops`, `entity` and `steps`.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


_Item = TypeVar("_Item", Passage, Question)


def join_contents(title: str, text: str) -> str:
    """Return title and text as one `contents` string."""
    return f'"{title}"\n{text}'


def split_contents(contents: str) -> tuple[str, str]:
    """Return title and text of a `contents` string; a title without quotes is taken as it is."""
    title, _, text = contents.partition("\n")
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text


def write_corpus(path: str | Path, passages: Iterable[Passage]) -> None:
    """Write `passages` as JSON lines; the file appears complete or not at all.

    Raises:
        DataError: when a title holds a newline, which the format cannot express.
        RunError: when the file cannot be written.
    """
    write_lines(path, map(_passage_line, passages))


def read_corpus(path: str | Path) -> tuple[Passage, ...]:
    """Read a corpus in the order of its lines.

    Raises:
        DataError: when the file is missing or unreadable, a line is no passage, an id occurs
            twice, or there is no passage at all.
    """
    return tuple(_read_items(Path(path), "passage", _passage))


def parse_passage(line: bytes, where: str) -> Passage:
    """Parse one line of a corpus.

    Args:
        line: the line as it is in the file.
        where: file and line, with which an error begins.

    Raises:
        DataError: when it is no passage.
    """
    return _passage(_object(line, where), where)


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write `questions` as JSON lines; the file appears complete or not at all.

    Raises:
        RunError: when the file cannot be written.
    """
    write_lines(path, map(_question_line, questions))


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """Read a question set in the order of its lines; `metadata` may be absent.

    Raises:
        DataError: when the file is missing or unreadable, a line is no question with at least
            one answer, an id occurs twice, or there is no question at all.
    """
    return tuple(_read_items(Path(path), "question", _question))


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write `lines` as UTF-8; the file appears complete or not at all.

    Raises:
        RunError: when the file cannot be written.
    """
    with replacing(Path(path), make_folder=True) as file:
        for line in lines:
            file.write(f"{line}\n".encode())


def _passage_line(passage: Passage) -> str:
    if "\n" in passage.title:
        raise DataError(
            f"the title of passage {passage.id} holds a newline: {shown(passage.title)}: "
            "put it on one line"
        )
    return _json({"id": passage.id, "contents": passage.contents})


def _question_line(question: Question) -> str:
    return _json(
        {
            "id": question.id,
            "question": question.question,
            "golden_answers": list(question.golden_answers),
            "metadata": question.metadata,
        }
    )


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _passage(row: dict[str, Any], where: str) -> Passage:
    title, text = split_contents(string_of(row, "contents", where))
    return Passage(identity_of(row, where), title, text)


def _question(row: dict[str, Any], where: str) -> Question:
    answers = row.get("golden_answers")
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        raise DataError(
            f'{where}: "golden_answers" is {shown(answers)}: give a list of at least one '
            'non-blank string, e.g. ["Paris"]'
        )
    metadata = row.get("metadata")
    if not isinstance(metadata, dict | None):
        raise DataError(
            f'{where}: "metadata" is {shown(metadata)}: make it an object or leave it out'
        )
    text = string_of(row, "question", where)
    return Question(identity_of(row, where), text, tuple(answers), metadata or {})


def string_of(row: dict[str, Any], name: str, where: str) -> str:
    """Return the non-blank string `name` of `row`; `where` names file and line.

    Raises:
        DataError: when there is none.
    """
    if name not in row:
        raise DataError(f'{where}: no "{name}" among {shown(sorted(row))}: add it as a string')
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{where}: "{name}" is {shown(value)}: make it a non-blank string')
    return value


def identity_of(row: dict[str, Any], where: str) -> str:
    """Return the `id` of `row`, a string or a number; `where` names file and line.

    Raises:
        DataError: when there is none.
    """
    # Some published corpora number their passages; a bool is an int to Python only.
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        return str(row["id"])
    return string_of(row, "id", where)


def _read_items(
    path: Path, noun: str, parse: Callable[[dict[str, Any], str], _Item]
) -> Iterator[_Item]:
    seen: dict[str, int] = {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        item = parse(row, where)
        first = seen.setdefault(item.id, number)
        if first != number:
            raise DataError(
                f"{where}: the id {shown(item.id)} is taken by line {first}: "
                f"give every {noun} its own id"
            )
        yield item
    if not seen:
        raise DataError(f"{path}: holds no {noun}: give a file with one JSON object a line")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line that is not blank.

    Raises:
        DataError: when the file cannot be read or a line is no JSON object in UTF-8.
    """
    # Bytes, to know the line of an undecodable one.
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}): check the path and permissions"
        ) from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig").strip()  # Windows editors open a file with a mark
    except UnicodeDecodeError as error:
        start = error.start
        raise DataError(
            f"{where}: not UTF-8 at byte {start} ({shown(line[start : start + 8])}): "
            "save the file as UTF-8"
        ) from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(
            f"{where}: not JSON ({reason}): {shown(text)}: write one JSON object a line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {shown(row)} is no object: write one JSON object a line")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: half a surrogate pair in {shown(text)}: write the whole character"
        ) from None
    return row


def shown(value: Any) -> str:
    """Return `value` as a message shows it: on one line, shortened."""
    text = repr(value)  # escapes newlines: a message stays on one line
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
