"""Worlds: passages to search and questions to ask, with the facts that connect them."""

from llds_core.worlds.atlas import World, build_atlas
from llds_core.worlds.question_sets import QUESTION_SETS, build_files_world
from llds_core.worlds.records import Passage, Question
