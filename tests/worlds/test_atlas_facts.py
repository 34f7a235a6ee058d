import pytest

from llds_core.rollout.rewards import exact_match
from llds_core.worlds.atlas import TABLES, load_countries
from llds_core.worlds.text import fold, strip_accents, words

COUNTRIES = load_countries()


@pytest.mark.parametrize(
    ("iso", "fact", "answers"),
    [
        ("US", "country", ["United States", "USA", "the United States of America", "US"]),
        ("GB", "country", ["United Kingdom", "UK", "Britain"]),
        ("NL", "country", ["Netherlands", "The Netherlands"]),
        ("ST", "capital", ["Sao Tome", "São Tomé"]),
        ("US", "capital", ["Washington", "Washington, D.C.", "Washington DC"]),
        ("CW", "capital", ["Willemstad"]),
        ("KZ", "capital", ["Astana"]),
        ("US", "currency", ["Dollar", "US dollar", "USD"]),
        ("AU", "currency", ["Dollar", "Australian Dollar"]),
        ("CN", "currency", ["Yuan Renminbi", "Renminbi", "Yuan"]),
        ("FR", "continent", ["Europe"]),
        ("PA", "continent", ["North America"]),
    ],
)
def test_true_answers_are_accepted_and_others_not(iso: str, fact: str, answers: list[str]):
    accepted = COUNTRIES[iso].facts[fact]
    assert [answer for answer in answers if not exact_match(answer, accepted)] == []
    assert not exact_match({"AU": "US dollar", "GB": "Ireland"}.get(iso, "no"), accepted)


def test_tables_hold_no_entry_that_nothing_reads():
    assert (TABLES["country_names"] | TABLES["country_aliases"]).keys() <= COUNTRIES.keys()
    capitals = TABLES["capital_aliases"] | TABLES["capitals"]
    assert all(COUNTRIES[iso].facts["capital"] for iso in capitals)
    used = {name for country in COUNTRIES.values() for name in country.facts["currency"]}
    for table in ("currencies", "currency_aliases", "currency_adjectives"):
        assert TABLES[table].keys() <= used
    names = {country.name for country in COUNTRIES.values()}
    assert set(TABLES["article_names"]) <= names
    assert set(TABLES["article_endings"]) <= {name.rpartition(" ")[2] for name in names}


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("São Tomé", "sao tome"),
        ("İzmir", "izmir"),
        ("Łódź", "lodz"),
        ("Føroyar, Weißwasser", "foroyar weisswasser"),
        ("N'Djamena", "ndjamena"),
        ("Nuku‘alofa", "nukualofa"),
        ("Guinea-Bissau", "guinea bissau"),
        ("1,230,000 people", "1230000 people"),
        ("Ürümqi (?! …)", "urumqi"),
    ],
)
def test_fold_gives_one_spelling(text: str, folded: str):
    assert fold(text) == folded == fold(folded)


def test_other_scripts_and_the_case_are_kept():
    assert words("Αθήνα 北京") == ["αθηνα", "北京"]
    assert strip_accents("Bogotá D.C., Ørsta") == "Bogota D.C., Orsta"
