"""Passages and questions, and the JSON-lines files that hold them.

The schema is that of FlashRAG and Search-R1: a corpus line is `{"id", "contents"}` with the title
in double quotes on the first line of `contents`; a question line is `{"id", "question",
"golden_answers", "metadata"}`. Every defect of a file is one `DataError` that names file and line.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from llds_core.errors import DataError
from llds_core.files import replacing

_SHOWN = 60  # characters of a bad value that a message repeats


@dataclass(frozen=True)
class Passage:
    """One retrievable document, by an id that is unique in its corpus. The title is one line; the
    text is data, never markup, whatever tags it holds.
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
    """One question, by an id that is unique in its set, and every answer that counts as correct,
    the usual one first. In `metadata` is whatever the source knows: `kind` and `hops` always, of
    the atlas `entity` and `steps` too.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


_Row = TypeVar("_Row", bound=BaseModel)
_Text = Annotated[str, Field(pattern=r"\S")]
_String = Annotated[_Text, Field(description="make it a non-blank string")]
# Some published corpora number their passages.
_Id = Annotated[_Text | int, Field(description="make it a non-blank string or a whole number")]
_ANSWERS = 'give a list of at least one non-blank string, e.g. ["Paris"]'


class _PassageRow(BaseModel):
    """A line of a corpus; descriptions say what to do about a bad value."""

    id: _Id
    contents: _String


class _QuestionRow(BaseModel):
    id: _Id
    question: _String
    golden_answers: list[_Text] = Field(min_length=1, description=_ANSWERS)
    metadata: dict[str, Any] | None = Field(None, description="make it an object or leave it out")


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
    """Write `passages` as JSON lines; the file appears whole or not at all."""
    with replacing(Path(path)) as file:
        for passage in passages:
            if "\n" in passage.title:
                raise DataError(
                    f"the title of passage {passage.id} holds a newline: {shown(passage.title)}: "
                    "put it on one line"
                )
            row = {"id": passage.id, "contents": passage.contents}
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())


def read_corpus(path: str | Path) -> tuple[Passage, ...]:
    """Read a corpus in the order of its lines."""
    passages: list[Passage] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(Path(path)):
        passages.append(_passage_of(row, where))
        check_new(passages[-1].id, where, seen)
    if not passages:
        raise DataError(f"{path}: holds no passage: give a file with one JSON object per line")
    return tuple(passages)


def parse_passage(line: bytes, where: str) -> Passage:
    """Parse one line of a corpus; `where` names file and line, and an error begins with it."""
    return _passage_of(_parse_object(line, where), where)


def _passage_of(row: dict[str, Any], where: str) -> Passage:
    checked = _check_row(_PassageRow, row, where)
    return Passage(str(checked.id), *split_contents(checked.contents))


def question_of(row: dict[str, Any], where: str) -> Question:
    """Turn a row of a question file into a question; `where` names file and line."""
    checked = _check_row(_QuestionRow, row, where)
    answers, metadata = tuple(checked.golden_answers), checked.metadata or {}
    return Question(str(checked.id), checked.question, answers, metadata)


def _check_row(model: type[_Row], row: dict[str, Any], where: str) -> _Row:
    try:
        return model.model_validate(row, strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        found = f'"{name}" is {shown(row[name])}' if name in row else f'no "{name}" in {shown(row)}'
        raise DataError(f"{where}: {found}: {model.model_fields[name].description}") from None


def check_new(identity: str, where: str, seen: dict[str, str]) -> None:
    """Refuse an id that an earlier row has; `seen` maps the ids so far to where they stand."""
    first = seen.setdefault(identity, where)
    if first != where:
        raise DataError(
            f"{where}: the id {shown(identity)} is taken by {first}: give every row its own id"
        )


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of a JSON-lines file after where it stands, `<path>:<line>`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield where, _parse_object(line, where)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}): check the path and permissions"
        ) from error


def _parse_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = from_json(line.removeprefix(codecs.BOM_UTF8))  # some editors begin a file with it
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON in UTF-8 ({error}): {shown(line)}: write one JSON object per line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {shown(row)} is not an object: write one JSON object per line")
    return row


def shown(value: Any) -> str:
    """Return `value` as a message shows it: on one line, shortened."""
    text = repr(value)  # escapes newlines: a message stays on one line
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
