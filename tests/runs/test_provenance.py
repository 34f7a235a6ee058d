"""Where a run's code came from: the commit, and whether the tree differs from it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from llds_core.runs.provenance import git_diff, git_state


def test_no_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None, "git_diff_sha256": None}
    assert git_diff(tmp_path) == ""
    monkeypatch.setenv("PATH", str(tmp_path))  # nor on a machine that has none
    assert git_state()["git_commit"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_tree_is_dirty_when_tracked_code_differs(tmp_path: Path) -> None:
    """Not by untracked files and published results; another encoding stops nothing."""
    (tmp_path / "results").mkdir()
    for name in ("plain.txt", "README.md", "results/runs.csv"):
        (tmp_path / name).write_text("coffee\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    for name in ("other.txt", "README.md", "results/runs.csv"):
        (tmp_path / name).write_text("after\n", "utf-8")
    state = git_state(tmp_path)
    assert len(state["git_commit"]) == 40
    assert (state["git_dirty"], state["git_diff_sha256"]) == (False, None)
    (tmp_path / "plain.txt").write_text("tea\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"th\xe9\n")
    state = git_state(tmp_path)
    assert state["git_dirty"] is True and len(state["git_diff_sha256"]) == 64
    assert "+tea" in git_diff(tmp_path)
