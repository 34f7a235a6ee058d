"""Published results: what git keeps equals the runs, and the report equals what git keeps."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from run_helpers import refused

from llds_core.config.arms import Arm, Study, load_study, studies
from llds_core.errors import DataError
from llds_core.files import number, span
from llds_core.reporting import store
from llds_core.reporting.store import load_run, load_runs, read_published
from llds_core.study.claims import evaluate_claims, load_claims, under_way
from llds_core.study.evidence import published_mechanism
from llds_core.study.published import publish_mechanism, publish_run, write_runs_table, write_tables
from llds_core.study.report_page import PublishedStudy, render_report, update_readme

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published"
DESK = load_study("desk-reuse")


@pytest.mark.parametrize("name", studies())
def test_the_report_and_the_readme_say_what_is_published(name: str) -> None:
    report, study = PUBLISHED / name / "REPORT.md", load_study(name)
    assert render_report(PUBLISHED, study) == report.read_text("utf-8")
    readme = ROOT / "README.md"
    assert update_readme(readme, PUBLISHED, study) == readme.read_text("utf-8")


@pytest.mark.parametrize("study", studies())
def test_the_tables_in_git_equal_the_runs_in_git(study: str, tmp_path: Path) -> None:
    (tmp_path / study).mkdir()
    for source in (PUBLISHED / study).iterdir():
        if source.is_dir():
            (tmp_path / study / source.name).symlink_to(source)
    write_tables(tmp_path, study, load_study(study))
    for name in ("runs", "phases", "effects", "claims"):
        made, kept = (root / study / f"{name}.csv" for root in (tmp_path, PUBLISHED))
        assert made.read_text("utf-8") == kept.read_text("utf-8")


def test_a_deleted_run_leaves_tables_and_report_without_a_failure(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED / "desk", tmp_path / "desk", copy_function=os.symlink)
    for file in (tmp_path / "desk/runs").glob("cispo-seed41.*"):
        file.unlink()
    for table in ("runs", "phases", "effects", "claims"):
        (tmp_path / f"desk/{table}.csv").unlink()
    write_tables(tmp_path, "desk", load_study("desk"))
    assert "cispo-seed41" in (PUBLISHED / "desk/REPORT.md").read_text("utf-8")
    assert "cispo-seed41" not in render_report(tmp_path, load_study("desk"))


def test_no_claim_is_judged_before_the_seeds_of_its_arms_are_in(tmp_path: Path) -> None:
    runs = read_published("desk-reuse", PUBLISHED)
    arms = ("grpo", "llds-action")
    some = [run for run in runs if run.arm in arms and (run.arm, run.seed) != ("grpo", 34)]
    without = [run for run in runs if run.arm != "llds-weight-30"]
    assert under_way(DESK, runs) == set() and under_way(DESK, without) == {"llds-weight-30"}
    claims = load_claims(DESK).claims
    trend = evaluate_claims(
        [c for c in claims if "larger the weight" in c.claim], without, {}, under_way(DESK, without)
    )
    assert trend["verdict"].item() == "not tested" and trend["seeds"].item() == 3
    so_far = evaluate_claims(claims, some, {}, under_way(DESK, some)).set_index("claim")
    judged = so_far["verdict"] != "not tested"
    assert judged.any() and not so_far["runs"][judged].str.contains("grpo-seed").any()
    assert so_far.loc["GRPO's reward rises above that of its start policy", "seeds"] == 4


def test_a_run_is_published_whole_under_the_name_of_its_arm(smoke_runs: Path, tmp_path) -> None:
    original = load_run(smoke_runs / "smoke/grpo/seed0")
    publish_run(original, published=tmp_path)
    publish_run(original, "other", tmp_path)
    published, other = write_runs_table(tmp_path, "smoke")
    (found,) = load_runs(tmp_path, "smoke", ["other"], [0, 1])
    assert [run.arm for run in (published, other, found)] == ["grpo", "other", "other"]
    assert found.method == "grpo"
    named = "no published run of llds-action"
    refused(DataError, named, load_runs, tmp_path, "smoke", ["llds-action"], [0])
    assert published.fingerprint == original.fingerprint
    assert published.metrics["reward"].tolist() == original.metrics["reward"].tolist()
    assert store.find_published(tmp_path, "smoke", "grpo", 0).fingerprint == original.fingerprint
    assert store.find_published(tmp_path, "smoke", "grpo", 1) is None
    for file in tmp_path.rglob("*.json"):
        assert str(smoke_runs) not in file.read_text("utf-8")


def test_an_unfinished_run_is_not_published(smoke_runs: Path, tmp_path: Path) -> None:
    run = load_run(smoke_runs / "smoke/grpo/seed0")
    run.manifest["status"] = "running"
    refused(DataError, "finish it", publish_run, run, published=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_not_named_as_its_profile_has_a_folder_of_its_own(smoke_runs, tmp_path):
    study = Study("second", "smoke", "", (*(Arm(a, a, (0,)) for a in ("grpo", "llds-action")),))
    root = store.published_root(study)
    assert (root, store.published_root(DESK)) == (Path("results/published/second"), root.parent)
    for arm in study.labels:
        publish_run(load_run(smoke_runs / "smoke" / arm / "seed0"), arm, tmp_path / root)
    write_tables(tmp_path / root, "smoke", study)
    assert pd.read_csv(tmp_path / root / "smoke/effects.csv")["arm"].tolist() == ["llds-action"]
    assert not (tmp_path / root / "smoke/claims.csv").exists()


def test_only_seeds_measured_alike_are_read_together(tmp_path: Path, caplog) -> None:
    roots = tmp_path / "runs", tmp_path / "published"
    refused(DataError, "llds_core mechanism", publish_mechanism, roots[0], "smoke", 0, roots[1])
    measured = [{"questions": 50, "rollouts": 4}] * 2 + [{"questions": 20, "rollouts": 8}]
    for seed, manifest in enumerate(measured):
        folder = tmp_path / f"runs/smoke/mechanism-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "theorem.csv").write_text(f"seed,spearman\n{seed},0.5\n")
    for seed, kept in ((0, [0]), (1, [0, 1]), (2, [2])):
        publish_mechanism(roots[0], "smoke", seed, roots[1])
        assert published_mechanism(roots[1], "smoke")["theorem"]["seed"].tolist() == kept
    assert "mechanism-seed0, mechanism-seed1" in caplog.text


def test_a_report_of_too_little_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "desk-reuse/runs").mkdir(parents=True)
    for file in PUBLISHED.glob("desk-reuse/runs/grpo-seed30.*"):
        shutil.copy(file, tmp_path / "desk-reuse/runs")
    write_tables(tmp_path, "desk-reuse", DESK)
    refused(DataError, "publish the whole study", render_report, tmp_path, DESK)


def test_numbers_are_printed_as_in_prose() -> None:
    assert [number(-0.004), number(-1.5, 1), number(0.5, plus=True)] == ["0.00", "−1.5", "+0.50"]
    assert [span([3, 1], 0), span([0.501, 0.5])] == ["1 to 3", "0.50"]


def test_a_claim_is_asked_for_by_a_beginning_that_only_it_has() -> None:
    study = PublishedStudy(PUBLISHED, DESK)
    refused(DataError, 'claims begin with "LLDS"', study.claim, "LLDS")
    assert isinstance(study.claim("LLDS survives"), pd.Series)
