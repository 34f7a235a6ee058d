"""Building: what a kill, a damaged file or a second builder does to an index."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_worlds import FAKE, FakeEncoder, passages

from llds_core.config import DenseConfig
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.retrieval.index import build_index, cells, make_index
from llds_core.retrieval.passage_file import PassageFile
from llds_core.retrieval.vectors import StoredVectors, read_index_manifest
from llds_core.worlds.records import write_corpus

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(350)
KINDS = {
    "flat": FAKE,
    "hnsw": replace(FAKE, index="hnsw", hnsw_neighbours=8, hnsw_build_depth=20),
    "ivf-pq": replace(FAKE, index="ivf-pq", pq_bytes=8),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads add to a graph in any order: one makes the same graph every time."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def build(folder: Path, settings: DenseConfig = FAKE, encoder: FakeEncoder | None = None) -> dict:
    return build_index(PASSAGES, settings, folder, encoder=encoder or FakeEncoder(), progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def without_time(files: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"])
    del manifest["built"]
    return files | {"manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_shards_index_and_manifest(tmp_path: Path, kind: str) -> None:
    manifest = build(tmp_path / "new" / "index", KINDS[kind])
    folder = tmp_path / "new" / "index"
    shards = [f"vectors-0000{i}.npy" for i in range(4)]
    own = [] if kind == "flat" else ["index.faiss"]
    assert sorted(contents(folder)) == [*own, "manifest.json", *shards]
    assert [np.load(folder / name).shape for name in shards] == [(100, 32)] * 3 + [(50, 32)]
    assert manifest == read_index_manifest(folder)
    assert manifest["index"]["index"] == kind
    vectors = StoredVectors(folder, manifest)
    expected = FakeEncoder().encode_passages(PASSAGES)
    np.testing.assert_array_equal(np.concatenate(list(vectors.blocks(33))), expected)
    order = np.random.default_rng(0).permutation(350)
    np.testing.assert_array_equal(vectors.rows(order), expected[order])


def test_the_manifest_says_what_the_index_was_made_from(tmp_path: Path) -> None:
    manifest = build(tmp_path, KINDS["ivf-pq"])
    assert manifest.keys() >= {"corpus_hash", "encoder", "encoder_hash", "revision", "half"}
    assert manifest["passages"] == 350 and manifest["dimension"] == 32
    assert manifest["query_prefix"] == "query: " and manifest["passage_prefix"] == "passage: "
    assert manifest["index"] == {
        "index": "ivf-pq",
        "ivf_lists": 8,
        "pq_bytes": 8,
        "file": "index.faiss",
        "bytes": (tmp_path / "index.faiss").stat().st_size,
        "faiss": faiss.__version__,
    }


def test_a_corpus_file_gives_the_index_of_the_corpus_in_memory(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
    build(tmp_path / "memory")
    opened = PassageFile(tmp_path / "corpus.jsonl")
    build_index(opened, FAKE, tmp_path / "file", encoder=FakeEncoder(), progress=False)
    assert without_time(contents(tmp_path / "file")) == without_time(contents(tmp_path / "memory"))


def test_16_bits_are_stored_as_16_bits(tmp_path: Path) -> None:
    manifest = build(tmp_path, replace(FAKE, half=True))
    assert np.load(tmp_path / "vectors-00000.npy").dtype == np.float16
    rows = StoredVectors(tmp_path, manifest).rows(np.arange(3))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, FakeEncoder().encode_passages(PASSAGES[:3]), atol=5e-4)


def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    build(tmp_path, KINDS["hnsw"])
    before, encoder = contents(tmp_path), FakeEncoder()
    build(tmp_path, KINDS["hnsw"], encoder)
    assert encoder.encoded == 0
    assert contents(tmp_path) == before


def test_another_kind_of_index_costs_no_second_encoding(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    for kind in ("flat", "hnsw", "ivf-pq", "flat"):
        assert build(tmp_path, KINDS[kind], encoder)["index"]["index"] == kind
        assert (tmp_path / "index.faiss").exists() is (kind != "flat")
    assert encoder.encoded == 350


_KILLED = """
import os, signal, sys
from pathlib import Path
from dense_worlds import FakeEncoder, passages
from test_index import KINDS, build, faiss
class Killed(FakeEncoder):
    def encode_passages(self, passages):
        if self.encoded == 232:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_passages(passages)
build(Path(sys.argv[1]), KINDS[sys.argv[2]], Killed())
"""


def killed_build(folder: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), kind],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_build_continues_to_the_same_index(tmp_path: Path) -> None:
    """Killed in its third shard: two are kept, and the files end up the same byte for byte."""
    killed_build(tmp_path / "killed", "hnsw")
    assert sorted(contents(tmp_path / "killed")) == [
        "manifest.json",
        "vectors-00000.npy",
        "vectors-00001.npy",
    ]
    assert read_index_manifest(tmp_path / "killed")["index"] is None
    encoder = FakeEncoder()
    build(tmp_path / "killed", KINDS["hnsw"], encoder)
    assert encoder.encoded == 150
    build(tmp_path / "whole", KINDS["hnsw"])
    assert without_time(contents(tmp_path / "killed")) == without_time(contents(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "unnamed"])
def test_a_damaged_shard_alone_is_encoded_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`unnamed`: its file is whole, but the build was killed before the manifest named it."""
    build(tmp_path, KINDS["hnsw"])
    before = contents(tmp_path)
    shard = tmp_path / "vectors-00001.npy"
    data = bytearray(before[shard.name])
    if damage == "truncated":
        shard.write_bytes(data[:500])
    elif damage == "flipped":
        data[-7] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    else:
        manifest = json.loads(before["manifest.json"])
        del manifest["shards"][1]
        manifest["index"] = None
        (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    encoder = FakeEncoder()
    build(tmp_path, KINDS["hnsw"], encoder)
    assert encoder.encoded == 100
    assert without_time(contents(tmp_path)) == without_time(before)
    assert ("damaged" in caplog.text) is (damage in ("truncated", "flipped"))


def test_a_missing_index_file_is_made_again(tmp_path: Path) -> None:
    build(tmp_path, KINDS["ivf-pq"])
    before, encoder = contents(tmp_path), FakeEncoder()
    (tmp_path / "index.faiss").write_bytes(before["index.faiss"][:100])
    build(tmp_path, KINDS["ivf-pq"], encoder)
    assert encoder.encoded == 0
    assert without_time(contents(tmp_path)) == without_time(before)


def test_a_second_builder_is_refused_or_waits(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(RunError, match="being built by process 4711"):
            build(tmp_path)
        waiting = threading.Thread(
            target=build_index,
            args=(PASSAGES, FAKE, tmp_path),
            kwargs={"encoder": FakeEncoder(), "wait": True, "progress": False},
        )
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not (tmp_path / "manifest.json").exists()
    waiting.join(60)
    assert read_index_manifest(tmp_path)["index"]
    build(tmp_path)  # a lock file alone holds nothing


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("350 passages, now 349 passages", {"count": 349}),
        ("the corpus ", {"first": "other"}),
        ("dense.encoder=fake (000000000000), now dense.encoder=fake (1", {"hash": "1" * 64}),
        ("dense.max_tokens=256, now dense.max_tokens=128", {"settings": {"max_tokens": 128}}),
        ("dense.passage_prefix", {"settings": {"passage_prefix": ""}}),
        ("dense.half=False, now dense.half=True", {"settings": {"half": True}}),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, named: str, changed: dict) -> None:
    build(tmp_path)
    before = contents(tmp_path)
    corpus = PASSAGES[: changed.get("count", 350)]
    if "first" in changed:
        corpus = (replace(corpus[0], text=changed["first"]), *corpus[1:])
    with pytest.raises(RunError) as error:
        build_index(
            corpus,
            replace(FAKE, **changed.get("settings", {})),
            tmp_path,
            encoder=FakeEncoder(hash=changed.get("hash", "0" * 64)),
            progress=False,
        )
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_shards_keep_the_size_they_were_begun_with(tmp_path: Path) -> None:
    killed_build(tmp_path, "flat")
    manifest = build(tmp_path, replace(FAKE, shard_passages=7))
    assert len(manifest["shards"]) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", "{oops"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"manifest\.json is no manifest"):
        build(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}', "utf-8")
    with pytest.raises(DataError, match='no "dimension"'):
        build(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}', "utf-8")
    with pytest.raises(DataError, match="schema version 99"):
        build(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="writable folder"):
        build(tmp_path / "file" / "index")


@pytest.mark.parametrize(
    ("named", "values"),
    [
        (r"dense\.index=flat", {"engine": "torch", "index": "hnsw"}),
        ("does not divide vectors of 32", {"index": "ivf-pq", "pq_bytes": 5}),
        ("dense.ivf_lists=351", {"index": "ivf-pq", "pq_bytes": 8, "ivf_lists": 351}),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, named: str, values: dict) -> None:
    with pytest.raises(ConfigError, match=named):
        build(tmp_path, replace(FAKE, **values))


def test_corpora_that_are_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 passages"):
        build_index((), FAKE, tmp_path, encoder=FakeEncoder(), progress=False)
    with pytest.raises(ConfigError, match="needs 256 passages"):
        build_index(passages(255), KINDS["ivf-pq"], tmp_path, encoder=FakeEncoder(), progress=False)


def test_cells_follow_the_number_of_passages() -> None:
    """4 √n, with at least 40 passages a cell: 4 √(10^6) = 4000, but 350 / 40 = 8."""
    counts = (256, 350, 10_000, 1_000_000, 21_015_324)
    assert [cells(FAKE, n) for n in counts] == [6, 8, 250, 4000, 18337]
    assert cells(replace(FAKE, ivf_lists=3), 350) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_indexes_find_stored_vectors(tmp_path: Path, kind: str) -> None:
    vectors = StoredVectors(tmp_path, build(tmp_path, KINDS[kind]))
    index = make_index(vectors, KINDS[kind])
    assert index.ntotal == 350
    _, found = index.search(vectors.rows(np.arange(350)), 5)
    assert (found == np.arange(350)[:, None]).any(axis=1).mean() > (0.3 if "pq" in kind else 0.97)
