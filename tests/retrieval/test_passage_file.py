"""A corpus on disk reads like one in memory, and its map never belongs to another file."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import refused

from llds_core.errors import DataError, RunError
from llds_core.retrieval.passage_file import HEADER, PassageFile, passages_hash, stored_map
from llds_core.worlds.records import Passage

PASSAGES = tuple(Passage(f"é-{i}-市", f"Title {i}", f"text\n{i} 🙂") for i in range(2500))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
    return tmp_path / "corpus.jsonl"


def offsets(path: Path) -> Path:
    return path.with_name("corpus.jsonl.offsets.npy")


def test_it_reads_like_a_corpus_in_memory(corpus: Path) -> None:
    opened = PassageFile(corpus)
    assert len(opened) == 2500 and tuple(opened) == PASSAGES
    order = random.Random(0).choices(range(-2500, 2500), k=1200)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opened.__getitem__, order)) == [PASSAGES[i] for i in order]
    assert opened._file.tell() == 0  # no place that threads would share was moved
    for part in (slice(3, 9), slice(None, None, 700), slice(9, 3), slice(-2, None), slice(0, 0)):
        assert tuple(opened[part]) == PASSAGES[part]
    for place in (2500, -2501):
        with pytest.raises(IndexError):
            opened[place]


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


_items = st.tuples(_text, _text, st.integers(0, 2), st.booleans())


@settings(max_examples=40, deadline=None)
@given(items=st.lists(_items, min_size=1), mark=st.booleans())
def test_any_text_blank_lines_and_extra_fields_are_read(tmp_path_factory, items, mark) -> None:
    """And quoted titles, a byte-order mark, Windows line ends, numbers as ids."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines, expected = b"\xef\xbb\xbf" if mark else b"", []
    for number, (title, text, blanks, windows) in enumerate(items):
        title = title.replace("\n", " ").replace("\r", " ") or "t"
        expected.append(Passage(str(number), f'"{title}"', text))
        row = {"id": number, "contents": f'"{title}"\n{text}', "wikipedia_id": 3, "categories": []}
        end = b"\r\n" if windows else b"\n"
        lines += json.dumps(row, ensure_ascii=bool(blanks)).encode() + end + b" \n" * blanks
    path.write_bytes(lines if len(items) % 2 else lines.rstrip(b"\n"))
    opened = PassageFile(path)
    assert list(opened) == [opened[i] for i in range(len(opened))] == expected
    assert opened.hash == passages_hash(expected)


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ("Paris\nA city.", "Paris", "A city."),
        ('"Paris"\nA city.\nOf light.', '"Paris"', "A city.\nOf light."),
        ('"Heroes" (song)\nBy Bowie.', '"Heroes" (song)', "By Bowie."),
        ('"\nA city.', '"', "A city."),
        ("Only a title", "Only a title", ""),
        ('"Paris"\r\nA city.\r\nOf light.', '"Paris"', "A city.\r\nOf light."),
        ('"Paris"\rA city.', '"Paris"', "A city."),
    ],
)
def test_titles_are_read_as_they_stand(tmp_path: Path, contents, title, text) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "1", "contents": contents}))
    assert PassageFile(tmp_path / "corpus.jsonl")[0] == Passage("1", title, text)


def test_a_changed_corpus_is_mapped_again(corpus: Path) -> None:
    before = PassageFile(corpus).hash
    # As long as before: only the time of change tells.
    changed = (Passage("é-0-市", "Title 0", "TEXT\n0 🙂"), *PASSAGES[1:])
    size = corpus.stat().st_size
    write_corpus(corpus, changed)
    opened = PassageFile(corpus)
    assert (opened[0], corpus.stat().st_size) == (changed[0], size)
    assert opened.hash == passages_hash(changed) != before
    os.truncate(corpus, 1000)
    refused(DataError, "shorter", opened.__getitem__, 2000)


@pytest.mark.parametrize("keep", [0, 100, 128 + 8 * HEADER, 9000])
def test_a_truncated_or_foreign_map_is_made_again(corpus: Path, keep: int) -> None:
    PassageFile(corpus)
    whole = offsets(corpus).read_bytes()
    offsets(corpus).write_bytes(whole[:keep])
    assert tuple(PassageFile(corpus)) == PASSAGES
    assert offsets(corpus).read_bytes() == whole
    older = np.load(offsets(corpus))
    older[0] -= 1  # the version
    np.save(offsets(corpus), older)
    assert PassageFile(corpus)[5] == PASSAGES[5] and offsets(corpus).read_bytes() == whole
    np.save(offsets(corpus), np.zeros((3, 3)))
    assert PassageFile(corpus)[5] == PASSAGES[5]


def test_a_map_that_cannot_be_written_is_named(corpus: Path) -> None:
    offsets(corpus).mkdir()
    refused(RunError, "cannot write to", PassageFile, corpus, cache=corpus / "below a file")
    cache = corpus.parent / "cache"  # as for a corpus in a folder that is read-only
    assert stored_map(corpus, cache) is None
    opened = PassageFile(corpus, cache)
    [made] = cache.iterdir()
    assert stored_map(corpus, cache)[:2] == (len(opened), opened.hash)
    changed = made.stat().st_mtime_ns
    assert PassageFile(corpus, cache).hash == opened.hash and made.stat().st_mtime_ns == changed


GOOD = b'{"id": "1", "contents": "\\"a\\"\\nb"}\n'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{oops", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": "2", "contents": "A\\nhalf \\ud83d"}', "not JSON"),
        (b'{"id": "2", "contents": "caf\xe9"}', "not JSON in UTF-8 "),
        (b"null", "not an object"),
        (b'{"id": "2"}', 'no "contents"'),
        (b'{"id": true, "contents": "A\\nb"}', '"id" is True'),
        (b'{"id": "2", "contents": 5}', '"contents" is 5'),
        (b'{"id": "2", "contents": "  "}', "non-blank"),
        (GOOD, "the id '1' is taken by line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n" + GOOD + b"\n" + GOOD.replace(b'"1"', b'"3"') + line + b"\n")
    message = refused(DataError, None, PassageFile, path)
    assert message.startswith(f"{path}:5: ") and complaint in message
    assert len(message.replace(str(path), "")) < 220, "only the start of a bad value is repeated"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_text, _text, _text), max_size=4), st.data())
def test_hashes_tell_corpora_apart(rows: list[tuple[str, str, str]], data: st.DataObject) -> None:
    """However characters are moved between id, title, text and passages."""
    other = data.draw(st.lists(st.tuples(_text, _text, _text), max_size=4))
    hashes = [passages_hash(Passage(*row) for row in given) for given in (rows, other)]
    assert (hashes[0] == hashes[1]) is (rows == other) and len(hashes[0]) == 64
    alike = [Passage("a\0", "b", ""), Passage("a", "\0b", "")]
    assert passages_hash(alike[:1]) != passages_hash(alike[1:])
