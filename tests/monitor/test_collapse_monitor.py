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


@pytest.mark.parametrize(("generated", "iterations", "rollouts"), [(8, 3, 5), (1, 1, 25)])
def test_a_resumed_trainer_tells_its_updates_rows_and_checkpoints(
    tmp_path: Path, generated: int, iterations: int, rollouts: int
) -> None:
    """Six updates per rollout, or one at least; every process ends, as the first one does."""
    args = SimpleNamespace(steps_per_generation=generated, num_iterations=iterations)
    args.gradient_accumulation_steps, args.output_dir = 4, tmp_path
    for step in (12, 18, 24, 25):
        (tmp_path / f"checkpoint-{step}").mkdir()
    row = {"reward": 0.5, "frac_reward_zero_std": 0.1}
    before = [{**row, "step": step} for step in range(1, 25)] + [{"eval_reward": 9, "step": 24}]
    for stop_at in (None, "critical"):
        monitor, logs = CollapseMonitor(stop_at=stop_at), row | {"loss": float("nan")}
        control = SimpleNamespace(should_training_stop=False)
        state = SimpleNamespace(log_history=[*before], global_step=25)
        state.is_world_process_zero = False
        monitor.on_train_begin(args, state, control)
        state.log_history.append({**logs, "step": 25})
        monitor.on_log(args, state, control, logs=logs)
        assert monitor.stopped == control.should_training_stop == (stop_at is not None)
        if stop_at is None:  # only the first process tells, and none ends
            assert monitor.diagnosis is None and "monitor/alarms" not in logs
    found = monitor.diagnosis
    assert [(alarm.name, alarm.step) for alarm in found.alarms] == [("not_finite", 25)]
    assert (found.rows, found.go_back_to) == (rollouts, 24)
    assert found.notes == ("loss is NaN or infinite in 1 rows, first at step 25",)
    phase = 1 if rollouts > 8 else 0
    verdict = {"monitor/not_finite": 1, "monitor/phase": phase, "monitor/alarms": 1}
    assert logs.items() >= verdict.items() <= state.log_history[-1].items()
    for event in (monitor.on_step_end, monitor.on_substep_end):
        control.should_training_stop = False
        event(args, state, control)
        assert control.should_training_stop


def test_the_reward_to_judge_and_what_is_told(caplog) -> None:
    """A reward counted from -1: low from its second row on, and from the third beyond noise."""
    monitor = CollapseMonitor(stop_at="critical", patience=1, reward_floor=-1, reward_key="em")
    fresh = []
    with caplog.at_level(logging.WARNING, "llds_core"):
        for step, reward in enumerate([0.2] * 12 + [-0.8] * 3, 1):
            row = {"reward": 0.5, "em": reward, "clip_fraction": 0.5, "zero_variance_groups": 1.0}
            fresh += monitor.observe({"step": step, **row})
    first = [("clip_saturation", 6), ("zero_variance", 6), ("reward_drop", 14)]
    assert [(alarm.name, alarm.step) for alarm in fresh] == first and monitor.stopped
    # Hints are not told.
    told = [record.message.split(": ")[:2] for record in caplog.records]
    assert told == [
        ["step 6", "clip_saturation"],
        ["step 14", "reward_drop"],
        ["the training ends at a critical alarm", "no checkpoint before it"],
    ]


def test_a_warning_that_stands_ends_a_run_that_asked_for_it() -> None:
    """It comes with the sixth row, and stands for six with the eleventh."""
    monitor = CollapseMonitor(stop_at="warning")
    for step in range(1, 12):
        assert not monitor.stopped
        monitor.observe({"step": step, "reward": 0.5, "clip_fraction": 0.5})
    assert monitor.stopped


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


def test_rows_without_a_metric_and_unknown_settings(caplog) -> None:
    monitor = CollapseMonitor()
    assert monitor.observe({"step": 1, "eval_loss": 3.0}) == [] and monitor.diagnosis is None
    assert not caplog.records  # it is no row to judge
    refused(ConfigError, 'stop_at="fatal" is no severity', CollapseMonitor, stop_at="fatal")
    refused(ConfigError, "patience=0 is no number of rows", CollapseMonitor, patience=0)
