"""Scores of predictions: per benchmark and averaged, with 95 % bootstrap intervals.

What is resampled are questions: the samples of one question are averaged first. An average over
benchmarks is the unweighted mean of theirs, in every resample too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llds_core.errors import DataError
from llds_core.evaluation.predictions import Key, key_of
from llds_core.evaluation.suites import averages, benchmark_names
from llds_core.rollout.rewards import exact_match, f1_score, sub_exact_match
from llds_core.seeding import numpy_generator

METRICS = ("em", "f1", "sub_em", "em_tagged", "valid_answers", "searches")
WITH_INTERVAL = METRICS[:3]
_RESAMPLES = 2000
_CHUNK = 2**22  # numbers drawn at a time


def score_answer(prediction: str | None, golden_answers: Sequence[str]) -> dict[str, float]:
    """Exact match, token F1 and containment of one answer; no answer scores 0."""
    if prediction is None:
        return dict.fromkeys(WITH_INTERVAL, 0.0)
    return {
        "em": exact_match(prediction, golden_answers),
        "f1": f1_score(prediction, golden_answers),
        "sub_em": sub_exact_match(prediction, golden_answers),
    }


def summarise_predictions(
    rows: Sequence[Mapping[str, Any]], expected: Sequence[Key], world: str
) -> dict[str, Any]:
    """Scores by mode: `benchmarks` by name and `averages` by name, None where a set is missing.

    Args:
        rows: lines of predictions.
        expected: what was asked.
        world: name of the world, which says what is averaged.

    Returns:
        Of a benchmark `n` questions, the `METRICS` and of some `<metric>_low` and `_high`, and
        `seconds`.

    Raises:
        DataError: when a question has no line, or a line no question.
    """
    found = {key_of(row) for row in rows}
    if found != set(expected) or len(rows) != len(expected):
        raise DataError(
            f"{len(found & set(expected))} of {len(expected)} answers are there: evaluate the rest "
            "with the same command"
        )
    by_mode: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_mode[row["mode"]][row["benchmark"]].append(row)
    return {mode: _summary(groups, world) for mode, groups in by_mode.items()}


def resampled_means(values: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Means (R, M) of R bootstrap resamples of `values` (n, M)."""
    size = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, _RESAMPLES, size):
        rows = min(size, _RESAMPLES - start)
        chosen = stream.integers(len(values), size=(rows, len(values)))
        parts.append(np.stack([column[chosen].mean(1) for column in values.T], axis=1))
    return np.concatenate(parts)


def _summary(groups: Mapping[str, Sequence[Mapping[str, Any]]], world: str) -> dict[str, Any]:
    benchmarks, means, resamples = {}, {}, {}
    for name in benchmark_names(world):
        if name not in groups:
            continue
        values = _by_question(groups[name])
        means[name] = values.mean(0)
        columns = values[:, : len(WITH_INTERVAL)]
        resamples[name] = resampled_means(columns, numpy_generator(0, "bootstrap", name))
        seconds = sum(row["seconds"] for row in groups[name])
        benchmarks[name] = {"n": len(values)} | _entry(means[name], resamples[name])
        benchmarks[name]["seconds"] = round(seconds, 2)
    mean_of = averages(world, means)
    resampled = averages(world, resamples)
    return {
        "benchmarks": benchmarks,
        "averages": {
            name: None if mean is None else _entry(mean, resampled[name])
            for name, mean in mean_of.items()
        },
    }


def _by_question(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Values (n, M) of `METRICS`, the mean over the samples of each question."""
    samples: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        tagged = row["status"] == "answer"
        derived = {"em_tagged": row["em"] * tagged, "valid_answers": float(tagged)}
        samples[row["id"]].append([float((row | derived)[name]) for name in METRICS])
    return np.array([np.mean(values, axis=0) for values in samples.values()])


def _entry(means: np.ndarray, resamples: np.ndarray) -> dict[str, float]:
    entry: dict[str, float] = {}
    low, high = np.percentile(resamples, [2.5, 97.5], axis=0)
    for column, name in enumerate(METRICS):
        entry[name] = float(means[column])
        if name in WITH_INTERVAL:
            entry |= {f"{name}_low": float(low[column]), f"{name}_high": float(high[column])}
    return entry
