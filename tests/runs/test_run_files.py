"""Metrics and trajectories of a run: reading, tearing, truncating."""

import gzip
from pathlib import Path

import pytest
from run_helpers import refused

from llds_core.errors import DataError
from llds_core.runs import RunDirectory, read_metrics, read_trajectories
from llds_core.runs import directory as runs

LINES = b'{"step": 1, "a": "\xc3\xa9"}\n{"step": 2, "a": "\xc3\xa9"}\n'
ROWS = [f'{{"step": {step}, "text": "{"x" * 40}"}}\n' for step in (1, 2)]
MEMBERS = [gzip.compress(row.encode(), mtime=0) for row in ROWS]


def test_metrics_are_on_disk_when_the_call_returns(run, monkeypatch) -> None:
    assert read_metrics(run.path) == []
    synced: list[int] = []
    monkeypatch.setattr(runs.os, "fsync", synced.append)
    run.append_metrics({"step": 1, "a": "é"})
    run.append_metrics({"step": 2, "a": "é"})
    assert (run.path / "metrics.jsonl").read_bytes() == LINES
    assert len(synced) == 2


def test_non_finite_numbers_are_stored_as_null(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "a": float("nan"), "b": [float("inf"), {"c": -float("inf")}]})
    assert read_metrics(run.path) == [{"step": 1, "a": None, "b": [None, {"c": None}]}]
    run.update(best_score=float("nan"))
    assert "NaN" not in (run.path / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize("cut", range(len(LINES) + 1))
def test_metrics_torn_anywhere_read_up_to_the_tear(tmp_path: Path, cut: int) -> None:
    """Rows whose closing brace was written are read, the torn one is not."""
    (tmp_path / "metrics.jsonl").write_bytes(LINES[:cut])
    whole = LINES[:cut].count(b"}")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2][:whole]


@pytest.mark.parametrize(
    "bad", ["{", "[1]", "3", '{"loss": 1}', '{"step": "1"}', "\x00", '{"step": 1}{"step": 2}']
)
@pytest.mark.parametrize("after", ['{"step": 3}\n', ""])
def test_damaged_line_is_named_with_its_number(tmp_path: Path, bad: str, after: str) -> None:
    """The last one too: a kill tears a line before its newline."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{bad}\n{after}', "utf-8")
    refused(DataError, r"metrics\.jsonl:2 is not a metrics row", read_metrics, tmp_path)


def test_trajectories_are_read_back_over_several_appends(run: RunDirectory) -> None:
    assert read_trajectories(run.path) == []
    run.append_trajectories([{"step": 1, "text": "</answer>\n"}, {"step": 1}])
    run.append_trajectories([{"step": 2, "reward": float("nan")}])
    assert read_trajectories(run.path) == [
        {"step": 1, "text": "</answer>\n"},
        {"step": 1},
        {"step": 2, "reward": None},
    ]


@pytest.mark.parametrize("kept", range(len(MEMBERS[1])))
def test_trajectories_torn_anywhere_read_up_to_the_tear(tmp_path: Path, kept: int) -> None:
    """The first member is whole and always read; the second when only its end is lost."""
    (tmp_path / "rollouts.jsonl.gz").write_bytes(MEMBERS[0] + MEMBERS[1][:kept])
    steps = [row["step"] for row in read_trajectories(tmp_path)]
    assert steps in ([1], [1, 2]) and (kept > 20 or steps == [1])


@pytest.mark.parametrize(
    "content", [b"plain text", MEMBERS[0][:10] + b"\xff" + MEMBERS[0][11:] + MEMBERS[1]]
)
def test_trajectories_damaged_elsewhere_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rollouts.jsonl.gz").write_bytes(content)
    refused(DataError, r"rollouts\.jsonl\.gz is damaged", read_trajectories, tmp_path)


@pytest.fixture
def filled(run: RunDirectory) -> RunDirectory:
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
        run.append_trajectories([{"step": step, "i": i} for i in range(2)])
    return run


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_truncation_keeps_rows_up_to_the_step(filled: RunDirectory, step: int) -> None:
    filled.truncate(step)
    left = [s for s in (1, 2, 3) if s <= step]
    assert [row["step"] for row in read_metrics(filled.path)] == left
    found = [row["step"] for row in read_trajectories(filled.path)]
    assert found == [s for s in left for _ in (0, 1)]


def test_rows_appended_after_truncating_a_torn_file_are_whole(filled: RunDirectory) -> None:
    """What a killed process left half written is gone before anything is appended to it."""
    for name in ("metrics.jsonl", "rollouts.jsonl.gz"):
        content = (filled.path / name).read_bytes()
        (filled.path / name).write_bytes(content[:-4])
    filled.truncate(2)
    filled.append_metrics({"step": 3, "again": True})
    filled.append_trajectories([{"step": 3, "again": True}])
    assert read_metrics(filled.path)[-1] == {"step": 3, "again": True}
    assert [row["step"] for row in read_trajectories(filled.path)] == [1, 1, 2, 2, 3]
