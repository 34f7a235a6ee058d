"""What a job costs, what else a machine could run, and the same job as a batch script."""

import subprocess
from pathlib import Path

import pytest

from llds_core.__main__ import main
from llds_core.config import layouts, load_experiment
from llds_core.errors import ConfigError
from llds_core.machine.doctor import Gpu, Gpus
from llds_core.machine.plan import plan
from llds_core.machine.slurm import batch_script
from llds_core.study.costs import layout_overrides, say_costs, say_what_else


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", ["paper-3b/llds-action", "paper-7b-instruct/grpo"])
def test_a_layout_as_overrides_is_the_layout(name: str, layout: str) -> None:
    overrides = layout_overrides(name, layout)
    assert load_experiment(name, overrides) == load_experiment(name, layout=layout)


def test_the_layout_of_the_profile_changes_nothing() -> None:
    assert (
        layout_overrides("paper-3b/grpo", None) == layout_overrides("paper-3b/grpo", "4x80") == []
    )


def test_costs_are_those_of_the_plan_for_every_run_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [load_experiment(f"paper-3b/{arm}", layout="1x80") for arm in ("grpo", "llds-action")]
    say_costs(configs, tmp_path, 3)
    said = capsys.readouterr().out
    planned = plan(configs[0], tmp_path)
    assert f"3 runs left: {3 * planned.hours:,.1f} h" in said
    assert f"{3 * planned.gpu_hours:,.0f} GPU-hours" in said
    assert "deviates from the paper: 8-bit Adam" in said


def test_gpus_that_are_too_small_are_refused_with_the_nearest_layout(tmp_path: Path) -> None:
    config = load_experiment("paper-7b/grpo", ["hardware.gpu_memory_gib=24"])
    with pytest.raises(ConfigError, match=r"GiB on each GPU.*LAYOUT=\w+ is the nearest that fits"):
        say_costs([config], tmp_path, 1)


def test_a_machine_with_a_gpu_is_told_what_it_could_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_what_else(tmp_path, Gpus(gpus=(Gpu("H200", 139.8, 139.0),)))
    said = capsys.readouterr().out
    assert "1 × H200" in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("   ")}
    assert "LAYOUT=1x141" in lines["paper-3b"] and "GPU-hours" in lines["paper-3b"]
    assert "8-bit Adam" in lines["paper-7b"] and "desk" not in lines
    say_what_else(tmp_path, Gpus(gpus=(Gpu("RTX 4090", 23.6, 23.0),)))
    assert "no: its smallest layout does not fit here" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_what_else(tmp_path, Gpus())
    assert capsys.readouterr().out == ""


def script(layout: str, *overrides: str) -> str:
    return batch_script(
        load_experiment("paper-3b/grpo", overrides, layout=layout),
        arms=["grpo", "llds-action"],
        seeds=[0, 1],
        run_root=Path("results/runs"),
        overrides=overrides,
        layout=layout,
        hours=12,
    )


@pytest.mark.parametrize(("layout", "nodes", "gpus"), [("8x80", 1, 8), ("2x8x80", 2, 8)])
def test_a_batch_script_is_a_shell_script_that_asks_for_the_layout(
    layout: str, nodes: int, gpus: int
) -> None:
    text = script(layout)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    for wanted in (f"--nodes={nodes}", f"--gpus-per-node={gpus}", "--time=12:00:00"):
        assert f"#SBATCH {wanted}" in directives


def test_every_machine_runs_the_main_job_with_its_rank(tmp_path: Path) -> None:
    """With stand-ins for Slurm and Python; an override that the shell would split stays whole."""
    odd = "dense.query_prefix='it''s a query: '"
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
    done = subprocess.run(
        ["bash"],
        input=script("2x8x80", odd),
        text=True,
        capture_output=True,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "PYTHON": str(tmp_path / "python"),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_ID": "20005",
            "SLURM_CPUS_PER_TASK": "16",
        },
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"<-m><llds_core><reproduce><paper-3b><{odd}><--layout><2x8x80>")
    assert "<--arms><grpo,llds-action><--seeds><0,1>" in first
    assert first.endswith(
        "<--machine-rank><0><--main-address><first><--main-port><20005>"
        "<service.url=http://first:20006>"
    )
    assert "<--machine-rank><1><--main-address><first>" in second


def test_the_command_prints_the_script_and_refuses_profiles_of_the_cpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["slurm", "paper-3b", "--layout", "2x8x80"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert main(["slurm", "desk"]) == 2
    assert "desk needs no GPU" in capsys.readouterr().err
