"""The monitor in a trainer: TRL's own on a plain task, and ours by its rows."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import trl_updates
from given_policies import save_one_layer_policy
from run_helpers import refused
from transformers import TrainerCallback
from trl import GRPOTrainer

from llds_core.errors import ConfigError
from llds_core.monitor import CollapseMonitor, collapse_monitor
from llds_core.monitor.diagnosis import judge
from llds_core.monitor.training_log import read_log, to_log

PUBLISHED = Path(__file__).parents[2] / "results/published"
INDEX = pd.read_csv(PUBLISHED / "collapse-runs/index.csv")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_one_layer_policy(tmp_path_factory.mktemp("policy"))


def trainer_of(policy: Path, folder: Path, callbacks: list) -> GRPOTrainer:
    """Six rollouts of two updates."""
    settings = {"learning_rate": 1e-5, "gradient_accumulation_steps": 1, "max_steps": 12}
    settings |= {"save_strategy": "steps", "save_steps": 3}
    given = {"callbacks": callbacks}
    return trl_updates.trainer_of(GRPOTrainer, policy, folder, given, **settings)


def test_it_logs_a_verdict_with_trls_own_trainer(policy: Path, tmp_path: Path) -> None:
    seen, monitor = [], CollapseMonitor()
    tracker = TrainerCallback()  # sees what is logged when it is asked, as Weights & Biases
    tracker.on_log = lambda *_, logs, **__: seen.append(dict(logs))
    trainer = trainer_of(policy, tmp_path, [tracker])
    monitor.attach(trainer)
    trainer.train()
    assert monitor.diagnosis.framework == "trl" and not monitor.stopped
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 12 and all("monitor/phase" in row for row in rows)
    assert all("monitor/alarms" in logs for logs in seen if "loss" in logs)
    # From its own log the run gets the same verdict.
    last = judge(read_log(tmp_path / "checkpoint-12", updates_per_rollout=2))
    kept = {alarm.name: alarm.step for alarm in monitor.diagnosis.alarms}
    assert {alarm.name: alarm.step for alarm in last.alarms} == kept


def test_it_stops_at_an_alarm_and_names_the_checkpoint(policy: Path, tmp_path, caplog) -> None:
    monitor = CollapseMonitor(stop_at="critical")

    class Wreck(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            if state.global_step >= 8:
                logs["grad_norm"] = float("nan")

    trainer = trainer_of(policy, tmp_path, [Wreck(), monitor])
    with caplog.at_level(logging.WARNING, "llds_core"):
        trainer.train()
    assert monitor.stopped and 8 <= trainer.state.global_step < 12
    assert monitor.diagnosis.go_back_to in (3, 6, 9)
    assert f"go back to step {monitor.diagnosis.go_back_to}" in caplog.text
    assert caplog.text.count("not_finite") == 1
    assert trainer.state.log_history[-2]["monitor/not_finite"] == 1


@pytest.mark.parametrize("label", ["collapsed", "healthy"])
def test_rows_of_our_own_trainer_give_the_alarms_of_their_log(tmp_path: Path, label: str) -> None:
    """As `train(run, after_step=monitor.observe)` hands them over."""
    chosen = INDEX[(INDEX["label"] == label) & (INDEX["steps"] <= 30)].iloc[0]
    name = chosen["run"].removeprefix(f"{chosen['recipe']}/")
    table = pd.read_csv(PUBLISHED / chosen["recipe"] / "runs" / f"{name}.csv.gz")
    rows = json.loads(table.to_json(orient="records"))
    monitor = CollapseMonitor(stop_at="critical")
    fresh = [alarm for row in rows for alarm in monitor.observe(row)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = judge(read_log(tmp_path))
    assert {(a.name, a.step) for a in fresh} == {(a.name, a.step) for a in whole.alarms}
    assert monitor.stopped == (label == "collapsed")
    control = SimpleNamespace(should_training_stop=False)
    monitor.on_step_end(None, None, control)
    assert control.should_training_stop == monitor.stopped


def test_it_waits_whether_an_alarm_stands() -> None:
    """A dip that sets the alarm for five rows ends nothing, the sixth row of an alarm does."""
    dip = [0.5] * 12 + [0.1] * 5 + [0.5] * 12
    fall = dip + [0.1] * 12

    def ended(patience: int, rewards: list[float]) -> int | None:
        monitor = CollapseMonitor(stop_at="critical", patience=patience)
        for step, reward in enumerate(rewards, 1):
            monitor.observe({"step": step, "reward": reward})
            if monitor.stopped:
                return step
        return None

    # Means of three rows are low from the second row of a fall to the first one after it.
    # A fall counts as noise of its own rows, so that its second row is not beyond it yet.
    assert ended(1, dip) == 15 and ended(5, dip) == 18 and ended(6, dip) is None
    assert ended(6, fall) == 36
    # Rows of few responses: six in a row are low by chance, in means of three as well.
    noisy = [0.9, 0.1] * 4 + [1.0] * 3 + [0.1, 0.9, 0.1] * 3 + [0.9, 0.1] * 12
    assert ended(1, noisy) is None and ended(6, noisy) is None
    rows = [{"step": step, "reward": reward} for step, reward in enumerate(noisy[:19], 1)]
    found = judge(to_log(rows, "noisy"))
    alarm = found.alarms[0]
    assert alarm.standing == 6 and alarm.beyond_noise is False
    assert found.reaches("critical") and not found.reaches("critical", 1)
    assert found.phase == "collapse"
    assert alarm.evidence.endswith("0.367 at the end, which may be noise between rows")


def test_a_log_that_cannot_be_judged_ends_no_training(caplog) -> None:
    monitor = CollapseMonitor(stop_at="info")
    with caplog.at_level(logging.WARNING, "llds_core"):
        for step in range(1, 12):
            monitor.observe({"step": step % 2, "reward": step})
    assert "cannot judge: this run seems to mix several runs" in caplog.text
    assert not monitor.stopped


def test_a_long_run_is_judged_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each judgement reads all rows, so that judging all of them would take ever longer."""
    monkeypatch.setattr(collapse_monitor, "_EACH_OF", 20)
    monitor, judged = CollapseMonitor(), set()
    for step in range(1, 64):
        monitor.observe({"step": step, "reward": 0.5})
        judged.add(monitor.diagnosis.last_step)
    assert judged == {*range(1, 40), *range(40, 60, 2), 60, 63}


def test_rows_without_a_metric_and_unknown_settings() -> None:
    monitor = CollapseMonitor()
    assert monitor.observe({"step": 1, "eval_loss": 3.0}) == [] and monitor.diagnosis is None
    refused(ConfigError, 'stop_at="fatal" is no severity', CollapseMonitor, stop_at="fatal")
    refused(ConfigError, "patience=0 is no number of rows", CollapseMonitor, patience=0)
