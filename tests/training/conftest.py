"""Every training test runs on one thread: threads change bits."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fresh_root(smoke_runs: Path) -> Callable[[Path], Path]:
    """Makes a run root with the warm start and nothing else."""

    def make(folder: Path) -> Path:
        (folder / "smoke").mkdir(parents=True)
        for path in (smoke_runs / "smoke").glob("warmstart-*"):
            shutil.copytree(path, folder / "smoke" / path.name)
        return folder

    return make


@pytest.fixture
def root(fresh_root: Callable[[Path], Path], tmp_path: Path) -> Path:
    return fresh_root(tmp_path / "runs")
