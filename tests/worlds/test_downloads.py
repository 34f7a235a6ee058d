"""`make data` against a hub on the loopback, with the real `huggingface_hub` in between."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import huggingface_hub.constants
import numpy as np
import pytest

from llds_core.__main__ import main
from llds_core.config import DenseConfig
from llds_core.errors import DataError, DownloadError, RunError
from llds_core.retrieval.encoder import PACKAGED, Encoder, encoder_folder
from llds_core.worlds import downloads, sources
from llds_core.worlds.assembly import unpack
from llds_core.worlds.downloads import download, plan, read_manifest, room
from llds_core.worlds.records import read_corpus

PASSAGES = b"".join(
    json.dumps({"id": str(i), "contents": f'"T{i}"\ntext {i}'}).encode() + b"\n" for i in range(50)
)
INDEX = bytes(range(256)) * 300  # cut into 50,000 and 26,800 bytes
CUT = 50_000
QUESTION = b'{"id": "test_0", "question": "q?", "golden_answers": ["a"]}\n'


def tar_gz(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("data00/someone/wiki_dump.jsonl")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        # Waits between the library's tries.
        without_sleep = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr("huggingface_hub.file_download.time", without_sleep)
        small = dataclasses.replace(sources.SOURCES["corpus"], unpacked=len(PASSAGES))
        monkeypatch.setitem(sources.SOURCES, "corpus", small)
        fill(hub)
        yield hub


def fill(hub: fake_hub.FakeHub) -> None:
    model = {
        "config.json": b"{}",
        "model.safetensors": b"weights" * 500,
        "vocab.txt": b"a\nb\n",
        "README.md": b"not wanted",
        "original/params.json": b"not wanted",
    }
    encoder = model | {"modules.json": b"[]", "1_Pooling/config.json": b"{}"}
    content = {
        "questions": dict.fromkeys(sources.SOURCES["questions"].files, QUESTION),
        "train": {"train.parquet": b"PAR1" * 1000, "test.parquet": b"not wanted"},
        "corpus": {"wiki-18.jsonl.gz": tar_gz(PASSAGES)},
        "index": {"part_aa": INDEX[:CUT], "part_ab": INDEX[CUT:]},
        "encoder": encoder | {"onnx/config.json": b"not wanted"},
    }
    for name, source in sources.SOURCES.items():
        hub.add(source.kind, source.repo, source.revision, content.get(name, model))


def fetch(folder: Path, *names: str) -> None:
    download(plan(names, folder), folder, say=lambda line: None)


def test_everything_of_a_paper_profile_is_fetched_verified_and_recorded(hub, tmp_path, capsys):
    arguments = ["data", "paper-3b", "--folder", str(tmp_path), "--yes", "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "PeterJinGo/wiki-18-e5-index" in printed and "together" in printed
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        ".lock",
        "manifest.json",
        *(f"questions/{name}" for name in sources.SOURCES["questions"].files),
        "train/train.parquet",
        "corpus/wiki-18.jsonl",
        "index/e5_Flat.index",
        *(f"encoder/e5-base-v2/{n}" for n in ("config.json", "model.safetensors", "vocab.txt")),
        *(f"encoder/e5-base-v2/{n}" for n in ("modules.json", "1_Pooling/config.json")),
        *(f"policy/qwen2.5-3b/{n}" for n in ("config.json", "model.safetensors", "vocab.txt")),
    }
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX
    assert len(read_corpus(tmp_path / "corpus/wiki-18.jsonl")) == 50
    for entry in read_manifest(tmp_path).values():
        assert len(entry["revision"]) == 40 and entry["complete"]
        for path, facts in entry["files"].items():
            content = (tmp_path / entry["folder"] / path).read_bytes()
            assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    parts = read_manifest(tmp_path)["index"]["made_from"]
    assert parts["part_ab"]["sha256"] == hashlib.sha256(INDEX[CUT:]).hexdigest()

    hub.ranges.clear()
    assert main(arguments) == 0
    assert "complete in" in capsys.readouterr().out and not hub.ranges


def test_a_lost_or_shortened_file_is_fetched_again(hub, tmp_path):
    fetch(tmp_path, "questions")
    (tmp_path / "questions/nq/test.jsonl").unlink()
    (tmp_path / "questions/popqa/test.jsonl").write_bytes(b"")
    hub.ranges.clear()
    fetch(tmp_path, "questions")
    assert [path for path, _ in hub.ranges] == ["nq/test.jsonl", "popqa/test.jsonl"]
    assert not plan(["questions"], tmp_path)


def test_a_sentence_encoder_arrives_whole(hub, tmp_path):
    """With the settings of its pooling, which are in a folder of their own."""
    settings = DenseConfig(encoder=PACKAGED, device="cpu")
    packaged = encoder_folder(settings)
    files = {
        str(file.relative_to(packaged)): file.read_bytes()
        for file in packaged.rglob("*")
        if file.is_file()
    }
    source = sources.SOURCES["encoder"]
    hub.add(source.kind, source.repo, source.revision, files)
    fetch(tmp_path, "encoder")
    fetched = dataclasses.replace(settings, encoder=str(tmp_path / source.folder))
    ours, theirs = Encoder(fetched), Encoder(settings)
    asked = ["the capital of Chad"]
    np.testing.assert_array_equal(ours.encode_queries(asked), theirs.encode_queries(asked))


def test_a_list_of_files_that_has_grown_is_not_complete(hub, tmp_path, monkeypatch):
    source = sources.SOURCES["encoder"]
    short = dataclasses.replace(source, files=source.files[:-1])
    with monkeypatch.context() as before:
        before.setitem(sources.SOURCES, "encoder", short)
        fetch(tmp_path, "encoder")
        assert not plan(["encoder"], tmp_path)
    hub.ranges.clear()
    fetch(tmp_path, "encoder")
    assert [path for path, _ in hub.ranges] == ["1_Pooling/config.json"]


def test_an_index_that_was_put_together_is_not_fetched_again(hub, tmp_path):
    """Killed between the two: the file is whole and the manifest does not know it."""
    fetch(tmp_path, "index")
    (tmp_path / "manifest.json").unlink()
    hub.ranges.clear()
    fetch(tmp_path, "index")
    assert not hub.ranges and not plan(["index"], tmp_path)


def test_an_index_whose_vectors_were_taken_may_be_deleted(hub, tmp_path, capsys):
    arguments = ["data", "paper-3b", "--folder", str(tmp_path), "--yes", "--quiet"]
    assert main(arguments) == 0
    (tmp_path / "index/e5_Flat.index").unlink()
    finished = {"schema_version": 1, "passages": 0, "dimension": 2, "dtype": "float32"}
    finished |= {"shard_passages": 1, "shards": [], "index": {"index": "flat"}}
    (tmp_path / "index/manifest.json").write_text(json.dumps(finished))
    hub.ranges.clear()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "its vectors are in" in capsys.readouterr().out and not hub.ranges


def test_a_broken_connection_is_continued_not_begun_again(hub, tmp_path):
    hub.break_after["part_aa"] = 20_000
    fetch(tmp_path, "index")
    assert hub.ranges[:2] == [("part_aa", None), ("part_aa", "bytes=20000-")]
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX


def test_a_killed_call_is_continued_by_the_next(hub, tmp_path):
    """Killed in the middle of the second part: neither part is fetched from its beginning."""
    hub.stall_after["part_ab"] = 10_000
    code = (
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1000\n"
        "from llds_core.__main__ import main\n"
        f"main(['data', 'paper-3b', '--only', 'index', '--yes', '--folder', {str(tmp_path)!r}])"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 600
        while not any(p.stat().st_size >= 10_000 for p in tmp_path.rglob("part_ab.part")):
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        with pytest.raises(RunError, match="another download is at work"):
            fetch(tmp_path, "index")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "manifest.json").exists()
    hub.stall_after.clear()
    hub.ranges.clear()
    (item,) = plan(["index"], tmp_path)
    assert item.load == len(INDEX) - CUT - 10_000
    fetch(tmp_path, "index")
    assert hub.ranges == [("part_ab", "bytes=10000-")]
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX


@pytest.mark.parametrize("appended", [0, 1, 20_000, len(INDEX) - CUT])
def test_joining_goes_on_wherever_it_was_stopped(hub, tmp_path, appended):
    source = sources.SOURCES["index"]
    staging = tmp_path / ".incoming" / source.repo.replace("/", "--") / source.revision[:12]
    staging.mkdir(parents=True)
    (staging / "joined").write_bytes(INDEX[:CUT] + bytes(appended))
    (staging / "part_ab").write_bytes(INDEX[CUT:])
    if appended == len(INDEX) - CUT:  # appended in full, but not what it should be
        with pytest.raises(DataError, match="part_ab is damaged"):
            fetch(tmp_path, "index")
    fetch(tmp_path, "index")
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX


def test_content_other_than_announced_is_refused_and_deleted(hub, tmp_path):
    hub.corrupt |= {"part_aa", "config.json"}
    for name in ("index", "encoder"):  # by SHA-256, by git's name
        with pytest.raises(DownloadError, match=r"arrived with checksum .* it was deleted"):
            fetch(tmp_path, name)
    assert not list(tmp_path.rglob("*part_aa*")) and not list(tmp_path.rglob("*config.json*"))
    hub.corrupt.clear()
    fetch(tmp_path, "index", "encoder")


def one_line(capsys, *arguments: str) -> str:
    assert main(["data", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_refusal_of_the_hub_is_one_line(hub, tmp_path, capsys):
    folder = ["--folder", str(tmp_path), "--yes"]
    hub.gated.add("meta-llama/Llama-3.2-3B")
    llama = one_line(capsys, "paper-llama3.2-3b", *folder)
    assert "is gated" in llama and "hf auth login" in llama
    hub.revisions["dataset", "PeterJinGo/wiki-18-corpus"] = "0" * 40
    assert "has no revision 69c1c00f" in one_line(capsys, "paper-3b", *folder)
    del hub.repos["dataset", "PeterJinGo/nq_hotpotqa_train"]
    assert "is not on the hub, or not for you" in one_line(capsys, "paper-3b", *folder)
    hub.repos["dataset", "PeterJinGo/wiki-18-e5-index"].pop("part_ab")
    assert "holds no part_ab" in one_line(capsys, "paper-3b", "--only", "index", *folder)
    assert not list(tmp_path.iterdir()), "a refusal before anything was agreed to leaves no trace"


def test_no_hub_at_all_is_one_line(hub, tmp_path, capsys, monkeypatch):
    hub.shutdown()
    hub.server_close()
    line = one_line(capsys, "paper-3b", "--folder", str(tmp_path), "--yes")
    assert "check the network; the same command goes on" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in one_line(capsys, "paper-3b", "--folder", str(tmp_path))


def test_a_connection_that_keeps_breaking_ends_in_one_line(hub, tmp_path):
    items = plan(["train"], tmp_path)
    hub.down = True
    with pytest.raises(DownloadError, match="did not give PeterJinGo/nq_hotpotqa_train"):
        download(items, tmp_path, say=lambda line: None)


def test_a_small_disk_is_refused_before_anything_is_fetched(hub, tmp_path, capsys, monkeypatch):
    usage = SimpleNamespace(free=50_000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    line = one_line(capsys, "paper-3b", "--folder", str(tmp_path / "new"), "--yes")
    assert "0.1 MB free" in line or "0.0 MB free" in line
    assert "--only" in line and not (tmp_path / "new").exists() and not hub.ranges


def test_room_counts_the_worst_moment(hub, tmp_path):
    corpus, index = plan(["corpus", "index"], tmp_path)
    archive = len(tar_gz(PASSAGES))
    assert (corpus.final, corpus.peak) == (len(PASSAGES), len(PASSAGES) + archive)
    assert (index.final, index.peak) == (len(INDEX), len(INDEX) + len(INDEX) - CUT)
    assert room([corpus, index]) == corpus.final + index.peak


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(hub, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    items = plan(["train"], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(RunError, match=r"No space left on device.*free space"):
            download(items, tmp_path, say=lambda line: None)
    fetch(tmp_path, "train")


def test_nothing_is_fetched_without_consent(hub, tmp_path, capsys, monkeypatch):
    arguments = ["paper-3b", "--folder", str(tmp_path)]
    assert "add --yes" in one_line(capsys, *arguments)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    assert main(["data", *arguments]) == 1
    assert not hub.ranges and not list(tmp_path.iterdir())


def test_a_profile_without_files_needs_nothing(capsys):
    assert main(["data", "smoke"]) == 0
    assert "needs no download" in capsys.readouterr().out
    assert 'did you mean "paper-3b"?' in one_line(capsys, "paper-3c")
    assert 'did you mean "index"?' in one_line(capsys, "paper-3b", "--only", "indx")


def test_a_folder_that_is_a_file_is_named(hub, tmp_path, capsys):
    (tmp_path / "data").write_text("")
    line = one_line(capsys, "paper-3b", "--folder", str(tmp_path / "data"), "--yes")
    assert "cannot be written (File exists): choose another --folder" in line


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"sources": [1]}')
    with pytest.raises(DataError, match=r"manifest\.json is damaged: delete it"):
        plan(["questions"], tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (gzip.compress(PASSAGES)[:-20], "cannot be unpacked"),
        (b"no gzip", "cannot be unpacked"),
        (gzip.compress(b"no passage\n"), "first line is no passage"),
        (gzip.compress(b"x" * 257 + b"ustar" + bytes(300)), "cannot be unpacked|holds no file"),
    ],
)
def test_a_bad_archive_is_named(tmp_path, content, complaint):
    archive = tmp_path / "wiki.jsonl.gz"
    archive.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        unpack(archive, tmp_path / "wiki.jsonl")
    assert not (tmp_path / "wiki.jsonl").exists()


@pytest.mark.parametrize("pack", [gzip.compress, tar_gz])
def test_a_gzip_and_a_tar_in_it_unpack_alike(tmp_path, pack):
    """The published corpus is a tar named .jsonl.gz; gunzip would leave the tar header in front."""
    archive = tmp_path / "wiki.jsonl.gz"
    archive.write_bytes(pack(PASSAGES))
    digest = unpack(archive, tmp_path / "wiki.jsonl")
    assert (tmp_path / "wiki.jsonl").read_bytes() == PASSAGES
    assert digest == hashlib.sha256(PASSAGES).hexdigest()
