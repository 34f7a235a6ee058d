"""Published results: what git keeps equals the runs, and the README equals what git keeps."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llds_core.errors import DataError
from llds_core.reporting.run_tables import PHASE_COLUMNS, RUN_COLUMNS, run_row
from llds_core.reporting.store import (
    ensure_runs,
    find_published,
    load_run,
    load_runs,
    read_published,
)
from llds_core.study.published import (
    arms_table,
    effects_markdown,
    phases_markdown,
    publish,
    publish_mechanism,
    publish_run,
    published_mechanism,
    update_readme,
    write_claims,
    write_phases,
)
from llds_core.study.study_tables import EFFECT_COLUMNS

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results/published"


def test_readme_numbers_equal_the_published_runs() -> None:
    readme = ROOT / "README.md"
    assert update_readme(readme, PUBLISHED) == readme.read_text("utf-8")


def test_the_runs_table_in_git_equals_the_runs_in_git() -> None:
    rows = [run_row(run) for run in read_published("desk", PUBLISHED)]
    wanted = pd.DataFrame(rows, columns=RUN_COLUMNS).to_csv(index=False)
    assert (PUBLISHED / "desk/runs.csv").read_text("utf-8") == wanted


def test_the_phases_in_git_equal_the_runs_in_git(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk/runs").symlink_to(PUBLISHED / "desk/runs")
    phases = write_phases(tmp_path, "desk")
    assert phases.read_text("utf-8") == (PUBLISHED / "desk/phases.csv").read_text("utf-8")


def test_the_claims_in_git_equal_the_runs_in_git(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    for source in PUBLISHED.glob("desk/*"):
        if source.name == "runs" or source.name.startswith("mechanism"):
            (tmp_path / "desk" / source.name).symlink_to(source)
    claims = write_claims(tmp_path, "desk")
    assert claims.read_text("utf-8") == (PUBLISHED / "desk/claims.csv").read_text("utf-8")


def test_published_metrics_equal_the_run(smoke_runs: Path, tmp_path: Path) -> None:
    table = publish(smoke_runs, "smoke", ["grpo"], [0], published=tmp_path)
    (published,) = read_published("smoke", tmp_path)
    original = load_run(smoke_runs / "smoke/grpo/seed0")
    assert published.fingerprint == original.fingerprint
    assert published.metrics["reward"].tolist() == original.metrics["reward"].tolist()
    assert pd.read_csv(table).columns.tolist() == list(RUN_COLUMNS)
    assert find_published(tmp_path, "smoke", "grpo", 0).fingerprint == original.fingerprint
    assert find_published(tmp_path, "smoke", "grpo", 1) is None


def test_publishing_names_no_path_of_this_machine(smoke_runs: Path, tmp_path: Path) -> None:
    publish(smoke_runs, "smoke", ["grpo"], [0], published=tmp_path)
    for file in tmp_path.rglob("*.json"):
        assert str(smoke_runs) not in file.read_text("utf-8")


def test_missing_or_unfinished_run_is_not_published(smoke_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed 7"):
        publish(smoke_runs, "smoke", ["grpo"], [7], published=tmp_path)
    run = load_run(smoke_runs / "smoke/grpo/seed0")
    run.manifest["status"] = "running"
    with pytest.raises(DataError, match="finish it"):
        publish_run(run, published=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_arm_is_published_and_read_under_its_own_name(smoke_runs: Path, tmp_path: Path) -> None:
    run = load_run(smoke_runs / "smoke/grpo/seed0")
    publish_run(run, "other", tmp_path)
    publish(smoke_runs, "smoke", ["grpo"], [0], published=tmp_path)
    assert [run.arm for run in read_published("smoke", tmp_path)] == ["grpo", "other"]
    (found,) = load_runs(tmp_path, "smoke", ["other"], [0, 1])
    assert (found.arm, found.method) == ("other", "grpo")
    assert [run.arm for run in ensure_runs("smoke", ["grpo"], [0], tmp_path)] == ["grpo"]
    with pytest.raises(DataError, match="no published run of llds-action"):
        load_runs(tmp_path, "smoke", ["llds-action"], [0])


def test_damaged_published_metrics_are_named(smoke_runs: Path, tmp_path: Path) -> None:
    publish(smoke_runs, "smoke", ["grpo"], [0], published=tmp_path)
    (tmp_path / "smoke/runs/grpo-seed0.csv.gz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"grpo-seed0.*restore"):
        read_published("smoke", tmp_path)


def test_mechanism_tables_of_all_seeds_are_read_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="llds_core mechanism"):
        publish_mechanism(tmp_path / "runs", "smoke", 0, tmp_path / "published")
    for seed in (0, 1):
        publish_measured(tmp_path, seed, {"questions": 50})
    tables = published_mechanism(tmp_path / "published", "smoke")
    assert tables["theorem"]["seed"].tolist() == [0, 1]


def test_seeds_measured_on_other_groups_are_not_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_measured(tmp_path, 0, {"questions": 50})
    for seed, questions in ((1, 50), (2, 20)):
        publish_measured(tmp_path, seed, {"questions": questions, "rollouts": 8})
    tables = published_mechanism(tmp_path / "published", "smoke")
    assert tables["theorem"]["seed"].tolist() == [1]
    assert "mechanism-seed0, mechanism-seed2" in caplog.text


def publish_measured(root: Path, seed: int, manifest: dict[str, int]) -> None:
    folder = root / f"runs/smoke/mechanism-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "theorem.csv").write_text(f"seed,spearman\n{seed},0.5\n")
    publish_mechanism(root / "runs", "smoke", seed, root / "published")


def test_the_table_of_arms_says_what_was_not_run() -> None:
    row = dict.fromkeys(RUN_COLUMNS, None) | {
        "method": "grpo",
        "steps": 24,
        "start_reward": 0.3,
        "best_reward": 0.5,
        "final_reward": 0.1,
        "lowest_after_best": 0.2,
        "entropy_growth": 1.5,
    }
    rows = [
        row | {"seed": 0, "collapsed": True, "collapse_step": 15.0, "heldout_em": 0.25},
        row
        | {"seed": 1, "steps": 30, "collapsed": False}
        | {"last_heldout_em": 0.125, "entropy_growth": 12.0},
        row | {"seed": 0, "method": "mine", "collapsed": False},
        row | {"seed": 0, "method": "map-mine", "collapsed": False},
    ]
    lines = arms_table(pd.DataFrame(rows)).splitlines()
    rewards = "0.30 → 0.50 → 0.10 | 0.20"
    grpo = f"| grpo | 2 | 24–30 | 1 of 2 | > 15 | {rewards} | 1.5–12.0 | 0.250 → 0.125 |"
    assert grpo in lines and lines[-1].endswith(f"| – | {rewards} | 1.5 | not run → not run |")


def test_the_table_of_phases_shows_collapses_and_what_fails() -> None:
    row = dict.fromkeys(PHASE_COLUMNS, np.nan) | {"method": "grpo", "seed": 0}
    rows = [
        row
        | {"decay": 6.0, "loglik_decline": 7.0, "reward_decline": 12.0, "collapse": 14.0}
        | {"likelihood_lead": 5.0, "halfway_lead": 0.0}
        | {"spiral_failed": "persistent decay;self-amplification"},
        row | {"seed": 1, "collapse": 9.0},
        row | {"seed": 2, "collapse": 15.0, "spiral": 3.0},
        row | {"seed": 3, "decay": 8.0},
    ]
    lines = phases_markdown(pd.DataFrame(rows)).splitlines()[2:]
    assert lines == [
        "| grpo-seed0 | 6 | – | 14 | 7 | 12 | +5 / +0 | persistent decay, self-amplification |",
        "| grpo-seed1 | – | – | 9 | – | – | – / – | too few windows |",
        "| grpo-seed2 | – | – | 15 | – | – | – / – | none |",
    ]


def test_an_effect_that_was_not_scored_says_so() -> None:
    row = dict.fromkeys(EFFECT_COLUMNS, np.nan)
    row |= {"group": "cures", "arm": "mine", "seeds": 2, "collapsed": 1, "grpo_collapsed": 2}
    row |= {"steps_survived": 3.0, "best_reward": 0.1, "last_reward": -0.05, "heldout_em": 0.01}
    row |= {"last_reward_low": -0.2, "last_reward_high": 0.1}
    table = pd.DataFrame([row, row | {"group": "map", "arm": "map-mine"}])
    lines = effects_markdown(table).splitlines()
    assert lines[2:] == [
        "| mine |  | 1 of 2, 2 of 2 | +3 | +0.10 | -0.05 [-0.20, +0.10] | +0.010 / – |"
    ]
