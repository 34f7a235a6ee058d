"""One writer, whole files, and what survives a kill, a full disk or another configuration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_helpers import CONFIG, no_space, one_line, refused

from llds_core.config import ExperimentConfig, load_experiment
from llds_core.errors import DataError, RunError
from llds_core.runs import Run, RunDirectory, read_manifest
from llds_core.runs import directory as runs
from llds_core.runs.identity import same_run
from llds_core.runs.provenance import package_versions

HOLD = """
import sys, time
from pathlib import Path
from llds_core.config import load_experiment
from llds_core.runs import RunDirectory
held = RunDirectory(Path(sys.argv[1]), load_experiment("smoke/grpo"), 0)
print("held", flush=True)
time.sleep(3600)
"""
# With a mean per micro-batch, what a micro-batch is made of belongs to the objective.
_MICRO = "loss.aggregate=token-mean-micro"


def opened(folder: Path, *overrides: str) -> RunDirectory:
    return RunDirectory(folder, load_experiment("smoke/grpo", overrides), 0)


def test_lock_of_a_live_process_names_it_and_that_of_a_killed_one_is_taken_over(tmp_path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            refused(RunError, f"in use by process {holder.pid}", RunDirectory, tmp_path, CONFIG, 0)
            assert read_manifest(tmp_path)["status"] == "running"
        finally:
            holder.kill()
    with RunDirectory(tmp_path, CONFIG, 0):
        assert (tmp_path / "lock").read_text("utf-8") == str(os.getpid())


def test_new_run_says_what_it_is(run: RunDirectory) -> None:
    manifest = read_manifest(run.path)
    assert (manifest["status"], manifest["finished"], manifest["resumed"]) == ("running", None, [])
    assert (manifest["profile"], manifest["method"], manifest["seed"]) == ("smoke", "grpo", 0)
    assert manifest["config"] == CONFIG.to_dict() and manifest["config_hash"] == CONFIG.hash()
    assert manifest["command"] == "again"
    assert manifest["packages"] == package_versions()


def test_an_experiment_is_read_back_equal_from_either_file(tmp_path: Path) -> None:
    changed = ["world.cities=null", "training.learning_rate=1e-6", "loss.kl_clamp=2.5"]
    with opened(tmp_path, *changed):
        from_yaml = yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8"))
        from_json = read_manifest(tmp_path)["config"]
    config = load_experiment("smoke/grpo", changed)
    assert config.world.cities is None and config.training.learning_rate == 1e-6
    assert ExperimentConfig(**from_yaml) == ExperimentConfig(**from_json) == config


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "complete", None),
        (KeyboardInterrupt(), "interrupted", "stopped by the user"),
        (ValueError("loss is blue"), "failed", "ValueError: loss is blue"),
    ],
)
def test_status_says_how_the_run_ended(tmp_path, error, status, reason) -> None:
    try:
        with RunDirectory(tmp_path, CONFIG, 0):
            if error:
                raise error
    except (KeyboardInterrupt, ValueError) as seen:
        assert seen is error
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["reason"]) == (status, reason)
    assert manifest["finished"] is not None


def test_continued_run_is_running_again_and_keeps_its_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError), RunDirectory(tmp_path, CONFIG, 0) as run:
        run.update(best_step=3, started="2020-01-01")
        raise ValueError("x")
    with RunDirectory(tmp_path, CONFIG, 0):
        manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["reason"]) == ("running", None)
    assert (manifest["started"], manifest["best_step"]) == ("2020-01-01", 3)
    assert len(manifest["resumed"]) == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_first_error_is_the_one_reported_when_the_disk_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    with pytest.raises(kind, match="loss is blue"), RunDirectory(tmp_path, CONFIG, 0):
        monkeypatch.setattr(runs.os, "replace", no_space)
        raise kind("loss is blue")


@pytest.mark.parametrize(
    ("begun", "override"),
    [
        ((), "loss.kl_weight=0.5"),
        ((), "world.seed=4"),
        ((), "training.threads=2"),
        ((_MICRO,), "hardware.processes=2"),
        ((_MICRO,), "training.micro_batch_size=2"),
    ],
)
def test_other_configuration_is_refused_by_key(tmp_path, begun, override) -> None:
    with opened(tmp_path, *begun) as run:
        config = run.manifest["config"]
    for _ in range(2):  # the first refusal does not keep the lock
        named = f"was made with {override.split('=')[0]}="
        refused(RunError, named, opened, tmp_path, *begun, override)
    assert read_manifest(tmp_path)["config"] == config


def test_values_outside_the_run_itself_may_change(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        before = run.manifest
    free = ["training.steps=9", "training.keep_checkpoints=5", "training.trajectories_per_step=1"]
    free += ["evaluation.questions=7", "hardware.processes=2", "training.micro_batch_size=2"]
    with opened(tmp_path, *free) as run:
        assert run.manifest["config_hash"] != before["config_hash"]
    assert before["deviations"] == before["differences"] == []
    assert run.manifest["deviations"] == [
        "training.steps is 9 instead of 3",
        "evaluation.questions is 7 instead of 16",
    ]


def test_other_seed_or_corpus_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.record("corpus", "one")
    refused(RunError, "began with seed 0, now 1", RunDirectory, tmp_path, CONFIG, 1)
    with pytest.raises(RunError, match="began with corpus one, now two"), opened(tmp_path) as run:
        run.record("corpus", "two")
    assert read_manifest(tmp_path)["corpus"] == "one"


def test_path_names_the_overrides_that_make_another_run(tmp_path: Path) -> None:
    """In one order, in characters every file system takes, without those that change nothing."""
    one = Run(CONFIG, 2, tmp_path, ("loss.gate=token", "training.steps=9", "policy.path=a/b")).path
    two = Run(CONFIG, 2, tmp_path, ("policy.path=a/b", "loss.gate = token")).path
    assert one == two == tmp_path / "smoke" / "grpo+loss.gate=token+policy.path=a_b" / "seed2"
    # Many give a name that file systems accept, and that tells them apart.
    many = [f"world.key{index}=123456789" for index in range(30)]
    paths = {Run(CONFIG, 0, Path("r"), (*many, f"loss.llds_weight={w}")).path for w in (1, 2)}
    assert len(paths) == 2
    assert all(len(part.encode()) < 255 for path in paths for part in path.parts)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        refused(DataError, "not a run directory", read_manifest, tmp_path / name)


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.append_metrics({"step": 1}),
        lambda run: run.append_trajectories([{"step": 1}]),
        lambda run: run.update(best_step=1),
    ],
)
def test_full_disk_is_a_run_error_that_says_what_to_do(run, monkeypatch, write) -> None:
    with monkeypatch.context() as patch, pytest.raises(RunError, match="free space") as error:
        patch.setattr(Path, "open", no_space)
        write(run)
    assert "No space left" in one_line(error)
    (run.path / "file").write_text("x", "utf-8")
    refused(RunError, "cannot write to", opened, run.path / "file" / "deep")


def test_a_collapsed_run_is_complete_only_for_who_stops_there(tmp_path: Path) -> None:
    stopping = load_experiment("smoke/grpo", ["diagnostics.stop_after_collapse=true"])
    run = Run(stopping, 0, tmp_path)
    with RunDirectory(run.path, stopping, 0, command="again") as directory:
        directory.append_metrics({"step": 1, "reward": 0.0})
        directory.collapsed = True
    assert run.manifest()["status"] == "collapsed"
    assert run.is_complete() and not Run(CONFIG, 0, tmp_path).is_complete()
    manifest = run.manifest()
    assert same_run(manifest, stopping, 1) and not same_run(manifest, CONFIG, 1)
    assert same_run(manifest, CONFIG, CONFIG.training.steps)
    other = load_experiment("smoke/grpo", ["loss.clip_low=0.1"])
    assert not same_run(manifest, other, CONFIG.training.steps)


def test_a_setting_younger_than_a_run_had_its_default(tmp_path: Path) -> None:
    """New settings come with a default that does what was done before them."""
    with RunDirectory(tmp_path / "run", CONFIG, 0):
        pass
    manifest = read_manifest(tmp_path / "run")
    manifest["status"] = "complete"
    del manifest["config"]["dense"], manifest["config"]["rollout"]["top_p"]
    assert same_run(manifest, CONFIG, CONFIG.training.steps)
    other = load_experiment(CONFIG.name, ["rollout.top_p=0.5"])
    assert not same_run(manifest, other, CONFIG.training.steps)


@pytest.mark.parametrize(
    ("profile", "digits"),
    [("smoke", "5e8fad22a20f"), ("desk", "11c876754561"), ("smol", "34629f895c29")],
)
def test_start_policies_keep_their_folders(profile: str, digits: str) -> None:
    """A younger key of the configuration leaves them where they are."""
    assert Run.load(f"{profile}/grpo").warmstart_path.name == f"warmstart-{digits}"


def test_a_folder_deleted_during_the_run_is_refused_and_not_made_again(tmp_path: Path) -> None:
    row = {"step": 1}
    for write in (str, RunDirectory.update, lambda run: run.append_metrics(row)):
        run = opened(tmp_path / "run")
        with pytest.raises(RunError, match=str(run.path)) as error, run:
            shutil.rmtree(run.path)
            write(run)
        one_line(error)
        assert not run.path.exists()
