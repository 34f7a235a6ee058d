"""Worlds: passages to search and questions to ask, with the facts that connect them."""

from llds_core.worlds.atlas import World, build_atlas
from llds_core.worlds.records import (
    Passage,
    Question,
    read_corpus,
    read_questions,
    write_corpus,
    write_questions,
)

__all__ = [
    "Passage",
    "Question",
    "World",
    "build_atlas",
    "read_corpus",
    "read_questions",
    "write_corpus",
    "write_questions",
]
