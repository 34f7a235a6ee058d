"""Shared fixtures: complete smoke runs, trained once a session, and the reason a GPU test is
skipped.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llds_core.runs import RunDirectory

# Before torch is imported anywhere: no test reaches a model hub, and threads are the
# configuration's business.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

SMOKE_METHODS = ("grpo", "llds-action")


@pytest.fixture(scope="session")
def smoke_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run root with a complete smoke warm start and the runs `smoke/grpo` and `smoke/llds-action`,
    seed 0.
    """
    from llds_core.runs import Run
    from llds_core.training.experiment import train

    root = tmp_path_factory.mktemp("smoke") / "runs"
    for method in SMOKE_METHODS:
        train(Run.load(f"smoke/{method}", 0, root))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Iterator["RunDirectory"]:
    """An empty run directory, open for writing."""
    from run_helpers import CONFIG

    from llds_core.runs import RunDirectory

    with RunDirectory(tmp_path / "run", CONFIG, 0, command="again") as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests with the reason where there is no GPU."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(
                pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
            )
