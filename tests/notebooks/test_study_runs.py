"""Which runs the notebooks about a study show; nothing here is trained."""

from pathlib import Path

import pandas as pd
import pytest

from llds_core.config import load_experiment, load_study
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import DataError
from llds_core.files import write_json
from llds_core.reporting.store import StoredRun, study_runs
from llds_core.runs import Run
from llds_core.study.published import publish_run, write_runs_table

MAIN = ["grpo", "llds-action"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """One published run of the desk study."""
    arm = load_study("desk").chosen(["grpo"])[0]
    config = load_experiment("desk/grpo", arm.overrides)
    manifest = {
        **{"profile": "desk", "method": "grpo", "seed": 30, "status": "complete"},
        **{"config": config.to_dict(), "config_hash": config.hash(), "evaluation": {}},
    }
    metrics = pd.DataFrame(dict.fromkeys(METRICS, 1.0), range(1, 31)).assign(step=range(1, 31))
    root = tmp_path / "published"
    publish_run(StoredRun(tmp_path, manifest, metrics), "grpo", root)
    write_runs_table(root, "desk")
    return root


def stored(run_root: Path, method: str, seed: int) -> Path:
    """A run as `reproduce` leaves it."""
    run = Run.load(f"desk/{method}", seed, run_root)
    run.path.mkdir(parents=True)
    about = {"profile": "desk", "method": method, "seed": seed, "status": "complete"}
    about |= {"config": run.config.to_dict(), "config_hash": run.config.hash()}
    write_json(run.path / "manifest.json", about)
    return run.path


def test_the_published_study_is_shown_without_any_run_and_a_line_says_so(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (run,) = study_runs("desk", MAIN, [0], tmp_path / "runs", published=published)
    assert (run.arm, run.seed) == ("grpo", 30)
    assert capsys.readouterr().out.startswith("run_root holds no run of study desk: shown are")
    (run,) = study_runs("desk", MAIN, [0], published, published=tmp_path / "none")
    assert run.seed == 30 and not capsys.readouterr().out  # asked for by its path


def test_main_arms_made_here_are_shown_instead_of_what_is_published(published, tmp_path, capsys):
    paths = [stored(tmp_path / "runs", method, 0) for method in MAIN]
    runs = study_runs("desk", MAIN, [0], tmp_path / "runs", published=published)
    assert [run.path for run in runs] == paths and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("made", "overrides"), [(["grpo"], []), ([], []), ([], ["training.steps=2"])]
)
def test_a_missing_run_is_not_trained_but_named_with_its_command(made, overrides, tmp_path) -> None:
    for method in made:
        stored(tmp_path, method, 0)
    missing = f"train desk/{MAIN[len(made)]}"
    with pytest.raises(DataError, match=missing):
        study_runs("desk", MAIN, [0], tmp_path, overrides, published=tmp_path / "none")
