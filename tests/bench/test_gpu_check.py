"""`gpu-check` on a CPU: the same phases at toy sizes, and what lies published of a real card."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from run_helpers import jobs_in_process, refused

from llds_core.bench import gpu_bundle
from llds_core.bench import gpu_check as module
from llds_core.bench.gpu_check import gpu_check
from llds_core.bench.gpu_report import Report, Row, markdown
from llds_core.bench.speed import Measure
from llds_core.errors import ConfigError

PUBLISHED = Path("results/published/gpu")


def stored(folder: Path) -> list[Row]:
    rows = json.loads((folder / "gpu_check.json").read_text("utf-8"))
    return [Row(**row) for row in rows]


@pytest.mark.slow
def test_every_phase_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bench of `smoke` has a test of its own.
    row = Measure("update", 2.0, "tokens/s", "TRL", 1.0, ">= 1.5 x")
    monkeypatch.setattr(module, "measure_profile", lambda config, root: [row])
    assert gpu_check(["A", "B"], tmp_path) == 0
    with jobs_in_process():
        assert gpu_check(["D", "C"], tmp_path, steps=1) == 0
    rows = stored(tmp_path)
    assert [row.phase for row in rows if row.name == "duration"] == ["A", "B", "D", "C"]
    assert {row.status for row in rows} == {"ok", "info"}
    # What a step of phase D is held against was set by such runs: beside it, and no verdict.
    steps = [row for row in rows if row.name.endswith("side by side: a step")]
    assert len(steps) == 2 and {row.status for row in steps} == {"info"}
    assert all(isinstance(row.planned, float) for row in steps)
    canaries = [row for row in rows if "canary" in row.name]
    assert len(canaries) == 6 and {row.measured for row in canaries} == {0.0}
    broken = {row.name: row.status for row in rows if row.name.startswith("gradients not finite")}
    assert list(broken.values()) == ["info", "ok", "ok"] and "cuDNN" in next(iter(broken))
    assert markdown(rows) == (tmp_path / "gpu_check.md").read_text("utf-8")
    assert (tmp_path / "runs/smoke").is_dir()


def test_a_phase_that_breaks_stops_no_other_and_fails_the_check(tmp_path, monkeypatch) -> None:
    broken = Mock(side_effect=RuntimeError("CUDA error:\nout of memory"))
    monkeypatch.setattr(module, "_updates", broken)
    monkeypatch.setattr(module, "check_kernels", lambda report, shape: report.add("x", 1.0))
    assert gpu_check(["B", "A"], tmp_path) == 1
    told = {(row.phase, row.name): row for row in stored(tmp_path)}
    broken = told["B", "phase"]
    assert broken.status == "fail" and broken.measured == "RuntimeError: CUDA error: out of memory"
    assert told["A", "x"].measured == 1.0
    assert "Traceback" in (tmp_path / "phase_B_error.txt").read_text("utf-8")


def test_an_unknown_phase_and_a_card_that_is_too_small_are_named(tmp_path, monkeypatch) -> None:
    refused(ConfigError, '--phase is "E": choose of A,B,C,D', gpu_check, ["E"], tmp_path)
    card = SimpleNamespace(total_memory=16 * 2**30, name="small")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index=0: card)
    refused(ConfigError, r"needs .* and 16\.2 of 17 GiB .*: leave", gpu_check, ["B"], tmp_path)


def test_rows_of_other_phases_stay_and_nan_exceeds_a_bound(tmp_path: Path) -> None:
    Report(tmp_path, "A").add("speed", 1.0, "s")
    report = Report(tmp_path, "B")
    report.bound("error", float("inf") - float("inf"), 1.0)
    report.plan("step", 10.0, 3.0, "s")
    told = [(row.phase, row.status) for row in stored(tmp_path)]
    assert told == [("A", "info"), ("B", "fail"), ("B", "outside")]


def test_a_bundle_puts_the_model_together_and_runs_the_check_on_its_python(tmp_path, monkeypatch):

    def fetch(requirements: list[str], folder: Path, python: str) -> None:
        folder.mkdir()
        (folder / f"{folder.name}-{python}.whl").write_bytes(bytes(range(250)))

    monkeypatch.setattr(gpu_bundle, "_fetch", fetch)
    monkeypatch.setattr(gpu_bundle, "_PIECE", 100)
    gpu_bundle.make_bundle(tmp_path / "a bundle", "3.12")
    python = tmp_path / "python3"
    run, out = tmp_path / "a bundle/run.sh", tmp_path / "out"
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ""}

    def checks(version: str) -> subprocess.CompletedProcess[str]:
        python.write_text(
            f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; else echo "$PYTHONPATH:$@"; fi\n'
        )
        python.chmod(0o755)
        command = ["sh", run, out, "--phase", "A"]
        return subprocess.run(command, env=paths, capture_output=True, text=True)

    other = checks("3.13")
    assert other.returncode == 2
    assert other.stderr.startswith("error: this bundle is for Python 3.12, and python3 is 3.13: ")
    installed, checked = checks("3.12").stdout.splitlines()
    assert (out / "model-3.12.whl").read_bytes() == bytes(range(250))
    assert installed.endswith(f"{run.parent}/wheels/wheels-3.12.whl {out}/model-3.12.whl")
    assert checked == f"{run.parent}:{out}/site:-m llds_core gpu-check --out {out} --phase A"


def test_the_published_table_is_that_of_its_rows_and_the_docs_quote_it() -> None:
    table = (PUBLISHED / "gpu_check.md").read_text("utf-8")
    assert markdown(stored(PUBLISHED)) == table
    quoted = Path("docs/gpu.md").read_text("utf-8").partition("## Measured")[2].partition("\n## ")
    rows = [line for line in quoted[0].splitlines() if line.startswith("|")]
    assert len(rows) > 10 and set(rows) <= set(table.splitlines())


def test_bm25s_is_imported_without_jax(tmp_path: Path) -> None:
    """A top-k that bm25s asks of JAX on import takes most of a GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("print('imported jax')\n")
    program = "import llds_core.retrieval, sys; sys.exit('jax' in sys.modules); import jax"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
