"""Worlds: passages to search and questions to ask, with the facts that connect them."""

from llds_core.worlds.atlas import World, build_atlas
from llds_core.worlds.atlas_questions import KINDS
from llds_core.worlds.question_sets import (
    CORPUS_FILE,
    GENERAL,
    MIX_FILE,
    MULTI_HOP,
    QUESTION_SETS,
    QUESTIONS_FOLDER,
    build_files_world,
)
from llds_core.worlds.records import Passage, Question, read_corpus, write_corpus

__all__ = [
    "CORPUS_FILE",
    "GENERAL",
    "KINDS",
    "MIX_FILE",
    "MULTI_HOP",
    "QUESTIONS_FOLDER",
    "QUESTION_SETS",
    "Passage",
    "Question",
    "World",
    "build_atlas",
    "build_files_world",
    "read_corpus",
    "write_corpus",
]
