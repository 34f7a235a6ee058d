import pytest

from llds_core.rollout.rewards import exact_match
from llds_core.worlds import atlas_tables as tables
from llds_core.worlds.atlas_facts import load_cities, load_countries


@pytest.mark.parametrize(
    ("iso", "fact", "answers"),
    [
        ("US", "names", ["United States", "USA", "the United States of America", "US"]),
        ("GB", "names", ["United Kingdom", "UK", "Britain"]),
        ("NL", "names", ["Netherlands", "The Netherlands"]),
        ("ST", "capitals", ["Sao Tome", "São Tomé"]),
        ("BR", "capitals", ["Brasilia", "Brasília"]),
        ("US", "capitals", ["Washington", "Washington, D.C.", "Washington DC"]),
        ("CW", "capitals", ["Willemstad"]),
        ("KZ", "capitals", ["Astana"]),
        ("US", "currencies", ["Dollar", "US dollar", "USD"]),
        ("AU", "currencies", ["Dollar", "Australian Dollar"]),
        ("CN", "currencies", ["Yuan Renminbi", "Renminbi", "Yuan"]),
        ("FR", "continents", ["Europe"]),
        ("PA", "continents", ["North America"]),
    ],
)
def test_true_answers_are_accepted(iso: str, fact: str, answers: list[str]):
    accepted = getattr(load_countries()[iso], fact)
    assert [answer for answer in answers if not exact_match(answer, accepted)] == []


def test_false_answers_are_not():
    countries = load_countries()
    assert not exact_match("US dollar", countries["AU"].currencies)
    assert not exact_match("North Korea", countries["KR"].names)


def test_dissolved_and_uninhabited_countries_are_left_out():
    assert load_countries().keys().isdisjoint({"AN", "CS", "AQ", "BV", "HM", "UM"})


def test_every_city_has_a_country_and_people():
    countries = load_countries()
    cities = load_cities()
    assert all(city.iso in countries and city.population for city in cities)
    populations = [city.population for city in cities]
    assert populations == sorted(populations, reverse=True)


@pytest.mark.parametrize(
    ("iso", "prose"),
    [
        ("US", "the United States"),
        ("CD", "the Democratic Republic of the Congo"),
        ("NL", "the Netherlands"),
        ("PH", "the Philippines"),
        ("SB", "the Solomon Islands"),
        ("ML", "Mali"),
        ("IE", "Ireland"),
    ],
)
def test_names_read_well_inside_a_sentence(iso: str, prose: str):
    assert load_countries()[iso].in_prose == prose


def test_tables_hold_no_entry_that_nothing_reads():
    countries = load_countries()
    for table in (tables.COUNTRY_NAMES, tables.COUNTRY_ALIASES):
        assert table.keys() <= countries.keys()
    assert all(countries[iso].capitals for iso in tables.CAPITAL_ALIASES | tables.CAPITALS)
    used = {name for country in countries.values() for name in country.currencies}
    for code in tables.CURRENCIES | tables.CURRENCY_ALIASES | tables.CURRENCY_ADJECTIVES:
        assert code in used
    names = {country.name for country in countries.values()}
    assert set(tables.THE_NAMES) <= names
    assert set(tables.THE_ENDINGS) <= {name.rpartition(" ")[2] for name in names}
