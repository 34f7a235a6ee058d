"""An index that somebody else built: taken where it fits corpus and encoder, else refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import FAKE, FakeEncoder, passages
from files_world import write_published_vectors

from llds_core.errors import ConfigError, DataError
from llds_core.retrieval.dense import DenseRetriever
from llds_core.retrieval.index import build_index
from llds_core.retrieval.vectors import StoredVectors

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(350)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "e5_Flat.index"
    write_published_vectors(path, FakeEncoder(), PASSAGES)
    return path


def build(published: Path, encoder: FakeEncoder, **values: object) -> dict:
    settings = replace(FAKE, vectors=str(published), **values)
    folder = published.parent / "index"
    return build_index(PASSAGES, settings, folder, encoder=encoder, progress=False)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_its_vectors_are_taken_and_a_few_are_checked(published: Path, kind: str) -> None:
    encoder = FakeEncoder()
    manifest = build(published, encoder, index=kind)
    assert encoder.encoded < 40
    assert {shard["from"] for shard in manifest["shards"]} == {"e5_Flat.index"}
    stored = np.concatenate(list(StoredVectors(published.parent / "index", manifest).blocks(64)))
    np.testing.assert_allclose(stored, FakeEncoder().encode_passages(PASSAGES), atol=1e-6)


def test_an_index_made_of_it_answers_like_one_encoded_here(published: Path) -> None:
    build(published, FakeEncoder())
    build_index(PASSAGES, FAKE, published.parent / "own", encoder=FakeEncoder(), progress=False)
    queries = [passage.title for passage in PASSAGES[::10]]
    given, own = (
        DenseRetriever(PASSAGES, published.parent / name, FAKE, encoder=FakeEncoder())
        for name in ("index", "own")
    )
    found = [[hit.id for hit in hits] for hits in given.search(queries, 3)]
    assert found == [[hit.id for hit in hits] for hits in own.search(queries, 3)]
    # Equal up to rounding, which may decide between near equals: an evaluation must not mix them.
    assert given.identity != own.identity


def test_once_taken_it_may_be_deleted(published: Path) -> None:
    build(published, FakeEncoder())
    published.unlink()
    encoder = FakeEncoder()
    build(published, encoder, index="hnsw")
    assert encoder.encoded == 0


def test_a_damaged_shard_is_taken_again(published: Path) -> None:
    before = build(published, FakeEncoder())
    (published.parent / "index" / "vectors-00001.npy").write_bytes(b"damaged")
    after = build(published, FakeEncoder())
    assert after["shards"] == before["shards"]


def test_a_missing_one_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dense\.vectors is .*, which is missing: fetch it"):
        build(tmp_path / "none.index", FakeEncoder())
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_another_file_is_refused(published: Path) -> None:
    published.write_bytes(b"no index at all")
    with pytest.raises(DataError, match="is no index that faiss reads: fetch it again"):
        build(published, FakeEncoder())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (faiss.IndexHNSWFlat(32, 8, faiss.METRIC_INNER_PRODUCT), "is a IndexHNSWFlat"),
        (faiss.IndexFlatL2(32), "is a IndexFlatL2"),
        (faiss.IndexFlatIP(16), "holds 0 vectors of 16 numbers, the corpus has 350 passages"),
    ],
)
def test_another_kind_or_size_is_refused(published: Path, index: faiss.Index, message: str) -> None:
    faiss.write_index(index, str(published))
    with pytest.raises(DataError, match=message):
        build(published, FakeEncoder())


def test_vectors_of_another_corpus_are_refused(published: Path) -> None:
    write_published_vectors(published, FakeEncoder(), [*PASSAGES[1:], PASSAGES[0]])
    with pytest.raises(DataError, match=r'vector \d+ is not that of passage ".+" \(cosine') as told:
        build(published, FakeEncoder())
    assert "34 of 34 differ" in str(told.value) or "33 of 33 differ" in str(told.value)


def test_vectors_that_are_displaced_from_somewhere_on_are_refused(published: Path) -> None:
    half = len(PASSAGES) // 2
    swapped = [*PASSAGES[:half], *PASSAGES[half + 1 :], PASSAGES[half]]
    write_published_vectors(published, FakeEncoder(), swapped)
    with pytest.raises(DataError, match="is not that of passage"):
        build(published, FakeEncoder())


def test_lengths_are_made_one(published: Path) -> None:
    index = faiss.read_index(str(published))
    doubled = faiss.IndexFlatIP(32)
    doubled.add(2 * index.reconstruct_n(0, len(PASSAGES)))
    faiss.write_index(doubled, str(published))
    manifest = build(published, FakeEncoder())
    rows = StoredVectors(published.parent / "index", manifest).rows(np.arange(5))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("place", [0, 100])
def test_numbers_that_are_not_finite_are_named(published: Path, place: int) -> None:
    vectors = faiss.read_index(str(published)).reconstruct_n(0, len(PASSAGES))
    vectors[place, 3] = np.nan
    broken = faiss.IndexFlatIP(32)
    broken.add(vectors)
    faiss.write_index(broken, str(published))
    with pytest.raises(DataError, match=rf"vector {place} has numbers that are not finite"):
        build(published, FakeEncoder())
