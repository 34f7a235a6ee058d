"""The atlas world: real places as short passages, with one-hop and two-hop questions about them.

One passage per city and per country, of one or two sentences, so that a policy of a million
parameters can read several. Splits are by name: no city or country that dev or test questions ask
about is the subject of a training question. A country is still the answer to, or a stop on the way
of, questions in every split: there are too few to keep apart.

A name that several places of the whole atlas share is asked for with the population that tells
them apart; where even that is equal, every true answer is accepted. Passages, questions and splits
of an entity depend on the seed and the entity alone, not on how many cities the world has.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from llds_core.seeding import child_seed
from llds_core.worlds.atlas_facts import TABLES, City, Country, load_cities, load_countries
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
    every_country, every_city = load_countries(), load_cities()
    titles = _titles(every_city, every_country)
    chosen = every_city[:cities]
    inhabited = {city.iso for city in chosen}
    nations = [c for iso, c in every_country.items() if countries == "all" or iso in inhabited]

    passages = [_city_passage(city, every_country[city.iso], titles, seed) for city in chosen]
    passages += [_country_passage(country, titles, seed) for country in nations]

    namesakes: dict[str, list[City]] = defaultdict(list)
    for city in every_city:
        namesakes[city.folded].append(city)
    country_names = {fold(country.name) for country in every_country.values()}
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for city in chosen:
        group = namesakes[city.folded]
        splits[_split(city.folded, seed, dev_fraction, test_fraction)] += city_questions(
            city,
            [other for other in group if other.population == city.population],
            every_country,
            titles,
            repeated=len(group) > 1 or city.folded in country_names,
            seed=seed,
        )
    for country in nations:
        split = _split(fold(country.name), seed, dev_fraction, test_fraction)
        splits[split] += country_questions(country, titles, seed=seed)
    answers_by_kind = {}
    for kind in KINDS:
        found = (country.facts[kind.partition("-")[2]][:1] for country in every_country.values())
        answers_by_kind[kind] = tuple(sorted(set(chain.from_iterable(found))))
    train, dev, test = map(tuple, splits.values())
    return World("atlas", tuple(passages), train, dev, test, answers_by_kind)


def _split(name: str, seed: int, dev_fraction: float, test_fraction: float) -> str:
    """Return the split of a folded name; all places of one name share it."""
    share = child_seed(seed, "atlas", "split", name) / 2**63
    if share < test_fraction:
        return "test"
    return "dev" if share < test_fraction + dev_fraction else "train"


def _titles(cities: Sequence[City], countries: Mapping[str, Country]) -> dict[str, str]:
    """Return a title by passage id: the name, and for repeated names what tells them apart.

    Country names come first and bare, as in an encyclopaedia. Cities are told apart by state or
    population and not by country: titles weigh more than text, so that a search for India would
    find cities called "..., India" before India itself.
    """
    titles = {f"country-{country.iso}": country.name for country in countries.values()}
    taken = {fold(name) for name in titles.values()}
    candidates = {}
    for city in cities:
        if city.state:
            longer = (f", {city.state}", f", {city.state} ({city.people} people)")
        else:
            longer = (f" ({city.people} people)", f" ({city.people} people, region {city.region})")
        candidates[city.id] = (city.name, city.name + longer[0], city.name + longer[1])
    untitled = list(candidates)
    for level in range(3):
        folded = {id_: fold(candidates[id_][level]) for id_ in untitled}
        counts = Counter(folded.values())
        for id_, title in folded.items():
            if counts[title] == 1 and title not in taken:
                titles[f"city-{id_}"] = candidates[id_][level]
        taken |= counts.keys()
        untitled = [id_ for id_ in untitled if f"city-{id_}" not in titles]
    return titles


def _city_passage(city: City, country: Country, titles: Mapping[str, str], seed: int) -> Passage:
    variant = child_seed(seed, "atlas", "passage", "city", city.id)
    wording = _draw(variant, _TEXTS["city"], _TEXTS["people"])
    place = f"{city.state}, {country.in_prose}" if city.state else country.in_prose
    text = wording.format(name=city.name, place=place, people=city.people)
    return Passage(f"city-{city.id}", titles[f"city-{city.id}"], text)


def _country_passage(country: Country, titles: Mapping[str, str], seed: int) -> Passage:
    variant = child_seed(seed, "atlas", "passage", "country", country.iso)
    usual = {topic: names[0] for topic, names in country.facts.items() if names}
    known = " and ".join(topic for topic in ("capital", "currency") if topic in usual)
    wording = _draw(variant, _TEXTS["country"], _TEXTS[known] if known else [""])
    text = wording.format(name=country.in_prose, **usual)
    id_ = f"country-{country.iso}"
    return Passage(id_, titles[id_], text[0].upper() + text[1:])


def _draw(variant: int, first: Sequence[str], second: Sequence[str]) -> str:
    """Two sentences, each in one of its wordings."""
    return first[variant % len(first)] + second[variant // len(first) % len(second)]
