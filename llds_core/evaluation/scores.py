"""Which questions are asked, and the scores of their answers, with 95 % bootstrap intervals.

The benchmarks of the world of files are the seven sets of the papers, those of the atlas its kinds
of question; a question names its own as `kind`. What is resampled are questions: the samples of one
question are averaged first. An average is the unweighted mean of its sets, whatever their sizes, as
the papers take it, in every resample too; it exists only where every one of its sets was asked.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llds_core.config.seeding import numpy_generator
from llds_core.errors import ConfigError, did_you_mean
from llds_core.evaluation.predictions import Row
from llds_core.rollout.rewards import exact_match, f1_score, sub_exact_match
from llds_core.worlds import QUESTION_SETS, Question, World
from llds_core.worlds.atlas import KINDS
from llds_core.worlds.question_sets import GENERAL, MULTI_HOP

METRICS = ("em", "f1", "sub_em", "em_tagged", "valid_answers", "searches")
WITH_INTERVAL = METRICS[:3]
_RESAMPLES = 2000

ALL = "all"
_TWO_HOP = ("city-capital", "city-currency", "city-continent")
AVERAGE_MEMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "atlas": {
        "one_hop": tuple(kind for kind in KINDS if kind not in _TWO_HOP),
        "two_hop": _TWO_HOP,
        ALL: KINDS,
    },
    "files": {"general": GENERAL, "multi_hop": MULTI_HOP, ALL: tuple(QUESTION_SETS)},
}
"""By world the averages and their members, in the order of tables; `all` comes last."""


def averages(world: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Unweighted means over sets, of numbers or arrays; None where a set has no score."""
    return {
        name: sum(scores[member] for member in members) / len(members)
        if all(scores.get(member) is not None for member in members)
        else None
        for name, members in AVERAGE_MEMBERS[world].items()
    }


def choose_questions(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Up to `limit` questions, spread as evenly over the kinds as they allow; deterministic in
    `seed`, and a larger limit begins with the questions of a smaller one.
    """
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.metadata["kind"]].append(question)
    ranked = []
    for kind, group in by_kind.items():
        order = numpy_generator(seed, "evaluation", kind).permutation(len(group))
        ranked += [(rank, kind, group[index]) for rank, index in enumerate(order)]
    ranked.sort(key=lambda entry: entry[:2])
    return [question for _, _, question in ranked[:limit]]


def choose(
    world: World, split: str, names: Sequence[str], limit: int | None, seed: int
) -> list[Question]:
    """Questions of the benchmarks `names` in `dev` or `test`, of all where none is named. A `limit`
    counts them all, is spread evenly, and takes those that `seed` says.
    """
    valid = AVERAGE_MEMBERS[world.name][ALL]
    for name in names:
        if name not in valid:
            raise ConfigError(f'unknown benchmark "{name}": {did_you_mean(name, valid)}')
    wanted = set(names or valid)
    of_split = [q for q in getattr(world, split) if q.metadata["kind"] in wanted]
    chosen = choose_questions(of_split, limit, seed)
    empty = wanted - {question.metadata["kind"] for question in chosen}
    if empty and limit is not None and limit < len(wanted):
        raise ConfigError(
            f"--limit {limit} leaves no question of {min(empty)}: ask at least {len(wanted)}, or "
            "fewer benchmarks"
        )
    if empty and (names or not chosen):
        raise ConfigError(f"the {split} split holds no question of {min(empty)}: leave it out")
    return chosen


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
    draws = (stream.integers(len(values), size=len(values)) for _ in range(_RESAMPLES))
    return np.array([values.T.take(chosen, axis=1).mean(1) for chosen in draws])


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
                entries[label] = {**mean, "n": sum(asked[member]["n"] for member in members)}
        rows += [
            {"baseline": summary["agent"], "benchmark": name, "mode": mode} | found
            for name, found in entries.items()
        ]
    return rows
