"""Sizes by arithmetic are the sizes of real indexes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import FAKE, FakeEncoder, passages

from llds_core.config import DenseConfig
from llds_core.machine.sizing import WIKIPEDIA_PASSAGES, index_size, size_table
from llds_core.retrieval import PassageFile, build_index
from llds_core.worlds.records import write_corpus

faiss = pytest.importorskip("faiss", reason="needs faiss")

COUNT, DIMENSION, HEADER = 3000, 64, 128  # numpy writes 128 bytes before the numbers


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("kind", "exact"),
    [
        (FAKE, True),
        (replace(FAKE, index="ivf-pq", pq_bytes=8, ivf_lists=30), True),
        (replace(FAKE, index="hnsw", hnsw_neighbours=16, hnsw_build_depth=20), False),
        (replace(FAKE, index="hnsw", hnsw_neighbours=4, hnsw_build_depth=20), False),
    ],
)
def test_files_have_the_size_that_was_foretold(
    tmp_path: Path, kind: DenseConfig, exact: bool, half: bool
) -> None:
    """Stored vectors and offsets to the byte; FAISS files to their header of some hundred bytes,
    graphs to 2 %, because the levels of their nodes are drawn.
    """
    settings = replace(kind, half=half)
    write_corpus(tmp_path / "corpus.jsonl", passages(COUNT))
    corpus = PassageFile(tmp_path / "corpus.jsonl")
    folder = tmp_path / "index"
    build_index(corpus, settings, folder, encoder=FakeEncoder(DIMENSION))
    text = corpus.path.stat().st_size
    size = index_size(settings, COUNT, DIMENSION, text_bytes=text / COUNT)
    assert size.text == text
    assert size.offsets == corpus.offsets_path.stat().st_size - HEADER
    shards = sorted(folder.glob("vectors-*"))
    assert size.vectors == sum(shard.stat().st_size - HEADER for shard in shards)
    assert size.disk == size.text + size.offsets + size.vectors + size.index
    if settings.index == "flat":
        assert size.index == 0
        return
    measured = (folder / "index.faiss").stat().st_size
    assert size.index == pytest.approx(measured, rel=0.02)
    if exact:
        assert 0 < measured - size.index < 400
    assert len(faiss.serialize_index(faiss.read_index(str(folder / "index.faiss")))) == measured


def test_a_flat_index_in_memory_is_its_numbers() -> None:
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(np.zeros((COUNT, DIMENSION), np.float32))
    size = index_size(FAKE, COUNT, DIMENSION)
    assert 0 < len(faiss.serialize_index(index)) - size.memory < 100
    assert size.memory == index.codes.size()


def test_wikipedia_takes_what_the_arithmetic_says() -> None:
    """21,015,324 × 768 × 4 bytes = 64,559,075,328, the size of the flat index that Search-R1
    distributes; half of it in 16 bits.
    """
    flat = index_size(DenseConfig(), WIKIPEDIA_PASSAGES, 768)
    assert flat.memory == flat.vectors == flat.gpu == 64_559_075_328
    half = index_size(DenseConfig(half=True), WIKIPEDIA_PASSAGES, 768)
    assert half.vectors == half.gpu == 32_279_537_664
    assert half.memory == flat.memory
    # 64 neighbours: 4 (128 + 64 / 63) + 12 = 528.06 bytes a passage.
    graph = index_size(DenseConfig(index="hnsw"), WIKIPEDIA_PASSAGES, 768)
    assert graph.index - flat.memory == pytest.approx(528.06 * WIKIPEDIA_PASSAGES, rel=1e-4)
    assert graph.gpu is None
    # 72 bytes a passage, 18,337 cells of 3,080 bytes, a code book of 786,432 bytes.
    codes = index_size(DenseConfig(index="ivf-pq"), WIKIPEDIA_PASSAGES, 768)
    assert codes.index == 72 * WIKIPEDIA_PASSAGES + 18_337 * 3_080 + 786_432


def test_the_table_has_a_row_for_every_kind() -> None:
    table = size_table()
    assert "21,015,324 passages × 768" in table
    assert table.count("\n| ") == 6
    assert "| flat | 13.9 | 0.2 | 64.6 | 0.0 | 78.6 | 64.6 | 64.6 |" in table
