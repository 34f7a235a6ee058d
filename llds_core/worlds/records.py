"""Passages and questions, and the JSON-lines files that hold them.

The schema is that of FlashRAG and Search-R1: a corpus line is `{"id", "contents"}` with the title
in double quotes on the first line of `contents`; a question line is `{"id", "question",
"golden_answers", "metadata"}`. Every defect of a file is one `DataError` that names file and line.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from llds_core.errors import DataError

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
        """Title in double quotes, a newline, the text: as an encoder reads it."""
        quoted = len(self.title) > 1 and self.title[0] == self.title[-1] == '"'
        title = self.title if quoted else f'"{self.title}"'
        return f"{title}\n{self.text}"

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to read in it."""
        return not (self.title.strip() or self.text.strip())


@dataclass(frozen=True)
class Question:
    """One question, by an id that is unique in its set, and every answer that counts as correct,
    the usual one first. In `metadata` are `kind` and `hops`, of the atlas `entity` and `steps` too.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


_Text = Annotated[str, Field(pattern=r"\S")]
_String = Annotated[_Text, Field(description="make it a non-blank string")]
# Some published corpora number their passages.
_Id = Annotated[_Text | int, Field(description="make it a non-blank string or a whole number")]
_ANSWERS = 'give a list of at least one non-blank string, e.g. ["Paris"]'


class _PassageRow(BaseModel):
    """A line of a corpus; descriptions say what to do about a bad value."""

    id: _Id
    contents: _String


class QuestionRow(BaseModel):
    """A row of a question file."""

    id: _Id
    question: _String
    golden_answers: list[_Text] = Field(min_length=1, description=_ANSWERS)


_Row = TypeVar("_Row", bound=BaseModel)


def split_contents(contents: str) -> tuple[str, str]:
    """Return title and text of a `contents` string. The title keeps the double quotes that the
    published corpus has around it: the official code shows them to the policy.
    """
    title, *rest = re.split("\r\n|\r|\n", contents, maxsplit=1)
    return title, rest[0] if rest else ""


def parse_passage(line: bytes, where: str) -> Passage:
    """Parse one line of a corpus; `where` names file and line, and an error begins with it."""
    row = check_row(_PassageRow, parse_object(line, where), where)
    return Passage(str(row.id), *split_contents(row.contents))


def check_row(model: type[_Row], row: dict[str, Any], where: str) -> _Row:
    """Check `row` against its schema; `where` names file and line."""
    try:
        return model.model_validate(row, strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        found = f'"{name}" is {shown(row[name])}' if name in row else f'no "{name}" in {shown(row)}'
        raise DataError(f"{where}: {found}: {model.model_fields[name].description}") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an `OSError` while reading `path` into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}): check the path and permissions"
        ) from error


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse one line of a JSON-lines file, which holds an object."""
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
