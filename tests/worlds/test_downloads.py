"""`make data` against a hub on the loopback, with the real `huggingface_hub` in between."""

import dataclasses
import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import fake_hub
import huggingface_hub.constants
import pytest
from run_helpers import mistake, refused

from llds_core.__main__ import main
from llds_core.errors import DownloadError, RunError
from llds_core.worlds import downloads
from llds_core.worlds.downloads import SOURCES, download, find_missing, read_manifest

PASSAGES = b'{"id": "1", "contents": "\\"Homs\\"\\nA city."}\n' * 50
INDEX = bytes(range(256)) * 300  # cut into 50,000 and 26,800 bytes
CUT = 50_000


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
        url = f"http://127.0.0.1:{hub.server_port}"
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        changed = {"HF_HUB_OFFLINE": False, "ENDPOINT": url, "DOWNLOAD_CHUNK_SIZE": 1000}
        for name, value in (changed | {"HUGGINGFACE_CO_URL_TEMPLATE": template}).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        # Waits between the library's tries.
        without_sleep = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr("huggingface_hub.file_download.time", without_sleep)
        small = dataclasses.replace(SOURCES["corpus"], unpacked=len(PASSAGES))
        monkeypatch.setitem(SOURCES, "corpus", small)
        model = {"config.json": b"{}", "model.safetensors": b"weights" * 500, "vocab.txt": b"a"}
        model |= dict.fromkeys(("README.md", "original/params.json"), b"not wanted")
        content = {
            "questions": dict.fromkeys(SOURCES["questions"].files, b"{}"),
            "train": {"train.parquet": b"PAR1" * 1000, "test.parquet": b"not wanted"},
            "corpus": {"wiki-18.jsonl.gz": tar_gz(PASSAGES)},
            "index": {"part_aa": INDEX[:CUT], "part_ab": INDEX[CUT:]},
            "encoder": model | {"modules.json": b"[]", "1_Pooling/config.json": b"{}"},
        }
        for name, source in SOURCES.items():
            hub.repos[source.kind, source.repo] = content.get(name, model)
            hub.revisions[source.kind, source.repo] = source.revision
        yield hub


def fetch(folder: Path, *names: str) -> None:
    download(find_missing(names, folder), folder)


def test_everything_of_a_paper_profile_is_fetched_and_recorded(hub, tmp_path, capsys, monkeypatch):
    arguments = ["data", "paper-3b", "--folder", str(tmp_path), "--yes", "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "PeterJinGo/wiki-18-e5-index" in printed and "together" in printed
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    model = ("config.json", "model.safetensors", "vocab.txt")
    assert files == {
        *(".lock", "manifest.json", "train/train.parquet"),
        *("corpus/wiki-18.jsonl", "index/e5_Flat.index"),
        *(f"questions/{name}" for name in SOURCES["questions"].files),
        *(f"encoder/e5-base-v2/{n}" for n in (*model, "modules.json", "1_Pooling/config.json")),
        *(f"policy/qwen2.5-3b/{n}" for n in model),
    }
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX
    assert (tmp_path / "corpus/wiki-18.jsonl").read_bytes() == PASSAGES
    for name, entry in read_manifest(tmp_path).items():
        assert entry["source"] == dataclasses.asdict(SOURCES[name])
        for path, size in entry["files"].items():
            assert (tmp_path / SOURCES[name].folder / path).stat().st_size == size

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(arguments) == 0
    assert "complete in" in capsys.readouterr().out


def test_a_killed_call_is_continued_by_the_next(hub, tmp_path):
    """Killed in the middle of the second part: the first is not fetched again."""
    hub.stall_after["part_ab"] = 10_000
    code = (
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1000\n"
        "from llds_core.__main__ import main\n"
        f"main(['data', 'paper-3b', '--only', 'index', '--yes', '--folder', {str(tmp_path)!r}])"
    )
    reachable = {"HF_ENDPOINT": huggingface_hub.constants.ENDPOINT, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | reachable)
    try:
        deadline = time.monotonic() + 600
        while not (
            list(tmp_path.rglob("part_aa"))
            and any(p.stat().st_size >= 8_000 for p in tmp_path.rglob("*.incomplete"))
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        refused(RunError, "another download is at work", fetch, tmp_path, "index")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "manifest.json").exists()
    hub.stall_after.clear()
    hub.asked.clear()
    (item,) = find_missing(["index"], tmp_path)
    assert item.download == len(INDEX) - CUT
    fetch(tmp_path, "index")
    assert hub.asked == ["part_ab"]
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("appended", [0, 1, 20_000, len(INDEX) - CUT])
def test_joining_goes_on_wherever_it_was_stopped(hub, tmp_path, appended):
    staging = SOURCES["index"].staging(tmp_path)
    staging.mkdir(parents=True)
    (staging / SOURCES["index"].result).write_bytes(INDEX[:CUT] + bytes(appended))
    (staging / "part_ab").write_bytes(INDEX[CUT:])
    fetch(tmp_path, "index")
    assert (tmp_path / "index/e5_Flat.index").read_bytes() == INDEX and not hub.asked


@pytest.mark.parametrize("name", ["index", "corpus", "questions"])
def test_what_is_in_place_is_not_fetched_again(hub, tmp_path, name):
    """Killed between the two: the files are whole and the manifest does not know them."""
    # A corpus that is no tar, in spite of what is published.
    hub.repos["dataset", SOURCES["corpus"].repo] = {"wiki-18.jsonl.gz": gzip.compress(PASSAGES)}
    fetch(tmp_path, name)
    if name == "corpus":
        assert (tmp_path / "corpus/wiki-18.jsonl").read_bytes() == PASSAGES
    (tmp_path / "manifest.json").unlink()
    hub.asked.clear()
    fetch(tmp_path, name)
    assert not hub.asked and not find_missing([name], tmp_path)


@pytest.mark.parametrize(("name", "file"), [("index", "part_aa"), ("encoder", "vocab.txt")])
def test_content_other_than_announced_is_refused_and_deleted(hub, tmp_path, name, file):
    hub.corrupt.add(file)  # told by its SHA-256, and by git's name of it
    named = r"arrived with another checksum .* was deleted"
    refused(DownloadError, named, fetch, tmp_path, name)
    assert not [p for p in tmp_path.rglob(file) if p.is_file()]
    hub.corrupt.clear()
    fetch(tmp_path, name)
    assert not find_missing([name], tmp_path)


def test_every_refusal_of_the_hub_is_one_line(hub, tmp_path, capsys, monkeypatch):
    folder = ["--folder", str(tmp_path), "--yes"]
    hub.gated.add("meta-llama/Llama-3.2-3B")
    llama = mistake(capsys, "data", "paper-llama3.2-3b", *folder)
    assert "is gated" in llama and "hf auth login" in llama
    hub.revisions["dataset", "PeterJinGo/wiki-18-corpus"] = "0" * 40
    assert "has no revision 69c1c00f" in mistake(capsys, "data", "paper-3b", *folder)
    del hub.repos["dataset", "PeterJinGo/nq_hotpotqa_train"]
    assert "is not on the hub, or not for you" in mistake(capsys, "data", "paper-3b", *folder)
    hub.repos["dataset", "PeterJinGo/wiki-18-e5-index"].pop("part_ab")
    assert "holds no part_ab" in mistake(capsys, "data", "paper-3b", "--only", "index", *folder)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    line = mistake(capsys, "data", "paper-3b", *folder)
    assert "check the network; the same command continues" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in mistake(capsys, "data", "paper-3b", *folder)
    assert not list(tmp_path.iterdir()), "a refusal before anything was agreed to leaves no trace"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), r"No space left on device\): free space"),
        (OSError("Consistency check failed"), "did not give PeterJinGo/nq_hotpotqa_train"),
        (RuntimeError("Network error: broken pipe"), r"broken pipe\): check the network"),
    ],
)
def test_after_a_transfer_that_fails_the_next_call_goes_on(hub, tmp_path, monkeypatch, error, said):
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", Mock(side_effect=error))
        refused((RunError, DownloadError), said, fetch, tmp_path, "train")
    fetch(tmp_path, "train")


def test_no_fetching_onto_a_small_disk_or_without_consent(hub, tmp_path, capsys, monkeypatch):
    corpus, index = find_missing(["corpus", "index"], tmp_path)
    assert corpus.room == len(tar_gz(PASSAGES)) + len(PASSAGES)
    assert index.room == len(INDEX) + len(INDEX) - CUT
    with monkeypatch.context() as small:
        small.setattr(downloads.shutil, "disk_usage", lambda path: SimpleNamespace(free=60_000))
        line = mistake(capsys, "data", "paper-3b", "--folder", str(tmp_path / "new"))
    assert "0.1 MB free" in line and "--only" in line and not (tmp_path / "new").exists()
    arguments = ["paper-3b", "--folder", str(tmp_path)]
    assert "--yes" in mistake(capsys, "data", *arguments)
    terminal = io.StringIO("\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(["data", *arguments]) == 1
    assert not hub.asked and not list(tmp_path.iterdir())
