"""Shared fixtures: smoke runs made once for all workers, and the order and skips of tests."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

if TYPE_CHECKING:
    from llds_core.runs import RunDirectory

# Before torch is imported anywhere: no test reaches a model hub. A configuration that sets threads
# gets them; what does not would take those of the other worker, too.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

# The same examples in every run; `make test ARGS=--hypothesis-profile=default` draws new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

SMOKE_METHODS = ("grpo", "llds-action")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made_once(name, make)`: a folder filled once for all workers; a change needs a copy."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, finished = shared / f"made-{name}", shared / f"made-{name}.finished"
        with FileLock(shared / f"made-{name}.lock"):
            if not finished.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a worker that failed or was killed
                path.mkdir()
                make(path)
                finished.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def smoke_runs(made_once: Callable[..., Path]) -> Path:
    """Run root of a complete smoke warm start and both smoke runs, seed 0."""
    from llds_core.runs import Run
    from llds_core.training.experiment import train

    def make(root: Path) -> None:
        for method in SMOKE_METHODS:
            train(Run.load(f"smoke/{method}", 0, root))

    return made_once("smoke-runs", make)


@pytest.fixture
def run(tmp_path: Path) -> Iterator["RunDirectory"]:
    """An empty run directory, open for writing."""
    from run_helpers import CONFIG

    from llds_core.runs import RunDirectory

    with RunDirectory(tmp_path / "run", CONFIG, 0, command="again") as opened:
        yield opened


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, for which trainers ask."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of slow tests first, or a worker would end with one alone; skip GPU tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    skipped = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skipped)
