"""Published results: what git keeps equals the runs, and the README equals what git keeps."""

from pathlib import Path

import pytest

from llds_core.errors import DataError
from llds_core.reporting.published import publish, read_published, update_readme
from llds_core.reporting.store import load_run

ROOT = Path(__file__).parents[2]


def test_readme_numbers_equal_the_published_runs() -> None:
    readme = ROOT / "README.md"
    assert update_readme(readme, ROOT / "results/published") == readme.read_text("utf-8")


def test_published_metrics_equal_the_run(smoke_runs: Path, tmp_path: Path) -> None:
    folder = publish(smoke_runs, "smoke", ["grpo"], [0], "set", published=tmp_path)
    (published,) = read_published(folder)
    original = load_run(smoke_runs / "smoke/grpo/seed0")
    assert published.fingerprint == original.fingerprint
    assert published.metrics["reward"].tolist() == original.metrics["reward"].tolist()


def test_publishing_names_no_path_of_this_machine(smoke_runs: Path, tmp_path: Path) -> None:
    folder = publish(smoke_runs, "smoke", ["grpo"], [0], "set", published=tmp_path)
    for file in folder.rglob("*.json"):
        assert str(smoke_runs) not in file.read_text("utf-8")


def test_missing_run_is_not_published(smoke_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed 7"):
        publish(smoke_runs, "smoke", ["grpo"], [7], "set", published=tmp_path)
    assert list(tmp_path.iterdir()) == []
