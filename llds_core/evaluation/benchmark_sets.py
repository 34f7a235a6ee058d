"""Which questions are asked, and which averages are taken: the benchmarks of a world.

In the world of files these are the seven sets of the papers, in the atlas its kinds of question; a
question names its own as `kind`. An average is the unweighted mean of its sets, whatever their
sizes, as the papers take it; it exists only where every one of its sets was asked.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from llds_core.errors import ConfigError, did_you_mean
from llds_core.seeding import numpy_generator
from llds_core.worlds import QUESTION_SETS, Question, World
from llds_core.worlds.atlas import KINDS
from llds_core.worlds.question_sets import GENERAL, MULTI_HOP

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
