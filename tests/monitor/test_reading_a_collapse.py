"""One collapse in the logs of search agents' trainers: it is seen in each, with its advice."""

import json
import pprint
from pathlib import Path

import pytest
from run_helpers import refused

from llds_core.__main__ import main
from llds_core.errors import DataError
from llds_core.monitor.diagnosis import judge
from llds_core.monitor.training_log import read_log, to_log

REWARDS = [0.3] * 4 + [0.5] * 12 + [0.02] * 12
FALL = 18  # the second row of it: then the mean of three has lost more than the threshold


def rows(reward: str, **more: object) -> list[dict]:
    return [{reward: value, **more} for value in REWARDS]


def stepped(reward: str, **more: object) -> list[dict]:
    return [{"step": step, **row} for step, row in enumerate(rows(reward, **more), 1)]


def json_lines(made: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in made)


def skyrl_console(prefix: str, between: str = "") -> str:
    """As SkyRL 0.3 logs; after a dictionary's first line another worker may write."""
    lines = []
    for step, row in enumerate(rows("reward/avg_raw_reward", **{"policy/grad_norm": 0.3}), 1):
        lines.append("10:00 | INFO | train:497 - {'policy_loss': 0.01, 'grad_norm': 0.3}")
        lines.append(f"10:00 | INFO | tracking:log:189 - Step {step}: ")
        shown = {"generate/avg_num_tokens": 404.0, "trainer/epoch": 0, **row}
        opening, *rest = pprint.pformat(shown | {"trainer/global_step": step}).splitlines()
        lines += [opening, *([between] if between else []), *rest]
    return "".join(f"{prefix * (line != between)}{line}\n" for line in lines)


def dump(folder: Path) -> None:
    """As verl's `rollout_data_dir` has it: two questions with two answers each."""
    for step, reward in enumerate(REWARDS, 1):
        row = {"output": "<search>a</search>" * 2, "em": reward, "gts": "a", "step": step}
        made = [row | {"input": f"q{n // 2}", "score": 2 * reward * (n % 2)} for n in range(4)]
        (folder / f"{step}.jsonl").write_text(json_lines(made))


@pytest.mark.parametrize("prefix", ["", "\x1b[36m(skyrl_entrypoint pid=31, ip=10.0.0.1)\x1b[0m "])
def test_skyrls_console_with_and_without_ray(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "out.log").write_text(skyrl_console(prefix))
    found = judge(read_log(tmp_path / "out.log"))
    assert (found.framework, found.rows, found.phase) == ("skyrl", len(REWARDS), "collapse")
    assert found.alarms[0].step == FALL
    assert "28 of 56 rows name no step and are left out" in found.notes


@pytest.mark.parametrize("said", ["{'loss': 0.3}", "", "{'loss':"])
def test_another_worker_writes_inside_a_dictionary(tmp_path: Path, said: str) -> None:
    own, other = ("\x1b[36m(skyrl_entrypoint pid=31)\x1b[0m ", f"(Worker pid=32) {said}")
    (tmp_path / "out.log").write_text(skyrl_console(own, other))
    log = read_log(tmp_path / "out.log")
    assert log.column("reward").tolist() == REWARDS
    assert ("27 dictionaries without an end are left out" in log.notes) == (said == "{'loss':")


def test_rollouts_that_verl_dumps(tmp_path: Path) -> None:
    dump(tmp_path)
    log = read_log(tmp_path)
    assert log.column("reward") == pytest.approx(REWARDS)
    assert log.column("valid_searches").tolist() == [2.0] * len(REWARDS)
    assert log.column("zero_variance_groups").tolist() == [0.0] * len(REWARDS)
    assert log.column("response_length")[0] == 2 * len("<search>a</search>")
    assert log.framework == "verl" and judge(log).alarms[0].step == FALL
    assert read_log(tmp_path, reward_key="em").column("reward") == pytest.approx(REWARDS)
    with (tmp_path / "1.jsonl").open("a") as text:  # a response that was not scored
        text.write('{"input": "q", "output": "a", "score": null, "step": 1}\n')
    assert "1 responses without a score or an output are left out" in read_log(tmp_path).notes
    (tmp_path / "28.jsonl").write_text('{"step": 28}\n')
    assert len(read_log(tmp_path / "2.jsonl").table) == 1
    named = "is no dump of rollouts: each line needs input"
    refused(DataError, named, read_log, tmp_path / "28.jsonl", format="rollouts")


def test_a_step_of_a_dump_by_hand(tmp_path: Path) -> None:
    """Two groups of two, of which one agrees, then groups of one; the worst response gets -1."""
    told = ("a", "<tool_call>a</tool_call>", "<search>a</search></tool_call>", "")
    made = [
        {"input": q, "output": o, "score": s, "step": 1, "em": 1}
        for q, o, s in zip("aabb", told, (1, 1, 1, -1), strict=True)
    ]
    made += [{"input": q, "output": "a", "score": 1, "step": 2} for q in "cd"]
    (tmp_path / "1.jsonl").write_text(json_lines(made[:4]))
    (tmp_path / "2.jsonl").write_text(json_lines(made[4:]))
    (tmp_path / "notes.jsonl").write_text(json_lines([made[0] | {"step": 9}]))  # no step's file
    log = read_log(tmp_path)
    assert log.column("valid_searches").tolist() == [0.75, 0]
    assert log.column("zero_variance_groups") == pytest.approx([0.5, float("nan")], nan_ok=True)
    assert log.column("reward").tolist() == [1.5, 2]  # from -1 on
    exact = read_log(tmp_path, reward_key="em").column("reward")
    assert exact == pytest.approx([1, float("nan")], nan_ok=True)


def test_history_of_trl_by_weights_and_biases(tmp_path: Path) -> None:
    """transformers writes `train/` before TRL's keys; a run's folder holds its console."""
    head = "_step,train/global_step,train/reward,train/completions/mean_length,train/entropy"
    # `_step` counts what is logged, evaluations too.
    body = (f"{2 * step},{step},{reward},99,0.5" for step, reward in enumerate(REWARDS, 1))
    (tmp_path / "history.csv").write_text("\n".join([head, *body]) + "\n")
    log = read_log(tmp_path / "history.csv")
    assert log.framework == "trl" and judge(log).alarms[0].step == FALL
    assert set(log.column("response_length")) == {99.0} and set(log.column("entropy")) == {0.5}
    console = tmp_path / "run-1/files/output.log"
    console.parent.mkdir(parents=True)
    console.write_text("".join(f"{row}\n" for row in rows("reward")))
    assert len(read_log(tmp_path / "run-1").table) == len(REWARDS)
    binary = tmp_path / "run-1.wandb"
    binary.write_bytes(b"\0" * 9)
    refused(DataError, "export the history of the run as CSV", read_log, binary)


def test_one_of_several_rewards_is_judged_where_it_is_named() -> None:
    """A format reward of 0.5 hides that no answer is right any more."""
    made = [
        {"step": s, "reward": 0.5 + r / 2, "rewards/em/mean": r, "rewards/format/mean": 1.0}
        for s, r in enumerate(REWARDS, 1)
    ]
    whole = judge(to_log(made, "log"))
    assert not whole.alarms and "--reward-key judges one of them" in whole.notes[0]
    named = judge(to_log(made, "log", reward_key="rewards/em/mean"))
    assert named.phase == "collapse" and named.alarms[0].step == FALL
    nearest = 'under the key "reward/em/mean": did you mean "rewards/em/mean"'
    refused(DataError, nearest, to_log, made, "log", reward_key="reward/em/mean")
    # A key of verl may be given as a table names it.
    flat = [{"step": 1, "critic/score/mean": 0.5, "critic/rewards/mean": 0.1}]
    assert to_log(flat, "log", reward_key="critic_rewards_mean").column("reward") == [0.1]


def test_what_a_framework_names_otherwise_or_keeps_out() -> None:
    log = to_log(stepped("reward", cispo_clip_ratio=0.01), "log")
    assert log.framework == "trl" and set(log.column("clip_fraction")) == {0.01}
    # `calculate_log_probs` alone is verl 0.9.1's default, and bypass mode compares nothing.
    verl = to_log([{"step": 1, "critic/score/mean": 0.5}], "log")
    assert "bypass_mode=false" in " ".join(judge(verl).missing)


def test_validations_are_told_and_not_judged() -> None:
    made = [{"step": s, "critic/score/mean": 0.5} for s in range(1, 13)]
    for row, score in zip(made[::4], (0.3, 0.4, 0.1), strict=True):
        row["val-core/nq/acc/mean@1"] = score
    [note] = judge(to_log(made, "log")).notes
    assert note == "val-core/nq/acc/mean@1, not judged: first 0.3, best 0.4, last 0.1"


def test_checkpoints_of_verl_beside_the_log_or_elsewhere(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / "logs/out.jsonl", tmp_path / "saved"
    log.parent.mkdir()
    log.write_text(json_lines(stepped("critic/score/mean")))
    for step in (5, 10, 15, 20):
        (elsewhere / f"global_step_{step}").mkdir(parents=True)
    assert main(["diagnose", str(log), "--checkpoints", str(elsewhere), "--json"]) == 0
    assert judge(read_log(log, checkpoints=elsewhere)).go_back_to == 15
    assert read_log(log).checkpoints == ()
    (elsewhere / "latest_checkpointed_iteration.txt").write_text("20")
    (elsewhere / "train.jsonl").write_text(log.read_text())
    assert read_log(elsewhere).checkpoints == (5, 10, 15, 20)
    (tmp_path / "trl.log").write_text("".join(f"{row}\n" for row in rows("reward")))
    refused(DataError, "names no step", read_log, tmp_path / "trl.log", checkpoints=elsewhere)
    refused(DataError, "holds no checkpoint-<step>", read_log, log, checkpoints=tmp_path)


def test_what_is_not_finite_explains_the_fall_that_follows() -> None:
    """A checkpoint between the two is damaged already."""
    made = [row | {"loss": 0.1 if row["step"] < 15 else float("nan")} for row in stepped("reward")]
    found = judge(to_log(made, "log"))
    assert [alarm.name for alarm in found.alarms] == ["not_finite", "reward_drop"]
    assert "is not finite" in found.cause and found.go_back_to == 14


def test_a_fall_of_a_short_log_is_no_stagnation() -> None:
    found = judge(to_log(stepped("reward")[:20], "log"))
    assert found.phase == "stagnation" and "(but 96 % of the best reward is lost" in found.text()


def test_advice_that_nobody_can_follow_is_not_given() -> None:
    for updates, given in ((1, False), (2, True)):
        [fall, *_] = judge(to_log(stepped("reward"), "log", (), updates)).alarms
        assert fall.name == "reward_drop" and (fall.score > fall.threshold) and fall.last > 0.9
        assert any("fewer updates per rollout" in text for text in fall.advice) == given


def test_a_run_that_cannot_be_judged_does_not_pass_for_a_good_one(tmp_path: Path, capsys) -> None:
    log = tmp_path / "log.jsonl"
    names = "entropy clip_fraction kl loglik_correct updates sampler_gap llds_penalty "
    names += "zero_variance_groups response_length valid_searches"
    whole = dict.fromkeys(names.split(), 0.1)
    for made, why in (
        ([{"reward": -0.5}] * 20, "phase, reward_drop: the reward goes below 0"),
        ([{"reward": 0.5, **whole}] * 7, "phase: it needs 9 rows with a reward"),
        ([{"reward": 0.5, **whole}] * 8, "phase: it needs 9 rows with a reward"),
        ([{"loss": 0.5}] * 20, "phase, reward_drop: reward has no value in any row"),
    ):
        log.write_text(json_lines([row | {"step": step} for step, row in enumerate(made)]))
        assert main(["diagnose", str(log), "--fail-on", "critical"]) == 2
        said = capsys.readouterr()
        assert "phase: unknown (too few rows, or no reward that can be judged" in said.out
        assert f"error: --fail-on critical: the run cannot be judged: {why}" in said.err
    log.write_text(json_lines(stepped("reward", clip_fraction=0.5)[:16]))
    assert main(["diagnose", str(log), "--fail-on", "warning"]) == 1
    assert main(["diagnose", str(log), "--fail-on", "critical"]) == 0  # it is no more than that


@pytest.mark.parametrize(
    ("key", "last", "said"),
    [
        ("valid_searches", 0.05, True),
        ("valid_searches", 0.14, True),
        ("valid_searches", 0.16, False),  # more than a tenth
        ("valid_searches", 0.4, False),
        ("tool_call_counts/mean", 0.05, True),
        ("num_turns/mean", 0.05, False),  # turns are no searches
    ],
)
def test_an_agent_that_stops_searching_is_told_though_its_reward_holds(key, last, said) -> None:
    searches = [1.5] * 6 + [last] * 12
    reward = "reward" if key == "valid_searches" else "critic/score/mean"
    rows = [{"step": n, reward: 0.5, key: value} for n, value in enumerate(searches, 1)]
    found = judge(to_log(rows, "log"))
    assert any("hardly searches any more: 1.5 per response" in n for n in found.notes) == said
    seldom = judge(to_log([row | {key: 0.3 * row[key]} for row in rows], "log"))  # 0.45 at first
    assert not any("hardly searches" in note for note in seldom.notes)
