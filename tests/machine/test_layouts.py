"""Layouts: valid for every model of the paper, and what fits where."""

import importlib.resources

import pytest

from llds_core.config import layouts, load_experiment, profiles
from llds_core.errors import ConfigError
from llds_core.machine.layouts import fitting_layouts, nearest_fitting, on_gpus
from llds_core.machine.plan import plan

PAPER = [name for name in profiles() if name.startswith("paper-")]
ACCELERATE = importlib.resources.files("llds_core") / "presets" / "accelerate"
TOO_LARGE = {("paper-7b", "1x80"), ("paper-7b-instruct", "1x80")}


def test_the_layouts_ship() -> None:
    assert set(layouts()) == {"1x80", "1x141", "4x80", "8x80", "2x8x80"}


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("profile", PAPER)
def test_every_model_fits_every_layout_but_7b_one_gpu_of_80(profile: str, layout: str) -> None:
    config = load_experiment(f"{profile}/llds-action", layout=layout)
    sizes = [int(part) for part in layout.split("x")]
    count = sizes[0] if len(sizes) == 2 else sizes[0] * sizes[1]
    assert config.world_size == count and config.hardware.gpu_memory_gib < sizes[-1]
    assert plan(config).fits == ((profile, layout) not in TOO_LARGE)


def test_a_profile_names_its_own_layout() -> None:
    assert load_experiment("paper-3b/grpo") == load_experiment("paper-3b/grpo", layout="4x80")
    assert load_experiment("paper-3b/grpo").training.micro_batch_size * 4 == 64


def test_overrides_lie_above_the_layout() -> None:
    config = load_experiment("paper-3b/grpo", ["training.optimizer=adamw"], layout="1x80")
    assert config.training.optimizer == "adamw" and config.hardware.processes == 1


def test_unknown_layout_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "4x80"'):
        load_experiment("paper-3b/grpo", layout="4x8")


def test_fitting_layouts_come_smallest_first_and_within_the_machine() -> None:
    assert list(fitting_layouts("paper-7b/grpo")) == ["1x141", "4x80", "8x80", "2x8x80"]
    here = fitting_layouts("paper-3b/grpo", nodes=1, gpus=4, gpu_memory_gib=80)
    assert list(here) == ["1x80", "4x80"]


def test_the_nearest_layout_is_that_of_the_nearest_memory() -> None:
    config = load_experiment("paper-7b/grpo", layout="1x80")
    assert nearest_fitting(config) == "1x141"


def test_gpus_of_a_layout_get_its_settings() -> None:
    config = on_gpus("paper-7b/grpo", gpus=8, gpu_memory_gib=80)
    layout = load_experiment("paper-7b/grpo", layout="8x80")
    assert config.training == layout.training and config.sampler == layout.sampler
    assert config.hardware.gpu_memory_gib == 80


def test_other_gpus_get_the_largest_micro_batch_that_fits() -> None:
    config = on_gpus("paper-3b/grpo", gpus=4, gpu_memory_gib=40)
    assert plan(config).fits and config.hardware.sharding == "fsdp2"
    larger = [f"training.micro_batch_size={2 * config.training.micro_batch_size}"]
    assert not plan(on_gpus("paper-3b/grpo", larger, gpus=4, gpu_memory_gib=40)).fits


def test_gpus_that_the_mini_batch_does_not_divide_among_are_refused() -> None:
    with pytest.raises(ConfigError, match="256 trajectories does not divide among 3 GPUs"):
        on_gpus("paper-3b/grpo", gpus=3, gpu_memory_gib=80)


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_accelerate_reads_its_configurations(name: str) -> None:
    """Every key is one that accelerate's launcher knows: it would drop another silently."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= set(known)
    assert config.mixed_precision == "bf16"
    if name == "fsdp2":
        assert config.distributed_type.value == "FSDP" and config.fsdp_config["fsdp_version"] == 2
    else:
        assert config.distributed_type.value == "DEEPSPEED"
        assert config.deepspeed_config["zero_stage"] == 3
