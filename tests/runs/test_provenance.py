"""Where a run's code came from: the commit, and whether the tree differs from it."""

import subprocess
from pathlib import Path

import pytest

from llds_core.runs.provenance import git_diff, git_state


def test_no_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None, "git_diff_sha256": None}
    assert git_diff(tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))  # nor on a machine that has none
    assert git_state()["git_commit"] is None


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository of its own; one file is Latin-1, two are no code."""
    (tmp_path / "results").mkdir()
    for name in ("plain.txt", "README.md", "results/runs.csv"):
        (tmp_path / name).write_text("coffee\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_untracked_files_and_published_results_are_no_change_of_code(repository: Path) -> None:
    for name in ("other.txt", "README.md", "results/runs.csv"):
        (repository / name).write_text("after\n", "utf-8")
    state = git_state(repository)
    assert len(state["git_commit"]) == 40
    assert (state["git_dirty"], state["git_diff_sha256"]) == (False, None)


def test_changed_tree_is_dirty_and_its_difference_is_known(repository: Path) -> None:
    (repository / "plain.txt").write_text("tea\n", "utf-8")
    (repository / "latin.txt").write_bytes(b"th\xe9\n")  # another encoding stops nothing
    state = git_state(repository)
    assert state["git_dirty"] is True and len(state["git_diff_sha256"]) == 64
    assert "+tea" in git_diff(repository)
