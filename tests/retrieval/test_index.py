"""Building: what a kill, a damaged file or a second builder does to an index."""

import os
import resource
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
from filelock import FileLock
from run_helpers import refused

from llds_core.config import DenseConfig
from llds_core.errors import DataError, RunError
from llds_core.retrieval import DenseRetriever, build_index
from llds_core.retrieval.index import read_index_manifest

faiss = pytest.importorskip("faiss", reason="needs faiss")

PASSAGES = passages(350)
KINDS = {
    "flat": FAKE,
    "hnsw": replace(FAKE, index="hnsw", hnsw_neighbours=8, hnsw_build_depth=20),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads add to a graph in any order: one makes the same graph every time."""
    monkeypatch.setattr("llds_core.retrieval.index.SHARD", 100)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def build(folder: Path, settings: DenseConfig = FAKE, encoder: FakeEncoder | None = None) -> dict:
    return build_index(PASSAGES, settings, folder, encoder=encoder or FakeEncoder())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_shards_index_and_manifest(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "new" / "index"
    manifest = build(folder, KINDS[kind])
    shards = [f"vectors-0000{i}.npy" for i in range(4)]
    own = [] if kind == "flat" else ["index.faiss"]
    assert sorted(contents(folder)) == [*own, "manifest.json", *shards]
    stored = [np.load(folder / name) for name in shards]
    assert [rows.shape for rows in stored] == [(100, 32)] * 3 + [(50, 32)]
    expected = FakeEncoder().encode_passages(PASSAGES)
    np.testing.assert_array_equal(np.concatenate(stored), expected)
    assert manifest == read_index_manifest(folder)
    assert manifest["passages"] == 350 and manifest["dimension"] == 32
    assert manifest["query_prefix"] == "query: " and manifest["passage_prefix"] == "passage: "
    if own:
        index = faiss.read_index(str(folder / "index.faiss"))
        assert index.ntotal == 350 and index.metric_type == faiss.METRIC_INNER_PRODUCT
        _, found = index.search(expected, 5)
        assert (found == np.arange(350)[:, None]).any(axis=1).mean() > 0.97


def test_more_shards_than_a_process_may_have_files_are_read(tmp_path: Path, monkeypatch) -> None:
    """Wikipedia has 4,200 of them, and 1,024 files is a common limit."""
    monkeypatch.setattr("llds_core.retrieval.index.SHARD", 2)
    encoder, limits = FakeEncoder(), resource.getrlimit(resource.RLIMIT_NOFILE)
    build(tmp_path, KINDS["flat"], encoder)
    open_now = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 50, limits[1]))
    try:
        build(tmp_path, KINDS["hnsw"], encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert encoder.encoded == 350


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        refused(RunError, r"cannot write to .*index\.faiss", build, tmp_path, KINDS["hnsw"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_another_kind_of_index_costs_no_second_encoding(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    for kind in ("flat", "hnsw", "flat"):
        build(tmp_path, KINDS[kind], encoder)
        assert (tmp_path / "index.faiss").exists() is (kind != "flat")
    assert encoder.encoded == 350


_KILLED = """
import os, signal, sys
from pathlib import Path
from dense_worlds import FakeEncoder
from llds_core.retrieval import index
from test_index import KINDS, build, faiss
class Killed(FakeEncoder):
    def encode_passages(self, passages):
        if self.encoded == 200:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_passages(passages)
index.SHARD = 100
build(Path(sys.argv[1]), KINDS["hnsw"], Killed())
"""


def test_a_killed_build_continues_to_the_same_index(tmp_path: Path) -> None:
    """Killed in its third shard: two are kept, and the files end up the same byte for byte."""
    paths = ":".join([*sys.path, str(Path(__file__).parent)])
    words = [sys.executable, "-c", _KILLED, str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    shards = sorted(name for name in contents(tmp_path / "killed") if name[0] == "v")
    assert shards == ["vectors-00000.npy", "vectors-00001.npy"]
    assert read_index_manifest(tmp_path / "killed")["index"] is None
    encoder = FakeEncoder()
    build(tmp_path / "killed", KINDS["hnsw"], encoder)
    assert encoder.encoded == 150
    build(tmp_path / "whole", KINDS["hnsw"])
    killed, whole = (contents(tmp_path / name) for name in ("killed", "whole"))
    assert {name: killed[name] for name in whole} == whole


def test_a_second_builder_waits(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"):
        waiting = threading.Thread(target=build, args=(tmp_path,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not (tmp_path / "manifest.json").exists()
    waiting.join(60)
    assert read_index_manifest(tmp_path)["index"]


@pytest.mark.parametrize(
    ("named", "corpus", "hash_", "values"),
    [
        ("passages 350, now 349", PASSAGES[:-1], "0", {}),
        ("corpus '", (replace(PASSAGES[0], text="other"), *PASSAGES[1:]), "0", {}),
        ("corpus '", PASSAGES[::-1], "0", {}),
        ("dense.encoder '000000000000", PASSAGES, "1", {}),
        ("dense.max_tokens 256, now 128", PASSAGES, "0", {"max_tokens": 128}),
        ("dense.passage_prefix", PASSAGES, "0", {"passage_prefix": ""}),
        ("dense.half False, now True", PASSAGES, "0", {"half": True}),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, named: str, corpus, hash_, values) -> None:
    build(tmp_path)
    before, encoder = contents(tmp_path), FakeEncoder(hash=hash_ * 64)
    settings = replace(FAKE, **values)
    refused(RunError, named, build_index, corpus, settings, tmp_path, encoder=encoder)
    assert contents(tmp_path) == before


DAMAGE = {
    "missing": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[:500],
    "longer": lambda content: b"x" + content,
    "a flipped bit": lambda content: content[:-3] + bytes([content[-3] ^ 4]) + content[-2:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    ("kind", "name", "encoded"),
    [(kind, "vectors-00001.npy", 100) for kind in KINDS] + [("hnsw", "index.faiss", 0)],
)
def test_what_is_damaged_is_named_and_only_that_made_again(tmp_path, kind, name, encoded, damage):
    settings, encoder = KINDS[kind], FakeEncoder()
    build(tmp_path, settings)
    before = contents(tmp_path)
    if damage:
        (tmp_path / name).write_bytes(damage(before[name]))
    else:
        (tmp_path / name).unlink()
    named = f"{name} is missing or damaged .* not that of the manifest.*: build the index again"
    refused(DataError, named, DenseRetriever, PASSAGES, settings, tmp_path, FakeEncoder())
    build(tmp_path, settings, encoder)
    assert encoder.encoded == encoded
    assert contents(tmp_path) == before
