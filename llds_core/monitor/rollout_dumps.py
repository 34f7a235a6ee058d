"""Rollouts that verl dumps (`trainer.rollout_data_dir`: one `<step>.jsonl` per step, one object per
response with `input`, `output`, `score`, `step` and numbers of the reward function) as rows of a
log, one per step, under the keys that verl logs.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

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
    found, left = [], 0
    for made in responses:
        try:
            score, text = float(made["score"]), str(made["output"])  # of NumPy's, verl writes text
        except (KeyError, TypeError, ValueError):
            left += 1
            continue
        numbers = {k: x for k, x in made.items() if isinstance(x, (int, float)) and k not in _KEYS}
        row = {"step": made.get("step"), "input": str(made.get("input")), "score": score}
        row["response_length"] = len(text)
        row["tool_call_counts/mean"] = sum(map(text.count, _CALLS))
        found.append(numbers | row)
    notes.append("rollouts: lengths are in characters, searches are closed calls, failed ones too")
    if left:
        notes.append(f"{left} responses without a score or an output are left out")
    if not found:
        return
    table = pd.DataFrame(found)
    scores = table.groupby(["step", "input"], sort=False)["score"].agg(["size", "nunique"])
    several = scores[scores["size"] > 1]
    alike = (several["nunique"] == 1).groupby(level="step").mean()
    lowest = table.groupby("step")["score"].min()
    for step, means in table.groupby("step", sort=False).mean(numeric_only=True).iterrows():
        row = {"step": step, "critic/score/mean": means.pop("score"), **means.dropna()}
        row |= {"critic/score/min": lowest[step]}
        yield row | ({"zero_variance_groups": alike[step]} if step in alike.index else {})
