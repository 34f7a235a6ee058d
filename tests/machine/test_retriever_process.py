"""The search service that a job starts: it is waited for, checked, and stopped whatever happens."""

import json
import multiprocessing
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from run_helpers import one_line, refused
from services import Scripted, eventually, free_port

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.errors import RetrieverChangedError, RetrieverError, RunError
from llds_core.machine import retriever
from llds_core.machine.retriever import running_retriever, wait_for_service
from llds_core.retrieval.client import ask_health

CORPUS = "c" * 16
# A service as `python -m llds_core retriever` is one, in a tenth of a second.
_STUB = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
behaviour = Path(__file__).with_name("behaviour").read_text().split()
Path(__file__).with_name("arguments").write_text(" ".join(sys.argv[1:]))
if behaviour[0] == "die":
    sys.exit("error: no index there: build it")
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        ready = behaviour[0] == "ready"
        row = {"status": "ready" if ready else "loading"}
        if ready:
            row |= {"index": "i", "corpus": behaviour[1], "backend": "dense", "passages": 1}
        body = json.dumps(row).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def config() -> ExperimentConfig:
    return load_experiment("paper-3b/grpo", [f"service.url=http://127.0.0.1:{free_port()}"])


def stub(folder: Path, behaviour: str) -> Path:
    """A virtual environment whose Python runs the stub."""
    python = folder / "env/bin/python"
    python.parent.mkdir(parents=True)
    (folder / "stub.py").write_text(_STUB)
    (folder / "behaviour").write_text(behaviour)
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{folder}/stub.py' \"$@\"\n")
    python.chmod(0o755)
    return folder / "env"


def started(config: ExperimentConfig, folder: Path, behaviour: str) -> AbstractContextManager:
    environment, log = stub(folder, behaviour), folder / "log.txt"
    return running_retriever(config, CORPUS, ["a.b=c"], log, environment=environment)


def state(config: ExperimentConfig) -> str:
    return ask_health(config.service.url).state


def test_it_runs_in_its_own_environment_for_as_long_as_it_is_needed(config, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), started(config, tmp_path, f"ready {CORPUS}"):
        assert state(config) == "ready"
        raise KeyboardInterrupt
    assert state(config) == "silent"
    words = (tmp_path / "arguments").read_text()
    assert words.startswith("-m llds_core retriever paper-3b a.b=c --backend dense --host")


def hold(config: ExperimentConfig, folder: Path) -> None:
    with started(config, folder, f"ready {CORPUS}"):
        time.sleep(600)


def test_it_ends_when_the_job_is_killed(config: ExperimentConfig, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ends the children of a killed process")
    spawn = multiprocessing.get_context("spawn")
    job = spawn.Process(target=hold, args=(config, tmp_path), daemon=True)
    job.start()
    eventually(lambda: state(config) == "ready")
    job.kill()
    job.join()
    # The kernel's signal is on its way.
    eventually(lambda: state(config) == "silent")


@pytest.mark.parametrize(
    ("behaviour", "patience", "error", "words"),
    [
        ("die", 60.0, RunError, "the retriever ended: no index there: build it"),
        ("loading", 1.0, RetrieverError, r"not ready after 1 s \(loading\)"),
        ("ready other", 60.0, RetrieverChangedError, "corpus other, this profile is about cccc"),
    ],
)
def test_one_that_does_not_come_up_is_one_line_and_stopped(
    config: ExperimentConfig, tmp_path: Path, monkeypatch, behaviour, patience, error, words
) -> None:
    monkeypatch.setattr(retriever, "START_SECONDS", patience)
    with pytest.raises(error, match=words) as caught, started(config, tmp_path, behaviour):
        pytest.fail("it was taken for ready")
    one_line(caught)
    assert state(config) == "silent"


def ready() -> AbstractContextManager[str]:
    """A service that is there already."""
    about = {"status": "ready", "index": "i", "corpus": CORPUS, "backend": "dense", "passages": 1}
    return Scripted(lambda *_: (200, {}, json.dumps(about).encode())).serve()


def test_a_service_that_is_there_is_used_and_left_running(tmp_path: Path) -> None:
    with ready() as url:
        config = load_experiment("paper-3b/grpo", [f"service.url={url}"])
        with started(config, tmp_path, "die"):
            pass
        assert state(config) == "ready"
    assert not (tmp_path / "arguments").exists()


def test_another_machine_waits_for_the_service_of_the_first(monkeypatch) -> None:
    with ready() as url:
        wait_for_service(url, CORPUS)
        refused(RetrieverChangedError, CORPUS, wait_for_service, url, "d" * 16)
    monkeypatch.setattr(retriever, "START_SECONDS", 0.3)
    nobody = f"http://127.0.0.1:{free_port()}"
    refused(RetrieverError, "look at the first machine", wait_for_service, nobody, CORPUS)
