"""`plan`: what it says, in what form, and when it refuses; layouts, and what a job costs."""

import importlib.resources
import json
import math
from pathlib import Path

import pytest
from run_helpers import mistake, refused

from llds_core.__main__ import main
from llds_core.config import layouts, layouts_for, load, load_experiment, profiles
from llds_core.errors import ConfigError
from llds_core.machine.memory import evaluation_share, policy_shape
from llds_core.machine.plan import advice, estimate, layout_overrides, load_laid_out, say_costs
from llds_core.runs import Run, RunDirectory

KEYS = {
    *("experiment", "fits", "reason", "gpus", "gpu_memory_gib", "gpu_moments_gib"),
    *("host_memory_gib", "host_memory_parts_gib", "disk_gib", "disk_parts_gib", "downloads_gb"),
    *("tokens_per_step", "hours", "hours_range", "gpu_hours", "throughput", "deviations"),
}
PAPER = [name for name in profiles() if name.startswith("paper-")]
TOO_LARGE = {("paper-7b", "1x80"), ("paper-7b-instruct", "1x80")}
ACCELERATE = importlib.resources.files("llds_core") / "presets" / "accelerate"


def printed(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_json_keeps_the_contract(capsys) -> None:
    code, found = printed(capsys, "paper-3b", "--gpus", "4", "--gpu-memory-gib", "80")
    assert code == 0 and found.keys() == KEYS and found["fits"] is True
    names = {"weights", "gradients", "optimizer", "reference", "activations", "logits", "kv_cache"}
    assert found["gpu_memory_gib"].keys() >= names | {"total"}
    moments = found["gpu_moments_gib"]
    assert found["gpu_memory_gib"]["total"] == max(moments["update"], moments["rollout"])
    assert found["gpu_hours"] == pytest.approx(4 * found["hours"])
    assert found["deviations"] == ["corrective message in our own words"]
    code, found = printed(capsys, "paper-7b", "--gpus", "1", "--gpu-memory-gib", "24")
    assert code == 1 and found["fits"] is False and "GiB on each GPU" in found["reason"]


def test_too_little_cache_for_one_trajectory_does_not_fit() -> None:
    config = load_experiment("paper-3b/grpo", ["sampler.memory_share=0.092"])
    assert "raise sampler.memory_share" in estimate(config).reason


@pytest.mark.parametrize("profile", ["smoke", "desk"])
def test_without_gpus_only_main_memory_is_asked_for(capsys, monkeypatch, profile: str) -> None:
    code, found = printed(capsys, profile)
    assert code == 0 and found["gpus"] == 0 and found["gpu_memory_gib"] == {}
    assert 1 < found["host_memory_gib"] < 3 and found["gpu_hours"] == 0
    assert found["downloads_gb"] == {}
    small = type("Memory", (), {"total": 2**30})
    monkeypatch.setattr("llds_core.machine.plan.psutil.virtual_memory", lambda: small)
    assert "GiB of main memory, and this machine has 1.0" in mistake(capsys, "plan", profile)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("paper-7b --layout 1x80", "fits on layout 1x141 or 2x8x80 or 4x80 or 8x80"),
        ("paper-3b --layout 4x8", "4x80"),
        ("paper-3b --layout 4x80 --gpus 4", "leave out --gpus"),
        ("paper-3b --gpus 4", "give both"),
        ("paper-3b --gpus 4 --gpu-memory-gib -1", "--gpu-memory-gib"),
        ("paper-3b --gpus 3 --gpu-memory-gib 80", "no layout of paper-3b/grpo is for 1 × 3 GPUs"),
        ("paper-3b policy.path=my/model", "fetch it first"),
    ],
)
def test_mistakes_end_in_one_line(capsys, words: str, named: str) -> None:
    assert named in mistake(capsys, "plan", *words.split())


def test_downloads_and_disk_are_the_known_sizes() -> None:
    """Two bytes per parameter, four per number of the index, and four checkpoints of sixteen."""
    found = estimate(load_experiment("paper-3b/grpo"))
    parameters = policy_shape(load_experiment("paper-3b/grpo").policy).parameters
    assert found.downloads_gb["qwen2.5-3b"] == 2 * parameters / 1e9
    assert found.downloads_gb["index"] == pytest.approx(64.56, abs=0.01)
    assert found.downloads_gb["questions"] is None
    assert found.disk_parts_gib["checkpoints"] == 4 * 16 * parameters / 2**30
    assert found.disk_gib == pytest.approx(sum(found.disk_parts_gib.values()))
    # Published vectors are searched where they lie; encoding makes as many, of 16 bits here, and a
    # graph one more file.
    assert found.disk_parts_gib["own index"] == 0
    for overrides, sizes in (["dense.vectors=null"], 0.5), (["dense.index=hnsw"], 1.17):
        own = estimate(load_experiment("paper-3b/grpo", overrides)).disk_parts_gib["own index"]
        assert own == pytest.approx(sizes * 60.125, rel=0.01)


def test_stated_time_of_search_r1_is_among_what_its_users_report(tmp_path) -> None:
    """200 steps of 3B on eight H100 in 2 to 7 hours: PeterGriffinJin/Search-R1, issue 1."""
    found = estimate(load_experiment("paper-3b/grpo", layout="8x80"), tmp_path)
    seconds = found.throughput["seconds_per_step"]
    assert found.throughput["kind"] == "stated" and 2 < 200 * seconds / 3600 < 7
    assert found.hours_range == pytest.approx((found.hours / 2.5, found.hours * 2.5))


def test_stated_time_follows_passes_and_tokens(tmp_path) -> None:
    """512 × 5 trajectories of 200 + 1.5 × (60 + 450) + 60 tokens, or of 300 at most."""
    once = "training.gradient_checkpointing=false"
    short = ["rollout.max_total_tokens=300", "rollout.max_action_tokens=100"]
    no_reference, kept, usual, cut = (
        estimate(load_experiment("paper-3b/grpo", overrides), tmp_path)
        for overrides in (["loss.kl_weight=0", once], [once], [], short)
    )
    assert no_reference.hours < kept.hours < usual.hours
    assert (usual.tokens_per_step, cut.tokens_per_step) == (2560 * 1025, 2560 * 300)


def test_stated_time_on_a_cpu_follows_threads_and_precision(tmp_path) -> None:
    def hours(threads: int, dtype: str) -> float:
        overrides = [f"training.threads={threads}", f"training.dtype={dtype}"]
        return estimate(load_experiment("smol/grpo", overrides, "cpu"), tmp_path).hours

    assert hours(2, "float32") == pytest.approx(3 * hours(2, "bfloat16"), rel=0.02)
    assert hours(2, "float32") == pytest.approx(2 * hours(4, "float32"), rel=0.02)
    # Published: medians of 87 to 147 s per step, two runs of a thread each on two cores.
    assert 60 * 87 / 2 / 3600 / 2.5 < hours(2, "bfloat16") < 60 * 147 / 2 / 3600 * 2.5


def test_measured_runs_come_before_stated_numbers(tmp_path) -> None:
    config = load_experiment("smoke/grpo")
    row = {"step": 1, "rollout_seconds": 1.0, "response_length": 30, "observation_length": 50}
    for seed, seconds in enumerate((2.0, 4.0)):
        with RunDirectory(Run(config, seed, tmp_path).path, config, seed) as run:
            run.append_metrics(row | {"update_seconds": seconds - 1})
    found = estimate(config, tmp_path)
    steps = config.training.steps
    assert found.throughput["kind"] == "measured" and found.throughput["seconds_per_step"] == 3.0
    assert found.hours_range == (steps * 2.0 / 3600, steps * 4.0 / 3600)
    assert found.tokens_per_step == 16 * (30 + 50 + 20)
    larger = load_experiment("smoke/grpo", ["training.epochs=1", "training.updates_per_rollout=2"])
    assert estimate(larger, tmp_path).throughput["kind"] == "stated"


@pytest.mark.parametrize("layout", layouts_for("paper-3b"))
@pytest.mark.parametrize("profile", PAPER)
def test_every_model_fits_every_layout_but_7b_one_gpu_of_80(profile: str, layout: str) -> None:
    config = load_experiment(f"{profile}/llds-action", layout=layout)
    *gpus, memory = [int(part) for part in layout.split("x")]
    assert config.world_size == math.prod(gpus) and config.hardware.gpu_memory_gib < memory
    fits = estimate(config).fits
    assert fits == ((profile, layout) not in TOO_LARGE)
    assert fits == (layout in advice(config).split())


def test_layouts_ship_and_a_profile_names_its_own() -> None:
    gpus = {"1x80", "1x141", "4x80", "8x80", "2x8x80"}
    assert set(layouts_for("paper-3b")) == gpus and set(layouts()) == {*gpus, "cpu"}
    assert load_experiment("paper-3b/grpo") == load_experiment("paper-3b/grpo", layout="4x80")
    assert load_experiment("paper-3b/grpo").training.micro_batch_size * 4 == 64
    config = load_experiment("paper-3b/grpo", ["training.optimizer=adamw"], layout="1x80")
    assert config.training.optimizer == "adamw" and config.hardware.processes == 1


def test_a_layout_without_a_gpu_takes_what_the_processor_has(monkeypatch, tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    for text, dtype in (("flags : avx2 amx_bf16 fma", "bfloat16"), ("flags : avx512f", "float32")):
        flags.write_text(text)
        monkeypatch.setattr(load, "_CPUINFO", flags)
        load.computes_in_bfloat16.cache_clear()
        config = load_experiment("smol/grpo", layout="cpu")
        assert config.training.dtype == dtype and config.mini_batch_size == 4
    flags.unlink()
    load.computes_in_bfloat16.cache_clear()
    assert not load.computes_in_bfloat16()
    monkeypatch.undo()
    load.computes_in_bfloat16.cache_clear()
    named = 'profile paper-3b has no layout "cpu": valid: 1x'
    refused(ConfigError, named, load_experiment, "paper-3b/grpo", layout="cpu")
    assert "cpu" in layouts_for("smol") and "cpu" not in layouts_for("desk")


def test_checkpoints_gathering_and_pushing_are_in_the_step() -> None:
    """By hand, for 3.086 billion parameters on four GPUs: bytes over bytes per second."""
    weights = 4 * policy_shape(load_experiment("paper-3b/grpo").policy).parameters
    found = estimate(load_experiment("paper-3b/grpo")).throughput
    assert found["seconds_of_it"] == pytest.approx(
        {
            "checkpoints": 4 * weights / 15 / 1e9,
            # 40 micro-batches: old, reference, a fifth of the final scores; forward and backward.
            "gather": 40 * weights * (2.2 / 2 + 2) / 2e11,
            "push": weights / 4e9,
        }
    )
    overrides = ["training.resumable_every=150", "training.max_tokens_per_micro_batch=65536"]
    fewer = estimate(load_experiment("paper-3b/grpo", overrides))
    parts = fewer.throughput["seconds_of_it"]
    assert parts["checkpoints"] == pytest.approx((0.1 * 4 + 0.9) * weights / 15 / 1e9)
    assert parts["gather"] < found["seconds_of_it"]["gather"]
    # Whole are the best one, the one being written, and the last that a run can be continued from.
    assert fewer.disk_parts_gib["checkpoints"] == pytest.approx((3 * 4 + 2) * weights / 2**30)
    assert found["seconds_per_step"] > fewer.throughput["seconds_per_step"]


def test_what_a_peer_reaches_without_a_penalty_is_said_beside_the_papers_recipe() -> None:
    said = [estimate(load_experiment(name)).text() for name in ("paper-3b/grpo", "desk/grpo")]
    assert ["SkyRL reports 330 steps" in text for text in said] == [True, False]


def test_gpus_of_a_layout_get_its_settings() -> None:
    of = ((8, 80, "8x80"), (1, 90, "1x80"), (1, 200, "1x141"), (1, 24, "1x80"))
    for gpus, memory, name in of:
        layout = load_experiment("paper-7b/grpo", [f"hardware.gpu_memory_gib={memory}"], name)
        assert load_laid_out("paper-7b/grpo", gpus=gpus, gpu_memory_gib=memory) == layout


@pytest.mark.parametrize("layout", [None, *layouts_for("paper-3b")])
@pytest.mark.parametrize("name", ["paper-3b/llds-action", "paper-7b-instruct/grpo"])
def test_a_layout_as_overrides_is_the_layout(name: str, layout: str | None) -> None:
    overrides = layout_overrides(name, layout)
    assert load_experiment(name, overrides) == load_experiment(name, layout=layout)
    assert overrides == [] or layout not in (None, "4x80")
    own = layout_overrides(name, "1x80", ["training.micro_batch_size=2"])
    assert load_experiment(name, own).training.micro_batch_size == 2


def test_costs_are_those_of_the_plan_for_every_run_left(tmp_path: Path, capsys) -> None:
    configs = [load_experiment(f"paper-3b/{arm}", layout="1x80") for arm in ("grpo", "llds-action")]
    say_costs(configs, tmp_path, 3)
    said = capsys.readouterr().out
    planned = estimate(configs[0], tmp_path)
    assert f"3 runs left: {3 * planned.hours:,.1f} h" in said
    for word in (f"{3 * planned.gpu_hours:,.0f} GPU-hours", "kv_cache", "stated"):
        assert word in said
    assert "deviates from the paper: training.optimizer is adamw-8bit" in said
    small = load_experiment("paper-7b/grpo", ["hardware.gpu_memory_gib=24"])
    named = r"GiB on each GPU.*it fits on layout 1x141 or"
    refused(ConfigError, named, say_costs, [small], tmp_path, 1)
    # Layouts are tried with what the user wants, too.
    wanted = ["rollout.max_total_tokens=40000"]
    long = load_experiment("paper-3b/grpo", wanted)
    refused(ConfigError, "it fits on no layout", say_costs, [long], tmp_path, 1, wanted)


def test_an_index_is_on_the_gpus_when_it_is_exact_and_may_be(tmp_path: Path) -> None:
    for overrides, size in (["dense.device=auto"], 9.5), (["dense.index=hnsw"], 0), ([], 9.5):
        found = estimate(load_experiment("paper-3b/grpo", overrides), tmp_path)
        assert found.gpu_memory_gib["index"] == pytest.approx(size, abs=0.1)
    # An evaluation leaves the index its room, and no GPU is filled.
    for layout, share in ("1x141", 0.71), ("4x80", 0.8):
        config = load_experiment("paper-3b/grpo", layout=layout)
        assert evaluation_share(config) == pytest.approx(share, abs=0.01)


def test_accelerate_reads_its_configuration() -> None:
    """Every key is one that accelerate's launcher knows: it would drop another silently."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ACCELERATE / "fsdp2.yaml"))
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known) and config.mixed_precision == "bf16"
    assert config.distributed_type.value == "FSDP" and config.fsdp_config["fsdp_version"] == 2
