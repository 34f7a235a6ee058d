"""The whole study from nothing on seeds of one's own; its runs and measurements are made up."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llds_core.__main__ import main
from llds_core.config import Study, load_study
from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, DataError, RunError
from llds_core.reporting.store import StoredRun, read_published
from llds_core.study import reproduce as reproduction
from llds_core.study.published import publish_run
from llds_core.study.reproduce import reproduce, reproduce_study
from llds_core.study.runner import planned_runs

STUDY = "desk-reuse"


class Made:
    """Stands in for what takes hours, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.failing: set[tuple[str, int]] = set()  # arm and seed of runs that fail
        self.unmeasured: set[int] = set()  # seeds whose checkpoints cannot be measured
        self.measured: list[int] = []
        self.with_smollm2: list[int] = []
        self.reported: list[Sequence[int]] = []

    def run_study(
        self, study: Study, run_root: Path, *, arms: Sequence[str] | None, published: Path, **_: Any
    ) -> list[str]:
        failures = []
        for planned in planned_runs(study, run_root, arms):
            if (planned.arm, planned.seed) in self.failing:
                failures.append(f"train {planned.title} failed")
                continue
            config = planned.config
            manifest = {
                **{"profile": config.profile, "method": config.method, "seed": planned.seed},
                **{"status": "complete", "config": config.to_dict(), "config_hash": config.hash()},
                "evaluation": {},
            }
            steps = range(1, config.training.steps + 1)
            metrics = pd.DataFrame(dict.fromkeys(METRICS, 1.0), steps).assign(step=steps)
            run = StoredRun(run_root, manifest, metrics)
            publish_run(run, planned.arm, published)
        return failures

    def measure(
        self,
        profile: str,
        methods: Sequence[str],
        seed: int,
        run_root: Path,
        *,
        smollm2: bool,
    ) -> None:
        assert (profile, list(methods)) == (STUDY, ["grpo", "llds-action"])
        if seed in self.unmeasured:
            raise DataError("the run has no checkpoint")
        folder = run_root / profile / f"mechanism-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}", "utf-8")
        self.measured.append(seed)
        if smollm2:
            self.with_smollm2.append(seed)

    def report(
        self, profile: str, seeds: Sequence[int], published: Path, out_dir: Path, **_: Any
    ) -> Path:
        self.reported.append(seeds)
        index = out_dir / "index.json"
        content = {"profile": profile, "artefacts": [], "runs": []}
        index.write_text(json.dumps(content), "utf-8")
        return index


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    stub = Made()
    monkeypatch.setattr(reproduction, "examine", lambda *_, **__: [])
    monkeypatch.setattr("llds_core.study.reproduce.run_study", stub.run_study)
    monkeypatch.setattr("llds_core.diagnostics.measure.measure", stub.measure)
    monkeypatch.setattr("llds_core.study.reproduce.report", stub.report)
    monkeypatch.setattr("llds_core.study.reproduce.write_tables", lambda *_: None)
    monkeypatch.setattr("llds_core.runs.smollm2.smollm2_file", lambda: Path("smollm2.gguf"))
    return stub


def seeds_published(out_dir: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for run in read_published(STUDY, out_dir / "published"):
        found[run.arm] = (*found.get(run.arm, ()), run.seed)
    return found


def command(folder: Path, arms: str, seeds: str, *more: str) -> int:
    options = ["--run-root", str(folder / "runs"), "--out-dir", str(folder / "out"), "--quiet"]
    return main(["reproduce", STUDY, "--arms", arms, "--seeds", seeds, *options, *more])


def test_all_arms_run_on_the_seeds_given_and_both_main_arms_are_measured_on_each(
    made: Made, tmp_path: Path
) -> None:
    """An arm that has n seeds in the study takes the first n."""
    assert command(tmp_path, "all", "4,0,1,2,3,5,6") == 0
    planned = {arm.name: len(arm.seeds) for arm in load_study(STUDY).arms}
    found = seeds_published(tmp_path / "out")
    given = (4, 0, 1, 2, 3)
    assert found == {arm: tuple(sorted(given[:count])) for arm, count in planned.items()}
    assert found["llds-action-long"] == (4,)
    assert made.measured == [4, 0, 1, 2, 3] and made.reported == [[4, 0, 1, 2, 3]]
    folders = (tmp_path / f"out/published/{STUDY}").glob("mechanism-seed*")
    assert sorted(folder.name[-1] for folder in folders) == list("01234")


def test_where_smollm2_is_missing_a_line_says_how_to_install_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def missing() -> Path:
        raise ConfigError("the package gguf is not installed: run pip install gguf")

    monkeypatch.setattr("llds_core.runs.smollm2.smollm2_file", missing)
    reproduce_study(STUDY, [0], tmp_path, arms=["main"], out_dir=tmp_path / "out")
    assert made.measured == [0] and made.with_smollm2 == []
    assert "without SmolLM2: the package gguf is not installed: run pip" in capsys.readouterr().out


def test_arms_and_groups_are_run_beside_the_main_arms(made: Made, tmp_path: Path) -> None:
    assert command(tmp_path, "gates,llds-ma-fixed", "7,8") == 0
    arms = ("grpo", "llds-action", "llds-token", "llds-response", "llds-ma-fixed")
    assert seeds_published(tmp_path / "out") == dict.fromkeys(arms, (7, 8))
    assert made.measured == [7, 8]


def test_methods_alone_ask_for_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("the main job")

    monkeypatch.setattr(reproduction, "reproduce_study", pytest.fail)
    monkeypatch.setattr(reproduction, "_check_machine", refuse)
    with pytest.raises(ConfigError, match="the main job"):
        reproduce(STUDY, [0], tmp_path, arms=["grpo", "llds-token"], out_dir=tmp_path)


@pytest.mark.parametrize(
    ("arms", "more", "message"),
    [
        ("llds-weight-33", (), 'no arm or group "llds-weight-33": did you mean "llds-weight-3'),
        ("grpo,factor", (), 'no arm or group "factor": did you mean "factors"?'),
        ("gates", ("training.steps=1",), '"training.steps=1" with arms of study desk-reuse'),
    ],
)
def test_what_a_study_cannot_run_is_one_line(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture, arms: str, more: str, message: str
) -> None:
    assert command(tmp_path, arms, "0", *more) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_what_failed_is_named_after_the_rest_is_measured_and_drawn(
    made: Made, tmp_path: Path
) -> None:
    made.failing, made.unmeasured = {("grpo", 1), ("llds-token", 0)}, {0}
    with pytest.raises(RunError, match=r"3 runs or measurements failed, .*grpo seed 1 failed"):
        reproduce_study(STUDY, [0, 1, 2, 3], tmp_path, arms=["all"], out_dir=tmp_path / "out")
    assert made.measured == [2, 3] and made.reported == [[0, 2, 3]]
    assert made.with_smollm2 == [2]  # the first that can be measured
    made.failing = {("grpo", seed) for seed in range(2)}
    with pytest.raises(RunError, match=r"2 runs .*grpo seed 0 failed"):
        reproduce_study(STUDY, [0, 1], tmp_path, arms=["all"], out_dir=tmp_path / "other")
    assert len(made.reported) == 1
