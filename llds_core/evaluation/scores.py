"""Scores of predictions, with 95 % bootstrap intervals.

What is resampled are questions: the samples of one question are averaged first. An average over
benchmarks is the unweighted mean of theirs, in every resample too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llds_core.evaluation.benchmark_sets import ALL, AVERAGE_MEMBERS, averages
from llds_core.evaluation.predictions import Row
from llds_core.rollout.rewards import exact_match, f1_score, sub_exact_match
from llds_core.seeding import numpy_generator

METRICS = ("em", "f1", "sub_em", "em_tagged", "valid_answers", "searches")
WITH_INTERVAL = METRICS[:3]
_RESAMPLES = 2000
_CHUNK = 2**22  # numbers drawn at a time


def score_answer(prediction: str | None, golden_answers: Sequence[str]) -> dict[str, float]:
    """Exact match, token F1 and containment of one answer; no answer scores 0."""
    measures = zip(WITH_INTERVAL, (exact_match, f1_score, sub_exact_match), strict=True)
    return {
        name: 0.0 if prediction is None else measure(prediction, golden_answers)
        for name, measure in measures
    }


def too_long(rows: Sequence[Row]) -> int:
    """How many questions had a prompt that left no room for an answer, and none."""
    return len({(row["benchmark"], row["id"]) for row in rows if row["status"] == "too_long"})


def resampled_means(values: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Means (R, M) of R bootstrap resamples of `values` (n, M)."""
    size = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, _RESAMPLES, size):
        rows = min(size, _RESAMPLES - start)
        chosen = stream.integers(len(values), size=(rows, len(values)))
        parts.append(np.stack([column[chosen].mean(1) for column in values.T], axis=1))
    return np.concatenate(parts)


def drawn(rows: Sequence[Row], *stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Means (M,) of `METRICS` over questions, and their resampled means (R, 3) where an interval
    is given; `stream` names what is drawn from.
    """
    samples: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        tagged = row["status"] == "answer"
        derived = {"em_tagged": row["em"] * tagged, "valid_answers": float(tagged)}
        samples[row["id"]].append([float({**row, **derived}[name]) for name in METRICS])
    values = np.array([np.mean(each, axis=0) for each in samples.values()])
    random = numpy_generator(0, "bootstrap", *stream)
    return values.mean(0), resampled_means(values[:, : len(WITH_INTERVAL)], random)


def entry(means: np.ndarray, resamples: np.ndarray) -> dict[str, float]:
    """`METRICS` by name, and of some the 95 % percentile interval as `<metric>_low` and `_high`."""
    result: dict[str, float] = {}
    low, high = np.percentile(resamples, [2.5, 97.5], axis=0)
    for column, name in enumerate(METRICS):
        result[name] = float(means[column])
        if name in WITH_INTERVAL:
            result |= {f"{name}_low": float(low[column]), f"{name}_high": float(high[column])}
    return result


def summarise(rows: Sequence[Row], world: str) -> dict[str, Any]:
    """Scores by mode: of `benchmarks` by name, with their number `n` of questions and `seconds`,
    and of the `averages` of `world` by name, None where a set is missing.
    """
    by_mode: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_mode[row["mode"]][row["benchmark"]].append(row)
    return {mode: _of_mode(groups, world) for mode, groups in by_mode.items()}


def _of_mode(groups: Mapping[str, Sequence[Row]], world: str) -> dict[str, Any]:
    benchmarks, means, resamples = {}, {}, {}
    for name in (name for name in AVERAGE_MEMBERS[world][ALL] if name in groups):
        means[name], resamples[name] = drawn(groups[name], name)
        benchmarks[name] = {
            "n": len({row["id"] for row in groups[name]}),
            **entry(means[name], resamples[name]),
            "seconds": round(sum(row["seconds"] for row in groups[name]), 2),
        }
    resampled = averages(world, resamples)
    return {
        "benchmarks": benchmarks,
        "averages": {
            name: None if mean is None else entry(mean, resampled[name])
            for name, mean in averages(world, means).items()
        },
    }


def score_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table, made of one summary: for each mode the benchmarks, then `average_<name>`
    for each average that exists and `average` over all.
    """
    sets, rows = AVERAGE_MEMBERS[summary["world"]], []
    for mode, scores in summary["modes"].items():
        asked = scores["benchmarks"]
        entries = {name: asked[name] for name in sets[ALL] if name in asked}
        for name, members in sets.items():
            if (mean := scores["averages"][name]) is not None:
                label = "average" if name == ALL else f"average_{name}"
                entries[label] = mean | {"n": sum(asked[member]["n"] for member in members)}
        rows += [
            {"baseline": summary["agent"], "benchmark": name, "mode": mode} | found
            for name, found in entries.items()
        ]
    return rows
