import pytest

from llds_core.rollout.rewards import exact_match
from llds_core.worlds.atlas_facts import TABLES, load_cities, load_countries
from llds_core.worlds.text import fold, strip_accents, words


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


def test_countries_are_inhabited_and_every_city_has_one():
    countries, cities = load_countries(), load_cities()
    assert countries.keys().isdisjoint({"AN", "CS", "AQ", "BV", "HM", "UM"})
    assert all(city.iso in countries and city.population for city in cities)
    populations = [city.population for city in cities]
    assert populations == sorted(populations, reverse=True)


def test_names_read_well_inside_a_sentence():
    prose = [load_countries()[iso].in_prose for iso in ("US", "CD", "NL", "PH", "SB", "ML", "IE")]
    assert prose == [
        "the United States",
        "the Democratic Republic of the Congo",
        "the Netherlands",
        "the Philippines",
        "the Solomon Islands",
        "Mali",
        "Ireland",
    ]


def test_tables_hold_no_entry_that_nothing_reads():
    countries = load_countries()
    assert (TABLES["country_names"] | TABLES["country_aliases"]).keys() <= countries.keys()
    capitals = TABLES["capital_aliases"] | TABLES["capitals"]
    assert all(countries[iso].capitals for iso in capitals)
    used = {name for country in countries.values() for name in country.currencies}
    for table in ("currencies", "currency_aliases", "currency_adjectives"):
        assert TABLES[table].keys() <= used
    names = {country.name for country in countries.values()}
    assert set(TABLES["article_names"]) <= names
    assert set(TABLES["article_endings"]) <= {name.rpartition(" ")[2] for name in names}


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("São Tomé", "sao tome"),
        ("İzmir", "izmir"),
        ("Łódź", "lodz"),
        ("Tórshavn, Føroyar", "torshavn foroyar"),
        ("Weißwasser", "weisswasser"),
        ("N'Djamena", "ndjamena"),
        ("Nuku‘alofa", "nukualofa"),
        ("Guinea-Bissau", "guinea bissau"),
        ("1,230,000 people", "1230000 people"),
        ("Ürümqi (China)", "urumqi china"),
        ("a, b", "a b"),
        ("?! …", ""),
    ],
)
def test_fold_gives_one_spelling(text: str, folded: str):
    assert fold(text) == folded == fold(folded)


def test_other_scripts_and_the_case_are_kept():
    assert words("Αθήνα 北京") == ["αθηνα", "北京"]
    assert strip_accents("Bogotá D.C., Ørsta") == "Bogota D.C., Orsta"
