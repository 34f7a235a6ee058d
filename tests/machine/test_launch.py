"""Commands that start several processes, and what is said when they end."""

from pathlib import Path

import pytest
from run_helpers import CONFIG, one_line

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.machine.launch import Machine, _reason, launch_command
from llds_core.runs import RunDirectory, end_run, read_manifest

WORK = ["train", "smoke/grpo", "--quiet"]
KILLED = """W1121 elastic/api.py:1051] Sending process 7 closing signal SIGTERM
error: another process of this run has ended (Connection closed by peer): issue the same command
llds_core FAILED
Failures:
[1]:
  time      : 2026-11-21_14:00:00
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 7)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 8)
"""


def experiment(*overrides: str):
    return load_experiment("smoke/grpo", ["training.micro_batch_size=1", *overrides])


def test_one_machine_without_a_gpu_uses_torchrun_on_a_free_port() -> None:
    command = launch_command(experiment("hardware.processes=2"), WORK, on_gpu=False)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert "--standalone" in command
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-5:] == ["-m", "llds_core", *WORK]


def test_several_machines_without_a_gpu_meet_at_the_first() -> None:
    config = experiment("hardware.processes=2", "hardware.nodes=2")
    command = launch_command(config, WORK, Machine(1, "first", 1234), on_gpu=False)
    for flag, value in (
        ("--nnodes", "2"),
        ("--node-rank", "1"),
        ("--nproc-per-node", "2"),
        ("--master-addr", "first"),
        ("--master-port", "1234"),
    ):
        assert command[command.index(flag) + 1] == value


@pytest.mark.parametrize(
    ("sharding", "form"), [("none", "--multi_gpu"), ("fsdp2", "--config_file")]
)
def test_gpus_are_launched_by_accelerate(sharding: str, form: str) -> None:
    config = experiment(
        "hardware.processes=4",
        "hardware.nodes=2",
        f"hardware.sharding={sharding}",
        "training.dtype=bfloat16",
        "rollout.prompts_per_rollout=8",
    )
    command = launch_command(config, WORK, Machine(1, "first", 1234), on_gpu=True)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert form in command
    for flag, value in (
        ("--num_processes", "8"),
        ("--num_machines", "2"),
        ("--machine_rank", "1"),
        ("--main_process_ip", "first"),
        ("--main_process_port", "1234"),
        ("--mixed_precision", "bf16"),
    ):
        assert command[command.index(flag) + 1] == value
    # accelerate's own parser takes it as it stands.
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args(command[3:])
    assert (parsed.num_processes, parsed.training_script) == (8, "llds_core")
    assert parsed.training_script_args == WORK


@pytest.mark.parametrize("rank", [-1, 2])
def test_machine_outside_of_the_nodes_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"--machine-rank is {rank}") as error:
        launch_command(experiment("hardware.nodes=2"), WORK, Machine(rank), on_gpu=False)
    one_line(error)


@pytest.mark.parametrize("patience", ["-15", "-9"])
def test_reason_is_the_process_that_was_killed_not_those_that_the_launcher_ended(
    patience: str,
) -> None:
    output = KILLED.replace("-15", patience)
    assert _reason(output) == "process 1 was killed by SIGKILL"


def test_reason_is_the_error_of_a_process_before_what_the_others_noticed() -> None:
    assert _reason(KILLED + "error: the disk is full\n") == "the disk is full"


def test_reason_of_a_defect_is_its_exception() -> None:
    output = "Traceback (most recent call last):\n  File ...\nKeyError: 'x'\nmore\n"
    assert _reason(output) == "KeyError: 'x'"


def test_status_of_a_run_whose_processes_were_killed_is_written_for_them(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG, 0) as run:
        end_run(tmp_path, "failed", "not while it is held")
        assert read_manifest(tmp_path)["status"] == "running"
        run.update(status="running")
    manifest = (tmp_path / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").write_text(manifest.replace("complete", "running"), "utf-8")
    end_run(tmp_path, "failed", "process 1 was killed by SIGKILL")
    assert read_manifest(tmp_path)["status"] == "failed"
    assert read_manifest(tmp_path)["reason"] == "process 1 was killed by SIGKILL"
    assert read_manifest(tmp_path)["finished"]


def test_complete_run_keeps_its_status(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG, 0):
        pass
    end_run(tmp_path, "failed", "too late")
    assert read_manifest(tmp_path)["status"] == "complete"
