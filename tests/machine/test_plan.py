"""`plan`: what it says, in what form, and when it refuses."""

import json

import pytest

from llds_core.__main__ import main
from llds_core.config import load_experiment
from llds_core.machine.model_shapes import policy_shape
from llds_core.machine.plan import plan
from llds_core.machine.plan_time import UNCERTAINTY, step_tokens, throughput
from llds_core.runs import Run, RunDirectory

CONTRACT = {
    "fits",
    "gpu_memory_gib",
    "host_memory_gib",
    "disk_gib",
    "gpu_hours",
    "tokens_per_step",
    "deviations",
}


def printed(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_json_keeps_the_contract(capsys) -> None:
    code, found = printed(capsys, "paper-3b", "--gpus", "4", "--gpu-memory-gib", "80")
    assert code == 0 and found.keys() >= CONTRACT and found["fits"] is True
    names = {"weights", "gradients", "optimizer", "reference", "activations", "logits", "kv_cache"}
    assert found["gpu_memory_gib"].keys() >= names | {"total"}
    assert found["gpu_memory_gib"]["total"] == max(
        found["gpu_moments_gib"]["update"], found["gpu_moments_gib"]["rollout"]
    )
    assert found["gpu_hours"] == pytest.approx(4 * found["hours"])
    assert found["deviations"] == []


def test_what_does_not_fit_is_refused_with_the_nearest_layout(capsys) -> None:
    line = refused(capsys, "paper-7b", "--layout", "1x80")
    assert "paper-7b/grpo needs" in line and "--layout 1x141 is the nearest that fits" in line


def test_json_of_what_does_not_fit_is_printed_with_exit_code_one(capsys) -> None:
    code, found = printed(capsys, "paper-7b", "--gpus", "1", "--gpu-memory-gib", "24")
    assert code == 1 and found["fits"] is False
    assert "GiB on each GPU" in found["reason"]


def test_too_little_cache_for_one_trajectory_does_not_fit() -> None:
    config = load_experiment("paper-3b/grpo", ["sampler.memory_share=0.092"])
    assert "raise sampler.memory_share" in plan(config).reason


@pytest.mark.parametrize("profile", ["smoke", "desk"])
def test_without_gpus_only_main_memory_is_asked_for(capsys, profile: str) -> None:
    code, found = printed(capsys, profile)
    assert code == 0 and found["gpus"] == 0 and found["gpu_memory_gib"] == {}
    assert 1 < found["host_memory_gib"] < 3 and found["gpu_hours"] == 0
    assert found["downloads_gb"] == {}


def test_text_names_memory_time_and_deviations(capsys) -> None:
    assert main(["plan", "paper-3b/llds-action", "--layout", "1x80"]) == 0
    text = capsys.readouterr().out
    for word in ("paper-3b/llds-action on 1 GPU", "kv cache", "GPU-hours", "8-bit Adam", "stated"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["paper-3c"], "paper-3b"),
        (["paper-3b/gpro"], "paper-3b/grpo"),
        (["paper-3b", "--layout", "4x8"], "4x80"),
        (["paper-3b", "--layout", "4x80", "--gpus", "4"], "leave out --gpus"),
        (["paper-3b", "--gpus", "4"], "give both"),
        (["paper-3b", "--gpus", "0", "--gpu-memory-gib", "80"], "at least 1"),
        (["paper-3b", "--gpus", "4", "--gpu-memory-gib", "-1"], "hardware.gpu_memory_gib"),
        (["paper-3b", "--gpus", "3", "--gpu-memory-gib", "80"], "does not divide among 3"),
        (["paper-3b", "policy.path=my/model"], "fetch it first"),
        (["paper-3b", "training.step=3"], "training.steps"),
    ],
)
def test_mistakes_end_in_one_line(capsys, arguments: list[str], named: str) -> None:
    assert named in refused(capsys, *arguments)


def test_downloads_and_disk_are_the_known_sizes() -> None:
    """Two bytes a parameter, four a number of the index, and four checkpoints of sixteen."""
    found = plan(load_experiment("paper-3b/grpo"))
    parameters = policy_shape(load_experiment("paper-3b/grpo").policy).parameters
    assert found.downloads_gb["qwen2.5-3b"] == 2 * parameters / 1e9
    assert found.downloads_gb["index"] == pytest.approx(64.56, abs=0.01)
    assert found.downloads_gb["questions"] is None
    assert found.disk_parts_gib["checkpoints"] == 4 * 16 * parameters / 2**30
    assert found.disk_gib == pytest.approx(sum(found.disk_parts_gib.values()))


# Time


def test_stated_time_of_search_r1_is_among_what_its_users_report(tmp_path) -> None:
    """200 steps of 3B on eight H100 in 2 to 7 hours: PeterGriffinJin/Search-R1, issue 1."""
    config = load_experiment("paper-3b/grpo", layout="8x80")
    rate = throughput(config, policy_shape(config.policy), tmp_path)
    assert rate.kind == "stated" and 2 < 200 * rate.seconds / 3600 < 7
    assert rate.slowest / rate.seconds == pytest.approx(UNCERTAINTY)
    assert rate.seconds / rate.fastest == pytest.approx(UNCERTAINTY)


def test_a_reference_policy_and_recomputed_activations_take_time(tmp_path) -> None:
    def seconds(*overrides: str) -> float:
        config = load_experiment("paper-3b/grpo", overrides)
        return throughput(config, policy_shape(config.policy), tmp_path).seconds

    plain = seconds("loss.kl_weight=0", "training.gradient_checkpointing=false")
    assert plain < seconds("training.gradient_checkpointing=false") < seconds()


def test_tokens_of_a_step_stay_within_the_limits() -> None:
    """512 × 5 trajectories of 200 + 1.5 × (60 + 450) + 60 tokens, or of 300 at most."""
    assert step_tokens(load_experiment("paper-3b/grpo")) == 2560 * 1025
    tight = ["rollout.max_total_tokens=300", "rollout.max_action_tokens=100"]
    assert step_tokens(load_experiment("paper-3b/grpo", tight)) == 2560 * 300


def test_measured_runs_come_before_stated_numbers(tmp_path) -> None:
    config = load_experiment("smoke/grpo")
    for seed, seconds in enumerate((2.0, 4.0)):
        with RunDirectory(Run(config, seed, tmp_path).path, config, seed) as run:
            run.append_metrics(
                {
                    "step": 1,
                    "rollout_seconds": 1.0,
                    "update_seconds": seconds - 1,
                    "response_length": 30,
                    "observation_length": 50,
                }
            )
    shape = policy_shape(config.policy)
    rate = throughput(config, shape, tmp_path)
    assert (rate.kind, rate.seconds, rate.fastest, rate.slowest) == ("measured", 3.0, 2.0, 4.0)
    assert rate.tokens == 16 * (30 + 50 + 20)
    larger = load_experiment("smoke/grpo", ["training.epochs=1", "training.updates_per_rollout=2"])
    assert throughput(larger, shape, tmp_path).kind == "stated"
