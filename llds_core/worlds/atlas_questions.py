"""Questions of the atlas world: wordings, accepted answers, and the searches that lead to them.

Each fact is asked once, in one of the wordings of `atlas.yaml`. No question holds its answer, nor,
with two hops, the country on the way: such facts (the country of Mexico City, the continent of
South Africa) are left out in every wording. "Holds" includes the inside of words, "Oman" in
"Romano": a few facts lost buy a rule that needs no interpretation. A mere alias inside a word, "UK"
in "Sukabumi", costs the alias and not the question.
"""

from collections.abc import Sequence
from itertools import chain

from llds_core.seeding import child_seed
from llds_core.worlds.atlas_facts import TABLES, City, Country, load_titles
from llds_core.worlds.records import Question
from llds_core.worlds.text import fold, words

_WORDINGS: dict[str, list[str]] = TABLES["wordings"]
KINDS = tuple(_WORDINGS)


def city_questions(
    city: City, alike: Sequence[City], *, repeated: bool, seed: int
) -> list[Question]:
    """Return the one-hop and two-hop questions about `city`.

    Args:
        city: the subject.
        alike: every city that the wording fits, `city` among them; the answers of all count.
        repeated: whether the name needs the population beside it.
        seed: root seed of the wordings.
    """
    subject = f"{city.name} (about {city.people} people)" if repeated else city.name
    query = f"{city.name} {city.people}" if repeated else city.name
    country = city.country
    questions = []
    for kind in KINDS[:4]:
        topic = kind.partition("-")[2]
        if own := country.facts[topic]:
            others = chain.from_iterable(other.country.facts[topic] for other in alike)
            golden = tuple(dict.fromkeys((*own, *others)))
            steps = [_step(query, f"city-{city.id}", country.name)]
            if topic != "country":
                steps.append(_step(country.name, f"country-{country.iso}", own[0]))
            questions += _question(kind, city.id, subject, golden, steps, seed, through=country)
    return questions


def country_questions(country: Country, *, seed: int) -> list[Question]:
    """Return the one-hop questions about `country`."""
    questions = []
    for kind in KINDS[4:]:
        if golden := country.facts[kind.partition("-")[2]]:
            steps = [_step(country.name, f"country-{country.iso}", golden[0])]
            questions += _question(kind, country.iso, country.in_prose, golden, steps, seed)
    return questions


def _step(query: str, passage: str, answer: str) -> dict[str, str]:
    titles = load_titles()
    return {"query": query, "title": titles[passage], "passage_id": passage, "answer": answer}


def _question(
    kind: str,
    entity: str,
    subject: str,
    golden: tuple[str, ...],
    steps: list[dict[str, str]],
    seed: int,
    through: Country | None = None,
) -> list[Question]:
    """Return the question in the first wording that gives nothing away, from a drawn one on."""
    wordings = _WORDINGS[kind]
    first = child_seed(seed, "atlas", "wording", kind, entity) % len(wordings)
    for wording in wordings[first:] + wordings[:first]:
        text = wording.format(subject=subject)
        accepted = _kept(golden, text)
        if accepted and (through is None or _kept(through.facts["country"], text)):
            metadata = {"kind": kind, "hops": len(steps), "entity": entity, "steps": steps}
            return [Question(f"atlas-{kind}-{entity}", text, accepted, metadata)]
    return []


def _kept(names: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Return `names` without those inside words of `text`; none at all if `text` tells one."""
    padded = f" {' '.join(words(text))} "
    folded = [fold(name) for name in names]
    if folded[0] in padded or any(f" {name} " in padded for name in folded):
        return ()
    return tuple(name for name, form in zip(names, folded, strict=True) if form not in padded)
