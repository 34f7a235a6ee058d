"""The command line: one line and exit code 2 for every mistake, nothing lost."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import typer
from run_helpers import mistake

from llds_core.__main__ import COMMANDS, app, main
from llds_core.machine.vllm_server import spare_loopback
from llds_core.runs import Run, RunDirectory

MORE = ["train", "smoke/grpo", "training.steps=4"]  # one step more than the stored runs have


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "desk/gpro"], 'did you mean "grpo"'),
        (["train", "desk/grpo", "--seed", "x"], "--seed"),
        (["train", "desk/grpo", "--sed", "1"], "--sed"),
        (["train", "desk/grpo", "--quiet", "loss.gate=actoin"], "action"),
        (["warmstart", "dsk"], "desk"),
        (["reproduce", "smoke", "--seeds", "0,x"], "--seeds"),
        (["reproduce", "smoke", "--arms", "gpro"], 'did you mean "grpo"'),
        (["train"], "Missing argument"),
        (["trian"], "Did you mean 'train'"),
        (["retriever", "desk", "--backend", "bm52"], "'bm25'"),
        (["retriever", "smoke", "retrieval.backend=server"], "--backend bm25"),
        (["retriever", "smoke", "retrieval.backend=server", "--backend=bm25", "sed=1"], '"sed"'),
        (["retriever", "smoke", "--port", "65536"], "from 0 to 65535"),
        (["evaluate", "desk/grpo", "--limit", "1"], "evaluate desk --method grpo"),
        (["evaluate", "desk/grpo", "--publish"], "--publish belongs to benchmarks"),
        (["evaluate", "desk"], "of which run"),
        (["evaluate", "smoke", "--checkpoint", "no"], 'checkpoint "no" is not a folder'),
        (["evaluate", "smoke", "--shard", "1-2"], "1/4"),
        (["evaluate", "smoke", "--shard", "1/2", "--publish"], "leave out --shard"),
        (["evaluate", "smoke", "--baseline", "serch-o1"], 'did you mean "search-o1"'),
        (["evaluate", "smoke", "--mode", "greddy"], 'did you mean "greedy"'),
        (["evaluate", "smoke", "--mode", "greedy,greedy"], "each mode once"),
        (["evaluate", "smoke", "--limit", "0"], "'--limit': Input should be greater"),
        (["evaluate", "smok", "--checkpoint", "start"], 'did you mean "smoke"'),
        (["slurm", "desk"], "desk needs no GPU"),
        (["data", "paper-3b", "--only", "questons"], "questions"),
    ],
)
def test_mistakes_end_in_one_line_that_names_what_is_valid(capsys, arguments, named) -> None:
    assert named in mistake(capsys, *arguments)


@pytest.mark.parametrize(
    "words", ["ask smoke/grpo where?", "evaluate smoke/grpo", "evaluate smoke --method grpo"]
)
def test_missing_run_names_the_command_that_makes_it(capsys, tmp_path: Path, words: str) -> None:
    line = mistake(capsys, *words.split(), "--run-root", str(tmp_path))
    assert "python -m llds_core train smoke/grpo --seed 0" in line


@pytest.fixture
def root(smoke_runs: Path, tmp_path: Path) -> Path:
    """Complete runs to damage."""
    return shutil.copytree(smoke_runs, tmp_path / "runs")


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(capsys, root: Path) -> None:
    run = root / "smoke/grpo/seed0"
    before = (run / "metrics.jsonl").read_bytes()
    weights = run / "checkpoint/step-000003/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    ask = ["ask", "smoke/grpo", "where?", "--checkpoint", "last"]
    for words in (ask, [*MORE, "--quiet"]):
        assert "step-000003" in mistake(capsys, *words, "--run-root", str(root))
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_in_use_corrupted_metrics_and_a_root_that_is_a_file_are_named(capsys, root) -> None:
    run = Run.load("smoke/grpo", 0, root, MORE[2:])
    with RunDirectory(run.path, run.config, 0):
        assert "in use by process" in mistake(capsys, *MORE, "--run-root", str(root))
        assert run.manifest()["status"] == "running"
    file = run.path / "metrics.jsonl"
    file.write_text("{broken\n" + file.read_text("utf-8").partition("\n")[2], "utf-8")
    assert f"{file}:1" in mistake(capsys, *MORE[:2], "--run-root", str(root))
    assert "--run-root" in mistake(capsys, *MORE, "--run-root", str(file))


def test_ask_shows_policy_and_observations_and_an_empty_question_is_refused(capsys, smoke_runs):
    question, where = "Which country is Homs in?", ["--run-root", str(smoke_runs)]
    assert main(["ask", "smoke/grpo", question, *where]) == 0
    shown = capsys.readouterr().out
    assert question in shown and "written by the policy" in shown
    assert "empty" in mistake(capsys, "ask", "smoke/grpo", " ", *where)


def test_every_command_explains_itself_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    overview = capsys.readouterr().out
    for panel, functions in COMMANDS.items():
        assert f"─ {panel} ─" in overview
        for function in functions:
            name = function.__name__.replace("_", "-")
            assert f" {name} " in overview
            assert main([name, "--help"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert f"Usage: python -m llds_core {name}" in shown
            assert function.__doc__.splitlines()[0] in shown
            for option in typer.main.get_command(app).commands[name].params:
                assert option.name == "help" or option.help, f"{name} {option.name}"


def test_overrides_may_follow_options_and_quiet_hides_bars(monkeypatch, tmp_path: Path) -> None:
    runs: list[Run] = []
    monkeypatch.setattr("llds_core.training.warmstart.warmstart", runs.append)
    monkeypatch.setenv("TQDM_DISABLE", "")
    options = ["--run-root", str(tmp_path), "warmstart.steps=3", "--quiet", "warmstart.seed=4"]
    assert main(["warmstart", "smoke", "world.seed=1", *options]) == 0
    assert runs[0].overrides == ("world.seed=1", "warmstart.steps=3", "warmstart.seed=4")
    assert os.environ["TQDM_DISABLE"] == "1"


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m llds_core slurm paper-3b --layout 2x8x80 "
    command += "| head -1; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "#!/bin/bash\n") and done.returncode in (0, 141)


@pytest.mark.parametrize(
    "words",
    [
        *(f"train smoke/grpo --seed {seed}" for seed in (-1, "9" * 25)),
        *("train smoke/grpo --machine-rank -1", "train smoke/grpo --main-port 99999999"),
        *(f"slurm paper-3b --hours {hours}" for hours in (0, -1)),
        *(f"ask smoke/grpo q --temperature {value}" for value in ("nan", "-1", "inf")),
        *("plan desk --nodes 0", "plan desk --gpus 0", "plan desk --gpu-memory-gib nan"),
        *("mechanism smoke --questions 0", "mechanism smoke --seed -1"),
        *("reproduce smoke --seeds 0,-1", "report smoke --seeds 9999999999999999999999"),
    ],
)
def test_values_outside_of_their_range_are_refused(capsys, words: str) -> None:
    said = mistake(capsys, *words.split())
    assert re.search(r"from 0 to |should be (less|greater) than or equal to \d", said)


def test_output_never_ends_a_program() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    wrong = ["train", "desk/grpo", "training.x\u00e9=\u2028\x1b[2J"]
    for words, code in ((["plan", "desk"], 0), (["--help"], 0), (wrong, 2)):
        command = [sys.executable, "-m", "llds_core", *words]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert b"Traceback" not in done.stderr and done.returncode == code
        assert b"\x1b[2J" not in done.stderr + done.stdout
    assert done.stdout == b"" and len(done.stderr.splitlines()) == 1


def test_no_proxy_stands_before_this_machine(monkeypatch) -> None:
    """Whoever asks: our clients, and TRL's."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "example.org")
    spare_loopback()
    spare_loopback()
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0"):
        assert not requests.utils.get_environ_proxies(f"http://{host}:8001/health")
    assert requests.utils.get_environ_proxies("http://gpu7:8001/health")
    assert os.environ["no_proxy"].startswith("example.org,")
    assert os.environ["no_proxy"].count("::1") == 1
