"""The main job end to end on the smoke profile, with its index."""

import json
import shutil
from pathlib import Path

import pytest
from run_helpers import jobs_in_process, refused

from llds_core.errors import RunError
from llds_core.evaluation.held_out import evaluate_run
from llds_core.files import project_path
from llds_core.machine import jobs
from llds_core.runs import Run
from llds_core.study import notebooks
from llds_core.study import reproduce as reproduction
from llds_core.study.reproduce import reproduce


@pytest.fixture(scope="module")
def made(smoke_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of `reproduce smoke`: one run was still to be trained, the other to be scored."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "notebooks").mkdir()
    shutil.copy(project_path("notebooks/06_benchmarks.ipynb"), folder / "notebooks")
    shutil.copytree(smoke_runs, folder / "runs")
    shutil.rmtree(folder / "runs/smoke/llds-action")
    evaluate_run(Run.load("smoke/grpo", 0, folder / "runs"), "last")
    with pytest.MonkeyPatch.context() as patch, jobs_in_process():
        patch.setattr(notebooks, "NOTEBOOKS", folder / "notebooks")
        reproduce("smoke", [0], folder / "runs", out_dir=folder / "out")
    return folder


@pytest.mark.slow
def test_reproduce_makes_runs_tables_pages_and_an_index_of_them(made: Path) -> None:
    index = json.loads((made / "out/index.json").read_text("utf-8"))
    paths = {artefact["path"] for artefact in index["artefacts"]}
    on_disk = {p.relative_to(made / "out").as_posix() for p in (made / "out").rglob("*.*")}
    assert on_disk == paths | {"index.json", "report.html"}
    assert {".csv", ".ipynb", ".html"} <= {Path(path).suffix for path in paths}
    runs = {(run["method"], run["status"]) for run in index["runs"]}
    assert runs == {("grpo", "complete"), ("llds-action", "complete")}
    scored = [*(made / "runs/smoke").glob("*/seed0/evaluation-*-test.json")]
    assert {file.stem for file in scored} == {"evaluation-best-test", "evaluation-last-test"}
    for file in scored:
        result = json.loads(file.read_text("utf-8"))
        assert result["results"]["greedy"]["all"]["n"] == result["questions"] == 16


def test_a_failing_run_ends_reproduce_with_its_reason(tmp_path: Path, monkeypatch) -> None:
    words = ["sh", "-c", "echo error: torn >&2; exit 2"]
    monkeypatch.setattr(jobs, "_start", lambda job, place: jobs.Child(words, job.messages))
    monkeypatch.setattr(reproduction, "make_start_policy", lambda run: None)
    runs, out = tmp_path / "runs", tmp_path / "out"
    named = "train smoke/grpo seed 0 failed: torn"
    refused(RunError, named, reproduce, "smoke", [0], runs, out_dir=out)
    assert not out.exists()
