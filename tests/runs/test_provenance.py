"""Where a run's code came from: the commit, and whether the tree differs from it."""

import subprocess
from pathlib import Path

import pytest

from llds_core.runs.provenance import git_diff, git_state


def test_source_tree_without_git_has_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None, "git_diff_sha256": None}
    assert git_diff(tmp_path) == ""


def test_machine_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state()["git_commit"] is None


def commit(folder: Path) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "one"], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository of its own: one committed file in ASCII, one in Latin-1."""
    (tmp_path / "plain.txt").write_text("coffee\n", "utf-8")
    (tmp_path / "file.txt").write_bytes(b"caf\xe9\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    return tmp_path


def test_clean_tree_has_a_commit_and_no_difference(repository: Path) -> None:
    state = git_state(repository)
    assert len(state["git_commit"]) == 40
    assert (state["git_dirty"], state["git_diff_sha256"]) == (False, None)


def test_changed_tree_is_dirty_and_its_difference_is_known(repository: Path) -> None:
    (repository / "plain.txt").write_text("tea\n", "utf-8")
    state = git_state(repository)
    assert state["git_dirty"] is True and len(state["git_diff_sha256"]) == 64
    assert "+tea" in git_diff(repository)


def test_untracked_file_is_no_difference(repository: Path) -> None:
    (repository / "other.txt").write_text("x", "utf-8")
    assert git_state(repository)["git_dirty"] is False


def test_published_results_are_no_change_of_code(repository: Path) -> None:
    (repository / "results").mkdir()
    for name in ("README.md", "results/runs.csv"):
        (repository / name).write_text("before\n", "utf-8")
    commit(repository)
    for name in ("README.md", "results/runs.csv"):
        (repository / name).write_text("after\n", "utf-8")
    assert git_state(repository)["git_dirty"] is False
    (repository / "plain.txt").write_text("tea\n", "utf-8")
    assert "+tea" in git_diff(repository) and "after" not in git_diff(repository)


def test_difference_in_another_encoding_stops_nothing(repository: Path) -> None:
    (repository / "file.txt").write_bytes(b"th\xe9\n")
    assert git_state(repository)["git_dirty"] is True
