"""A corpus on disk reads like one in memory, and its map never belongs to another file."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.errors import DataError, RunError
from llds_core.retrieval.passage_file import HEADER, PassageFile, passages_hash
from llds_core.worlds.records import Passage, read_corpus, write_corpus

PASSAGES = tuple(Passage(f"é-{i}-市", f"Title {i}", f"text\n{i} 🙂") for i in range(2500))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
    return tmp_path / "corpus.jsonl"


def offsets(path: Path) -> Path:
    return path.with_name("corpus.jsonl.offsets.npy")


def test_it_reads_like_a_corpus_in_memory(corpus: Path) -> None:
    opened = PassageFile(corpus)
    assert len(opened) == 2500
    assert tuple(opened) == read_corpus(corpus) == PASSAGES
    order = random.Random(0).sample(range(2500), 100)
    assert [opened[i] for i in order] == [PASSAGES[i] for i in order]
    assert opened[-1] == PASSAGES[-1]
    assert PASSAGES[7] in opened
    for part in (slice(3, 9), slice(None, None, 700), slice(9, 3), slice(-2, None), slice(0, 0)):
        assert tuple(opened[part]) == PASSAGES[part]
    for place in (2500, -2501):
        with pytest.raises(IndexError):
            opened[place]


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.tuples(_text, _text, st.integers(0, 2), st.booleans()), min_size=1),
    mark=st.booleans(),
)
def test_any_text_blank_lines_and_extra_fields_are_read(tmp_path_factory, items, mark) -> None:
    """As `read_corpus` reads them: titles with quotes, separators of all kinds, a byte-order mark,
    Windows line ends and the other fields of a FlashRAG corpus.
    """
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = b"\xef\xbb\xbf" if mark else b""
    for number, (title, text, blanks, windows) in enumerate(items):
        title = title.replace("\n", " ") or "t"
        row = {"id": number, "contents": f'"{title}"\n{text}', "wikipedia_id": 3, "categories": []}
        end = b"\r\n" if windows else b"\n"
        lines += json.dumps(row, ensure_ascii=bool(blanks)).encode() + end + b" \n" * blanks
    path.write_bytes(lines if len(items) % 2 else lines.rstrip(b"\n"))
    opened = PassageFile(path)
    expected = read_corpus(path)
    assert tuple(opened) == tuple(opened[i] for i in range(len(opened))) == expected
    assert opened.hash == passages_hash(expected)


def test_the_map_is_made_once(corpus: Path) -> None:
    PassageFile(corpus)
    before = offsets(corpus).stat().st_mtime_ns
    again = PassageFile(corpus)
    assert offsets(corpus).stat().st_mtime_ns == before
    assert again.hash == passages_hash(PASSAGES)
    assert offsets(corpus).stat().st_size == 128 + 8 * (HEADER + 2500 + 1)
    assert sorted(p.name for p in corpus.parent.iterdir()) == [corpus.name, offsets(corpus).name]


def test_a_changed_corpus_is_mapped_again(corpus: Path) -> None:
    before = PassageFile(corpus).hash
    # As long as before: only the time of change tells.
    changed = (Passage("é-0-市", "Title 0", "TEXT\n0 🙂"), *PASSAGES[1:])
    size = corpus.stat().st_size
    write_corpus(corpus, changed)
    assert corpus.stat().st_size == size
    opened = PassageFile(corpus)
    assert opened[0].text == "TEXT\n0 🙂"
    assert opened.hash == passages_hash(changed) != before


@pytest.mark.parametrize("keep", [0, 100, 128 + 8 * HEADER, 9000])
def test_a_truncated_or_foreign_map_is_made_again(corpus: Path, keep: int) -> None:
    PassageFile(corpus)
    whole = offsets(corpus).read_bytes()
    offsets(corpus).write_bytes(whole[:keep])
    assert tuple(PassageFile(corpus)) == PASSAGES
    assert offsets(corpus).read_bytes() == whole
    np.save(offsets(corpus), np.zeros((3, 3)))
    assert PassageFile(corpus)[5] == PASSAGES[5]


def test_a_map_that_cannot_be_written_is_named(corpus: Path) -> None:
    offsets(corpus).mkdir()
    with pytest.raises(RunError, match="cannot write to"):
        PassageFile(corpus)


GOOD = b'{"id": "1", "contents": "\\"a\\"\\nb"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + b"\n{oops\n", "corpus.jsonl:3: not JSON"),
        (GOOD + b'{"id": "2"}', 'corpus.jsonl:2: no "contents"'),
        (GOOD + b"\xff\xfe\n", "corpus.jsonl:2: not JSON in UTF-8"),
        (b"\n \n", "holds no passage"),
        (
            b"\n" + GOOD + GOOD.replace(b'"1"', b'"2"') + b"\n" + GOOD,
            "corpus.jsonl:5: the id '1' is taken by line 2",
        ),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, text, message: str) -> None:
    if text is not None:
        (tmp_path / "corpus.jsonl").write_bytes(text)
    with pytest.raises(DataError) as error:
        PassageFile(tmp_path / "corpus.jsonl")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_cut_short_after_it_was_opened_is_reported(corpus: Path) -> None:
    opened = PassageFile(corpus)
    os.truncate(corpus, 1000)
    with pytest.raises(DataError, match="shorter"):
        opened[2000]


def test_threads_may_read_at_once(corpus: Path) -> None:
    opened = PassageFile(corpus)
    order = random.Random(0).choices(range(2500), k=1200)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opened.__getitem__, order)) == [PASSAGES[i] for i in order]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_text, _text, _text), max_size=4), st.data())
def test_hashes_tell_corpora_apart(rows: list[tuple[str, str, str]], data: st.DataObject) -> None:
    """However characters are moved between id, title, text and passages."""
    other = data.draw(st.lists(st.tuples(_text, _text, _text), max_size=4))
    hashes = [passages_hash(Passage(*row) for row in given) for given in (rows, other)]
    assert (hashes[0] == hashes[1]) is (rows == other)
    assert len(hashes[0]) == 64
