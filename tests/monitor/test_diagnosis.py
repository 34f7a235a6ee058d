"""What a diagnosis says, in text, JSON, HTML, on the command line, and of a log that grows."""

import json
import math
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from run_helpers import refused

from llds_core.__main__ import main
from llds_core.errors import ConfigError, DataError
from llds_core.monitor import diagnosis, training_log
from llds_core.monitor.detectors import DETECTORS, EVIDENCE
from llds_core.monitor.diagnosis import PHASES, advice_text, follow, judge
from llds_core.monitor.diagnosis_page import page
from llds_core.monitor.training_log import read_log, to_log

ROOT = Path(__file__).parents[2]
COLLAPSED = ROOT / "results/published/collapse-runs/example-verl.log"


def steady(rows=20, **values):
    base = {"reward": 0.5, "entropy": 0.2, "clip_fraction": 0.01, "kl": 0.1}
    return [{"step": s, **base, **values} for s in range(1, rows + 1)]


def rewarded(*rewards, **more):
    return [{"step": s, "reward": r, **more} for s, r in enumerate(rewards, 1)]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_collapsed_run_is_called_one_from_verls_console() -> None:
    found = judge(read_log(COLLAPSED))
    assert (found.framework, found.phase) == ("verl", "collapse")
    alarms = {alarm.name: alarm for alarm in found.alarms}
    clip, drop = alarms["clip_saturation"], alarms["reward_drop"]
    assert (clip.severity, drop.severity) == ("warning", "critical")
    assert clip.step < drop.step and found.alarms[0] == drop and found.go_back_to < drop.step
    assert "actor/pg_clipfrac" in clip.evidence
    # Numbers of what it says are those of the evidence.
    measured = EVIDENCE["detectors"]["clip_saturation"]
    assert f"before {measured['early']} of {measured['collapsed']} collapses" in clip.rates[-1]
    for recipe, unseen in measured["unseen"].items():
        told = f"before {unseen['early']} of {unseen['collapsed']} collapses"
        assert f"on recipe {recipe}, new to its threshold: {told}" in " ".join(clip.rates)
    arm = EVIDENCE["arms"]["desk/grpo-lr-half"]
    told = f"{arm['collapsed']} of {arm['seeds']} seeds collapsed {arm['share']}, "
    told += f"GRPO's {arm['grpo_collapsed']} of {arm['seeds']} on the same seeds; last reward"
    assert told in clip.advice[0] and "arm grpo-lr-half of study desk" in clip.advice[0]
    low, high = arm["last_reward"][1:]
    assert f"[{low:+.2f}, {high:+.2f}]" in clip.advice[0]
    assert (found.cause, found.advice) == (clip.cause, clip.advice)
    assert "no arm of the study measures it" in advice_text({"do": "look"})


def test_a_steady_run_has_no_alarm_and_a_short_one_no_phase() -> None:
    found = judge(to_log(steady(), "log"))
    assert (found.alarms, found.cause, found.go_back_to) == ((), "", None)
    assert found.phase == "stagnation" and "no alarm" in found.text()
    short = judge(to_log(steady(1), "log"))
    assert short.phase == "unknown" and not short.alarms
    assert "alarms need 6 rows" in short.missing[-1]
    assert judge(to_log(steady(reward=math.nan), "log")).phase == "unknown"
    assert judge(to_log(rewarded(*[0.5] * 12, *[0.0] * 12), "log")).phase == "collapse"
    hint = judge(to_log(steady(zero_variance_groups=1.0), "log"))  # told, and explains nothing
    assert [a.severity for a in hint.alarms] == ["info"] and not (hint.cause or hint.advice)
    assert hint.reaches("info") and not hint.reaches("warning")
    early = judge(to_log(steady(6, clip_fraction=0.5), "log"))
    assert [(a.name, a.step, a.standing) for a in early.alarms] == [("clip_saturation", 6, 1)]
    assert early.cause and early.go_back_to is None  # a warning sends nobody back
    assert not any("alarms need" in entry for entry in early.missing)
    longer = [{"step": s, "response_length": 100 if s < 7 else 300} for s in range(1, 8)]
    alarms = judge(to_log(longer, "log")).alarms  # ln(500 / 300) above 0.416, of one column
    assert [(a.name, a.step) for a in alarms] == [("behaviour_drift", 7)]
    blind = judge(to_log([{"step": s, "entropy": 0.2} for s in range(1, 20)], "log"))
    assert blind.phase == "unknown"
    lacking = " ".join(blind.missing)
    assert all(name in lacking for name in ("clip_saturation", "kl_drift", "phase", "reuse"))


def test_the_checkpoint_to_go_back_to_is_the_best_before_the_alarm(tmp_path: Path) -> None:
    rewards = [0.1, 0.2] + [0.9] * 4 + [0.6] * 6
    rows = [{"step": s, "reward": r, "loss": 0.0} for s, r in enumerate(rewards)]
    for row in rows[9:]:
        row["loss"] = math.nan
    (tmp_path / "log.jsonl").write_text(json_lines(rows))
    assert judge(read_log(tmp_path / "log.jsonl")).go_back_to == 5
    for step in (3, 7, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert judge(read_log(tmp_path / "log.jsonl")).go_back_to == 7  # mean of steps 4 to 7
    unrewarded = [{"step": row["step"], "loss": row["loss"]} for row in rows]
    (tmp_path / "log.jsonl").write_text(json_lines(unrewarded))
    assert judge(read_log(tmp_path / "log.jsonl")).go_back_to == 7  # the last one
    early = [{**row, "loss": math.nan} for row in rows]
    assert judge(to_log(early, "log")).go_back_to is None


def test_a_fall_that_has_passed_is_told_and_counts_no_more() -> None:
    dip = [0.5] * 12 + [0.1] * 4
    low = judge(to_log(rewarded(*dip), "log"))
    assert all(low.reaches(severity) for severity in ("critical", "warning", "info"))
    assert low.reaches("critical") and low.alarms[0].title == "CRITICAL reward_drop, step 14"
    course = "reward 0.5 at first, 0.5 at most, 0.233 at the alarm, 0.1 at the end"
    assert course in low.alarms[0].evidence
    back = judge(to_log(rewarded(*dip, *[0.5] * 8), "log"))
    (alarm,) = back.alarms
    assert alarm.passed and alarm.title == "CRITICAL reward_drop, step 14, passed"
    # A mean of 0.7 / 3 in 0.5 at the alarm, and 0.5 at the end.
    assert (alarm.score, alarm.last) == pytest.approx((1 - 1.4 / 3, 0))
    assert alarm.beyond_noise is None and alarm.standing == 0
    assert not back.reaches("info") and (back.cause, back.go_back_to) == ("", None)
    collapsed = judge(to_log(rewarded(*dip, *[0.1] * 8), "log"))
    assert collapsed.phase == "collapse"
    # A mean of 0.4 / 3 is no return, one of 1.1 / 3 is: it is more than half of the best.
    assert judge(to_log(rewarded(*dip, *[0.1] * 7, 0.2), "log")).phase == "collapse"
    half = judge(to_log(rewarded(*dip, *[0.1] * 8, *[0.5] * 2), "log"))
    assert half.phase == "stagnation"
    assert "the reward collapsed at step 14 and has come back" in half.notes
    again = judge(to_log(rewarded(*dip, *[0.1] * 8, *[0.5] * 3), "log"))
    assert again.phase == "stagnation" and "has come back" in again.text()


def test_the_cause_of_a_fall_came_before_it() -> None:
    for first, named in ((8, True), (14, True), (18, False)):
        rows = rewarded(*[0.5] * 12, *[0.1] * 12, clip_fraction=0.01)
        for row in rows[first - 1 : first + 3]:
            row["clip_fraction"] = 0.9
        found = judge(to_log(rows, "log"))
        assert {a.name for a in found.alarms} == {"reward_drop", "clip_saturation"}
        assert ("moves too far" in found.cause) == named
    # Neither a hint explains it, nor a value that was lost long before.
    rows = rewarded(*[0.5] * 12, *[0.1] * 12, zero_variance_groups=1.0, loss=0.1)
    rows[2]["loss"] = math.nan
    assert judge(to_log(rows, "log")).cause.startswith("the reward has fallen")


def test_what_is_done_already_is_not_advised() -> None:
    rows = rewarded(*[0.5] * 20, loglik_correct=-0.1)
    for row in rows[10:]:
        row["loglik_correct"] = -0.9
    for penalty, advised in ((0.0, True), (0.01, False)):
        made = [row | {"llds_penalty": penalty * (row["step"] > 1)} for row in rows]
        (alarm, *_) = judge(to_log(made, "log")).alarms
        assert alarm.name == "likelihood_displacement"
        assert any("add an LLDS penalty" in text for text in alarm.advice) == advised


@pytest.mark.parametrize("rewards", [[0.0] * 20, [0.4, 0.4, 0.4, -0.8] * 5])
def test_a_reward_whose_zero_is_no_failure_is_said(rewards) -> None:
    found = judge(to_log(rewarded(*rewards), "log"))
    assert "its 0 has to mean failure" in found.missing[0] and not found.alarms
    assert found.phase != "collapse"


def test_a_reward_is_counted_from_what_the_worst_response_gets() -> None:
    """Given, or logged beside it, as by verl; a log that grows never changes what was said."""
    rewards = [0.2] * 12 + [-0.8] * 8
    given = judge(to_log(rewarded(*rewards), "log", reward_floor=-1))
    told = [(alarm.name, alarm.step) for alarm in given.alarms]
    assert given.phase == "collapse" and told == [("reward_drop", 14)]
    assert "the reward is counted from -1, the lowest of a response" in given.notes
    worst = [0.1] * 3 + [-1.0] + [-0.5] * 16
    rows = [
        {"critic/score/mean": mean, "critic/score/min": low, "step": s}
        for s, mean, low in zip(range(1, 21), rewards, worst, strict=True)
    ]
    for row in rows:  # another reward, with a bound of its own
        row |= {"critic/rewards/mean": 0.5, "critic/rewards/min": -9.0}
    del rows[9]["critic/score/min"]  # the lowest so far stands
    log = to_log(rows, "log")
    assert log.column("reward") == pytest.approx([0.2] * 3 + [1.2] * 9 + [0.2] * 8)
    found = judge(log)
    assert found.phase == "collapse" and told == [(a.name, a.step) for a in found.alarms]
    for end in range(1, 20):
        part = to_log(rows[:end], "log").column("reward")
        assert part.tolist() == log.column("reward")[:end].tolist()
    assert not judge(to_log(rows, "log", reward_floor=0)).alarms
    late = [row | ({"critic/score/min": None} if row["step"] < 4 else {}) for row in rows]
    assert to_log(late, "log").column("reward").tolist() == log.column("reward").tolist()
    named = "reward_floor=nan is not finite"
    refused(ConfigError, named, to_log, rows, "log", reward_floor=math.nan)


def test_rows_between_rewards_change_nothing() -> None:
    """TRL's `logging_steps=1` with four updates per rollout: the reward is in every fourth row."""
    fall = [0.5] * 12 + [0.1] * 8
    rows = [
        {"step": 4 * s + u, "loss": 0.1} | ({"reward": r} if u == 1 else {})
        for s, r in enumerate(fall)
        for u in range(1, 5)
    ]
    found, plain = judge(to_log(rows, "log")), judge(to_log(rewarded(*fall), "log"))
    assert found.phase == plain.phase == "collapse"
    assert found.alarms[0].step == 4 * plain.alarms[0].step - 3
    assert "give --updates-per-rollout" in found.text() and found.rows == 80
    # Checkpoints are ranked by rows, not by steps; of equal ones the last counts.
    assert found.go_back_to == 4 * 12


def test_the_page_is_whole_and_escapes_what_comes_from_the_log() -> None:
    log = to_log(steady(clip_fraction=0.5), "<script>alert(1)</script> $x_1$")
    text = page(judge(log), log)
    assert "<script" not in text.lower() and "&lt;script&gt;" in text and text.count("<svg") == 1
    assert not re.search(r"""\s(src|href)\s*=\s*["']?[^"'#]""", text)
    assert "clip saturation" in text and "<style>" in text
    assert page(judge(log), log) == text
    # One row, no drawable metric, and a long log are pages as well.
    for rows in (steady(1), [{"step": 1, "updates": 8}], steady(30_000)):
        log = to_log(rows, "log")
        assert len(page(judge(log), log)) < 600_000


def test_json_holds_what_others_rely_on(capsys) -> None:
    assert main(["diagnose", str(COLLAPSED), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phase"] in PHASES and found["missing"]
    for alarm in found["alarms"]:
        assert alarm.keys() >= {"name", "step", "severity", "evidence", "advice"}
        assert alarm["name"] in DETECTORS


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--fail-on", "critical"], 1),
        (["--format", "console", "--updates-per-rollout", "32", "--fail-on", "info"], 1),
        (["--format", "jsonl"], 2),
    ],
)
def test_exit_codes(words: list[str], code: int, tmp_path: Path, capsys) -> None:
    html = tmp_path / "page.html"
    assert main(["diagnose", str(COLLAPSED), "--html", str(html), *words]) == code
    said = capsys.readouterr()
    if code == 2:
        assert re.fullmatch(r"error: [^\n]+\n", said.err) and not html.exists()
    else:
        assert "phase: collapse" in said.out and html.exists()
    healthy = tmp_path / "log.jsonl"
    healthy.write_text(json_lines(steady()))
    assert main(["diagnose", str(healthy), "--fail-on", "warning"]) == 0


@pytest.mark.parametrize(
    ("command", "where", "more"), [("diagnose", "read_log", {}), ("watch", "follow", {"every": 5})]
)
def test_what_is_said_of_a_log_reaches_its_reader(monkeypatch, command, where, more) -> None:
    def read(path: Path, **options: object) -> None:
        assert (path, options) == (Path("a.log"), said | more)
        raise DataError("as expected")

    said = {"format": "jsonl", "updates_per_rollout": 3, "reward_floor": -1.0}
    said |= {"reward_key": "em", "checkpoints": Path("saved")}
    monkeypatch.setattr(training_log if where == "read_log" else diagnosis, where, read)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]
    assert main([command, "a.log", *words]) == 2


def test_a_page_that_cannot_be_written_is_said_before_anything_else(tmp_path: Path, capsys) -> None:
    log = tmp_path / "out.log"
    log.write_text(COLLAPSED.read_text())
    places = (".", "out.log/page.html", "out.log", 300 * "x")
    for html in (tmp_path / place for place in places):
        assert main(["diagnose", str(log), "--html", str(html)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and re.fullmatch(r"error: [^\n]+\n", said.err)
        assert str(html) in said.err
    assert [*tmp_path.iterdir()] == [log] and log.read_text() == COLLAPSED.read_text()


def test_a_folder_is_followed_though_a_link_in_it_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json_lines(steady()))
    (tmp_path / "latest").symlink_to(tmp_path / "latest")
    assert next(follow(tmp_path))[1].phase == "stagnation"


def test_a_log_is_followed_from_before_its_start(tmp_path: Path, capsys) -> None:
    path = tmp_path / "out.log"
    seen = follow(path, every=0.01)
    lines = COLLAPSED.read_text().splitlines(keepends=True)

    def write():
        time.sleep(0.1)
        path.write_text("")  # there, without a metric yet
        time.sleep(0.05)
        path.write_text("".join(lines[:7]))

    threading.Thread(target=write).start()
    _, first = next(seen)
    assert not any(alarm.name == "clip_saturation" for alarm in first.alarms)
    path.write_text("".join(lines))
    assert next(seen)[1].phase == "collapse"


def test_watch_prints_an_alarm_once_and_ends_by_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_text(COLLAPSED.read_text())
    words = [sys.executable, "-m", "llds_core", "watch", str(path), "--every", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        shown = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        rest = process.stdout.read()
    assert process.returncode == 130
    text = "".join(shown) + rest
    assert text.count("CRITICAL reward_drop") == 1 and "collapse" in shown[0]


def test_a_diagnosis_loads_no_framework() -> None:
    code = f"""
import pathlib, sys
from llds_core.monitor import diagnosis, training_log
diagnosis.judge(training_log.read_log(pathlib.Path({str(COLLAPSED)!r})))
assert not {{"torch", "transformers", "trl", "matplotlib"}} & {{*sys.modules}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
