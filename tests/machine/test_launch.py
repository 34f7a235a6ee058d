"""Commands that start several processes, and what is said when they end; the batch script."""

import subprocess
from pathlib import Path

import pytest
from run_helpers import CONFIG

from llds_core.config import laid_over, load_experiment
from llds_core.files import write_json
from llds_core.machine import launch
from llds_core.machine.jobs import Child
from llds_core.machine.launch import ALONE, Machine, batch_script, launch_command, launch_training
from llds_core.runs import Run, RunDirectory, end_run, read_manifest

TORCHRUN, ACCELERATE = "torch.distributed.run", "accelerate.commands.launch"
TWO = ("hardware.processes=2", "rollout.prompts_per_rollout=8", "training.micro_batch_size=1")
FSDP = ["hardware.sharding=fsdp2", "training.dtype=bfloat16"]
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


@pytest.mark.parametrize(
    ("overrides", "launcher", "words"),
    [
        ([], TORCHRUN, "--standalone --nproc-per-node=2"),
        (
            *(["hardware.nodes=2"], TORCHRUN),
            "--nnodes=2 --node-rank=1 --nproc-per-node=2 --master-addr=first --master-port=1234",
        ),
        (
            *(["hardware.nodes=2", "training.dtype=bfloat16"], ACCELERATE),
            "--multi_gpu --num_processes=4 --num_machines=2 --machine_rank=1 --mixed_precision=bf16"
            " --main_process_ip=first --main_process_port=1234",
        ),
        (FSDP, ACCELERATE, "--config_file --num_processes=2 --main_process_port=0"),
    ],
)
def test_the_launcher_gets_processes_machines_and_precision(overrides, launcher, words) -> None:
    config = load_experiment("smoke/grpo", laid_over(TWO, overrides))
    machine = Machine(1, "first", 1234) if config.hardware.nodes > 1 else ALONE
    on_gpu = launcher == ACCELERATE
    command = launch_command(config, WORK, machine, on_gpu=on_gpu)
    assert command[1:3] == ["-m", launcher] and command[-5:] == ["-m", "llds_core", *WORK]
    for word in words.split():
        flag, _, value = word.partition("=")
        assert command[command.index(flag) + 1] == value or not value
    if on_gpu:
        # accelerate's own parser takes it as it stands.
        from accelerate.commands.launch import launch_command_parser

        parsed = launch_command_parser().parse_args(command[3:])
        assert (parsed.num_processes, parsed.training_script) == (config.world_size, "llds_core")
        assert parsed.training_script_args == WORK


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        # The process that was killed, not those that the launcher ended, however long it waited.
        (KILLED, "process 1 was killed by SIGKILL"),
        (KILLED.replace("-15", "-9"), "process 1 was killed by SIGKILL"),
        (KILLED + "error: the disk is full\n", "the disk is full"),
        ("Traceback (most recent call last):\n  File ...\nKeyError: 'x'\nmore\n", "KeyError: 'x'"),
    ],
)
def test_the_reason_is_what_ended_the_first_process(output: str, reason: str) -> None:
    assert launch._reason(output) == reason


def test_status_of_a_run_whose_processes_were_killed_is_written_for_them(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG, 0) as run:
        end_run(tmp_path, "failed", "not while it is held")
        assert read_manifest(tmp_path)["status"] == "running"
        run.update(status="running")
    end_run(tmp_path, "failed", "too late")
    assert read_manifest(tmp_path)["status"] == "complete"
    write_json(tmp_path / "manifest.json", read_manifest(tmp_path) | {"status": "running"})
    end_run(tmp_path, "failed", "process 1 was killed by SIGKILL")
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["reason"]) == ("failed", "process 1 was killed by SIGKILL")
    assert manifest["finished"]


def test_a_run_interrupted_twice_is_interrupted(tmp_path: Path, monkeypatch) -> None:
    run = Run(CONFIG, 0, tmp_path)
    with RunDirectory(run.path, CONFIG, 0):
        running = run.manifest()
    write_json(run.path / "manifest.json", running)

    def interrupt(*children: Child) -> None:
        for child in children:
            child.process.kill()
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "launch_command", lambda *_, **__: ["sleep", "600"])
    monkeypatch.setattr(launch.ProgressBars, "show", lambda *_: interrupt())
    monkeypatch.setattr(launch, "stop_children", interrupt)
    with pytest.raises(KeyboardInterrupt):
        launch_training(run)
    assert run.manifest()["status"] == "interrupted"


def test_every_machine_of_slurm_runs_the_main_job_with_its_rank(tmp_path: Path) -> None:
    """With stand-ins for Slurm and Python; an override that the shell would split stays whole."""
    odd = "dense.query_prefix='it''s a query: '"
    script = batch_script(
        load_experiment("paper-3b/grpo", [odd], layout="2x8x80"),
        **{"arms": ["grpo", "llds-action"], "seeds": [0, 1], "run_root": Path("results/runs")},
        **{"overrides": [odd], "layout": "2x8x80", "hours": 12},
    )
    stand_ins = {
        "scontrol": "printf 'first\\nsecond\\n'",
        "srun": """test "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=16" || exit 1
shift 2
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done""",
        "python": 'printf "<%s>" "$@"; echo',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "n[1-2]", "JOB_ID": "20005", "CPUS_PER_TASK": "16"}
    told = {f"SLURM_{name}": value for name, value in slurm.items()}
    told |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "python")}
    made = subprocess.check_output(["bash"], input=script, text=True, env=told)
    first, second = made.splitlines()
    assert first.startswith(f"<-m><llds_core><reproduce><paper-3b><{odd}><--layout><2x8x80>")
    assert "<--arms><grpo,llds-action><--seeds><0,1>" in first
    place = "<--machine-rank><0><--main-address><first><--main-port><20005>"
    assert first.endswith(f"{place}<service.url=http://first:20006>")
    assert "<--machine-rank><1><--main-address><first>" in second
