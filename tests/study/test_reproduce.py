"""The main job end to end on the smoke profile, with its index."""

import json
import shutil
from pathlib import Path

import pytest
from run_helpers import jobs_in_process

from llds_core.errors import RunError
from llds_core.evaluation.held_out import evaluate_run
from llds_core.machine import jobs
from llds_core.machine.jobs import Child, Job
from llds_core.runs import Run
from llds_core.study import notebooks
from llds_core.study import reproduce as reproduction
from llds_core.study.reproduce import reproduce


@pytest.fixture(scope="module")
def made(smoke_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of `reproduce smoke` on the stored warm start, one run still to be trained, the other
    to be scored. One notebook only, without a figure: `tests/notebooks` runs all of them.
    """
    folder = tmp_path_factory.mktemp("reproduce")
    name = "06_benchmarks.ipynb"
    (folder / "notebooks").mkdir()
    shutil.copy(Path(__file__).parents[2] / "notebooks" / name, folder / "notebooks" / name)
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
    for ending in (".csv", ".ipynb", ".html"):
        assert any(path.endswith(ending) for path in paths)
    assert {(run["method"], run["status"]) for run in index["runs"]} == {
        ("grpo", "complete"),
        ("llds-action", "complete"),
    }
    for file in (made / "runs/smoke").glob("*/seed0/evaluation-*-test.json"):
        result = json.loads(file.read_text("utf-8"))
        assert result["results"]["greedy"]["all"]["n"] == result["questions"] == 16
    scored = (made / "runs/smoke").glob("*/seed0/evaluation-*-test.json")
    assert {file.stem for file in scored} == {"evaluation-best-test", "evaluation-last-test"}


def test_a_failing_run_ends_reproduce_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job, place: object) -> Child:
        return Child(["sh", "-c", "echo error: torn >&2; exit 2"], job.messages)

    monkeypatch.setattr(jobs, "_start", fail)
    monkeypatch.setattr(reproduction, "make_start_policy", lambda run: None)
    with pytest.raises(RunError, match=r"train smoke/grpo seed 0 failed: torn"):
        reproduce("smoke", [0], tmp_path / "runs", out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
