"""The atlas world: real places as short passages, with one-hop and two-hop questions about them.

One passage per city and per country, of one or two sentences, so that a policy of a million
parameters can read several. Splits are by name: no city or country that dev or test questions ask
about is the subject of a training question. A country is still the answer to, or a stop on the way
of, questions in every split: there are too few to keep apart.

A name that several places of the whole atlas share is asked for with the population that tells
them apart; where even that is equal, every true answer is accepted. Passages, questions and splits
of an entity depend on the seed and the entity alone, not on how many cities the world has.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llds_core.seeding import child_seed
from llds_core.worlds.atlas_facts import (
    TABLES,
    City,
    Country,
    load_cities,
    load_countries,
    load_titles,
)
from llds_core.worlds.atlas_questions import KINDS, city_questions, country_questions
from llds_core.worlds.records import Passage, Question
from llds_core.worlds.text import fold

_TEXTS: dict[str, list[str]] = TABLES["passages"]


@dataclass(frozen=True)
class World:
    """A closed world of facts: everything that search can find, read lazily where there are
    millions, and the questions to learn from, to choose settings with and to report.

    `answers_by_kind` has the usual answers per `kind` of question, sorted; of all countries there
    are, so that the smallest world too has a plausible wrong answer.
    """

    name: str
    passages: Sequence[Passage]
    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    test: tuple[Question, ...]
    answers_by_kind: dict[str, tuple[str, ...]]


def build_atlas(
    *,
    cities: int | None = 1200,
    seed: int = 0,
    dev_fraction: float = 0.1,
    test_fraction: float = 0.1,
    countries: Literal["all", "cities"] = "all",
) -> World:
    """Build the atlas world of the most populous `cities`, None for all of them (about 34,000), and
    of every country or those of these cities only. The fractions in [0, 1] are the expected shares
    of names in a split; `seed` is the root of splits and wordings.
    """
    every_country, chosen = load_countries().values(), load_cities()[:cities]
    inhabited = {city.country.iso for city in chosen}
    nations = [one for one in every_country if countries == "all" or one.iso in inhabited]
    passages = [_city_passage(city, seed) for city in chosen]
    passages += [_country_passage(country, seed) for country in nations]

    namesakes: dict[str, list[City]] = defaultdict(list)
    for city in load_cities():
        namesakes[city.folded].append(city)
    country_names = {fold(country.name) for country in every_country}
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for city in chosen:
        group = namesakes[city.folded]
        splits[_split(city.folded, seed, dev_fraction, test_fraction)] += city_questions(
            city,
            [other for other in group if other.population == city.population],
            repeated=len(group) > 1 or city.folded in country_names,
            seed=seed,
        )
    for country in nations:
        split = _split(fold(country.name), seed, dev_fraction, test_fraction)
        splits[split] += country_questions(country, seed=seed)
    answers_by_kind = {}
    for kind in KINDS:
        known = [country.facts[kind.partition("-")[2]] for country in every_country]
        answers_by_kind[kind] = tuple(sorted({names[0] for names in known if names}))
    train, dev, test = map(tuple, splits.values())
    return World("atlas", tuple(passages), train, dev, test, answers_by_kind)


def _split(name: str, seed: int, dev_fraction: float, test_fraction: float) -> str:
    """Return the split of a folded name; all places of one name share it."""
    share = child_seed(seed, "atlas", "split", name) / 2**63
    if share < test_fraction:
        return "test"
    return "dev" if share < test_fraction + dev_fraction else "train"


def _city_passage(city: City, seed: int) -> Passage:
    variant = child_seed(seed, "atlas", "passage", "city", city.id)
    wording = _draw(variant, _TEXTS["city"], _TEXTS["people"])
    nation = city.country.in_prose
    place = f"{city.state}, {nation}" if city.state else nation
    text = wording.format(name=city.name, place=place, people=city.people)
    return Passage(f"city-{city.id}", load_titles()[f"city-{city.id}"], text)


def _country_passage(country: Country, seed: int) -> Passage:
    variant = child_seed(seed, "atlas", "passage", "country", country.iso)
    usual = {topic: names[0] for topic, names in country.facts.items() if names}
    known = " and ".join(topic for topic in ("capital", "currency") if topic in usual)
    wording = _draw(variant, _TEXTS["country"], _TEXTS[known] if known else [""])
    text = wording.format(name=country.in_prose, **usual)
    return Passage(f"country-{country.iso}", country.name, text[0].upper() + text[1:])


def _draw(variant: int, first: Sequence[str], second: Sequence[str]) -> str:
    """Two sentences, each in one of its wordings."""
    return first[variant % len(first)] + second[variant // len(first) % len(second)]
