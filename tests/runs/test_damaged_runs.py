"""Run folders and checkpoints that something else has damaged, disks and file systems that refuse,
and signals: one line that names what is wrong, and nothing is lost.
"""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from run_helpers import CONFIG, mistake, refused

from llds_core.__main__ import main
from llds_core.errors import CheckpointError, DataError, LLDSError, RunError
from llds_core.files import locked
from llds_core.runs import Run, RunDirectory, read_manifest
from llds_core.runs.checkpoints import check_checkpoint

# A parent in the background, or under nohup, makes its children ignore two of the signals.
_RUNNING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from types import SimpleNamespace
from llds_core import __main__ as program
from llds_core.runs import RunDirectory

def slow(run):
    with RunDirectory(run.path, run.config, run.seed, command="again"):
        print("ready", flush=True)
        time.sleep(60)

# In place of modules that take seconds to import, or train a start policy.
sys.modules["llds_core.training.experiment"] = SimpleNamespace(train=slow)
sys.modules["llds_core.study.runner"] = SimpleNamespace(make_start_policy=lambda run: None)
sys.exit(program.main(sys.argv[1:]))
"""


def begun(root: Path) -> Path:
    """A run of one step."""
    run = Run(CONFIG, 0, root)
    with RunDirectory(run.path, CONFIG, 0, command="again") as directory:
        directory.append_metrics({"step": 1, "reward": 0.5})
        assert (run.path / ".reserve").stat().st_size  # given back, so that the status finds room
    assert not (run.path / ".reserve").exists()
    return run.path


@pytest.mark.parametrize(
    "damage",
    [
        *({"config": None}, {"config": []}, {"status": 7}, {"seed": "0"}, {"seed": True}),
        *({"resumed": 3}, {"config_hash": 1}, {"method": None}, {"best_step": "x"}),
        *("", "{", "\x00", "[1]", '{"schema_version": 1}'),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: str | dict) -> None:
    path = begun(tmp_path)
    named = r"manifest\.json is no manifest"
    if isinstance(damage, dict):
        named += f".*{min(damage)} is"
        damage = json.dumps(read_manifest(path) | damage)
    (path / "manifest.json").write_text(damage)
    for use in (Run(CONFIG, 0, tmp_path).is_complete, lambda: RunDirectory(path, CONFIG, 0)):
        refused(DataError, named, use)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, None) for name in ("config.json", "trainer_state.json", "optimizer.pt")),
        *((name, b'{"a": ') for name in ("config.json", "trainer_state.json", "extra.json")),
        *((name, b"[]") for name in ("trainer_state.json", "extra.json")),
        ("optimizer.pt", b"PK\x05\x06" + bytes(18)),
    ],
)
def test_a_damaged_checkpoint_is_named_before_it_is_loaded(tmp_path, name, content) -> None:
    for whole in ("config.json", "trainer_state.json", "extra.json"):
        (tmp_path / whole).write_text('{"nonfinite_in_a_row": 0}')
    header = b'{"__metadata__":{}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for archive in ("scheduler.pt", "rng_state.pth", "optimizer.pt"):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            file.writestr("data", "x")

    check_checkpoint(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    refused(CheckpointError, name, check_checkpoint, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys, number) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for command in ("train", "warmstart"):
        said = mistake(capsys, command, "smoke/grpo", "--run-root", str(tmp_path))
        assert re.search("file system without locks .* at /.*--run-root", said)
    refused(RunError, "file system without locks", locked, tmp_path / "lock")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_leaves_the_first_error_and_the_status(tmp_path, smoke_runs, capsys) -> None:
    """The disk takes no log, and no file as large as a checkpoint."""
    (start,) = smoke_runs.glob("smoke/warmstart-*")
    shutil.copytree(start, tmp_path / "smoke" / start.name)
    words = ["train", "smoke/grpo", "training.steps=1", "sampler.gap_alarm=0", "--quiet"]
    words += ["--run-root", str(tmp_path)]
    path = Run.load("smoke/grpo", 0, tmp_path, words[2:4]).path
    path.mkdir(parents=True)
    (path / "log.txt").symlink_to("/dev/full")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = [line for line in capsys.readouterr().err.splitlines() if "gap_alarm" not in line]
    assert len(said) == 1 and said[0].startswith("error: checkpoint of step 1 cannot be written")
    assert read_manifest(path)["status"] == "failed"
    (path / "log.txt").unlink()
    assert main(words) == 0 and read_manifest(path)["status"] == "complete"


@pytest.mark.parametrize(
    "sent", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGHUP]]
)
def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, sent: list[int]) -> None:
    words = ["train", "smoke/grpo", "--run-root", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", _RUNNING, *words], **pipes)
    assert child.stdout.readline() == "ready\n"
    for number in sent:
        child.send_signal(number)
        time.sleep(0.01)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("stopped; to continue: ")
    assert " ".join(words) in said
    assert read_manifest(Run(CONFIG, 0, tmp_path).path)["status"] == "interrupted"


def test_advice_names_the_folder_of_runs_and_the_overrides(tmp_path: Path) -> None:
    root = tmp_path / "other runs"
    run = Run.load("smoke/grpo", 3, root, ["training.steps=2"])
    for which in ("start", "best"):
        said = refused(LLDSError, None, run.checkpoint, which).replace("--seed 3 ", "")
        assert f"training.steps=2 --run-root '{root}'" in said


def test_a_policy_too_large_for_this_machine_is_refused_by_arithmetic(tmp_path, capsys) -> None:
    words = ["train", "smoke/grpo", "policy.hidden_size=100000000", "--run-root", str(tmp_path)]
    said = mistake(capsys, *words)
    assert "policy.hidden_size=100000000" in said and "GiB" in said
