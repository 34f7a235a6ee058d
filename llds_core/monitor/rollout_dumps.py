"""Rollouts that verl dumps (`trainer.rollout_data_dir`: one `<step>.jsonl` per step, one object per
response with `input`, `output`, `score` and `step`) as rows of a log, one per step.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

_KEYS = ("input", "output", "score", "step")
_CALLS = ("</search>", "</tool_call>")  # of Search-R1, and of chat templates


def dump_files(path: Path) -> list[Path]:
    """The files of a dump, by step; none where `path`, a file or a folder, is none."""
    files = [path] if path.is_file() else [f for f in path.glob("*.jsonl") if f.stem.isdecimal()]
    files = sorted((f for f in files if f.suffix == ".jsonl"), key=lambda f: f.stem.zfill(20))
    if not files:
        return []
    with files[0].open(encoding="utf-8", errors="replace") as text:
        first = text.readline()
    return files if all(f'"{key}":' in first for key in _KEYS) else []


def rows_of_dump(responses: Iterable[dict[str, Any]], notes: list[str]) -> Iterator[dict[str, Any]]:
    """Means over the responses of each step, and the share of its groups, answers to one input,
    whose scores are all equal.
    """
    steps: dict[Any, list[tuple[int, float, int, int]]] = {}
    left = 0
    for made in responses:
        try:
            score, text = float(made["score"]), str(made["output"])  # of NumPy's, verl writes text
        except (KeyError, TypeError, ValueError):
            left += 1
            continue
        calls = sum(map(text.count, _CALLS))
        key = hash(str(made.get("input")))
        steps.setdefault(made.get("step"), []).append((key, score, len(text), calls))
    notes.append("rollouts: lengths are in characters, searches are closed calls, failed ones too")
    if left:
        notes.append(f"{left} responses without a score or an output are left out")
    for step, found in steps.items():
        inputs, scores, lengths, searches = zip(*found, strict=True)
        groups: dict[int, list[float]] = {}
        for key, score in zip(inputs, scores, strict=True):
            groups.setdefault(key, []).append(score)
        several = [min(group) == max(group) for group in groups.values() if len(group) > 1]
        row = {"step": step, "reward": fmean(scores), "response_length": fmean(lengths)}
        row |= {"valid_searches": fmean(searches)}
        yield row | ({"zero_variance_groups": fmean(several)} if several else {})
