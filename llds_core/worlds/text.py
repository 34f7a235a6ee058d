"""Folding of names: one spelling for search tokens, name collisions and leak checks.

Exact match (`llds_core.rollout.rewards`) deliberately does not fold accents: there, every accepted
spelling is listed.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

# Letters that Unicode does not decompose into a base letter and a mark.
_BASE_LETTERS = str.maketrans(
    dict(zip("ıłŁøØđĐðÐəƏħĦ", "ilLoOdDdDeEhH", strict=True))
    | {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ß": "ss"}
)
_APOSTROPHES = str.maketrans("", "", "'’‘ʻʼ`´")
_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")
_WORD = regex.compile(r"\w+")  # with the marks of letters, which `re` leaves out
# Scripts written without spaces.
_SPACELESS = r"\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}\p{Hiragana}\p{Katakana}\p{Han}"
_RUN = regex.compile(rf"(?P<spaceless>[{_SPACELESS}][{_SPACELESS}\p{{M}}]*)|[^{_SPACELESS}]+")
_OF_A_LETTER = (7, 8, 9)  # marks that make another letter: nukta, voicing of kana, virama


def well_formed(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def visible(text: str) -> str:
    """`text` with visible escapes for what is not printable, line ends apart."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def strip_accents(text: str) -> str:
    """Return `text` with plain Latin letters, in its own case: `São Tomé` becomes `Sao Tome`."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text.translate(_BASE_LETTERS))
    kept = (c for c in decomposed if unicodedata.combining(c) in (0, *_OF_A_LETTER))
    return unicodedata.normalize("NFC", "".join(kept))


def words(text: str) -> list[str]:
    """Split `text` into lower-case, accent-free words; `N'Djamena` and `1,200` are one each."""
    # Apostrophes go first: decomposing would turn some of them into a space.
    folded = strip_accents(text.translate(_APOSTROPHES)).casefold()
    return _WORD.findall(_DIGIT_COMMA.sub("", folded))


def search_words(text: str) -> list[str]:
    """The words of `text` as a search engine counts them: of scripts without spaces, whose words
    nothing parts, every letter and every pair of neighbours.
    """
    found: list[str] = []
    for word in words(text):
        for run in _RUN.finditer(word):
            letters = regex.findall(r"\X", run[0]) if run["spaceless"] else [run[0]]
            found += letters + [first + second for first, second in pairwise(letters)]
    return found


@lru_cache(maxsize=1 << 16)
def fold(text: str) -> str:
    """Return the words of `text` joined by single spaces; two spellings of one name fold alike."""
    return " ".join(words(text))
