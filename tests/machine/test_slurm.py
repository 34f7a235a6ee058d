"""The main job as a batch script."""

import subprocess
from pathlib import Path

from llds_core.config import load_experiment
from llds_core.machine.launch import batch_script


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
