"""The atlas: what a question promises, in the worlds of the profiles and over all 34,000 cities."""

import hashlib
import re
from collections import defaultdict
from functools import cache

import pytest

from llds_core.config import load_experiment
from llds_core.rollout import environment
from llds_core.rollout.rewards import exact_match, normalize_answer
from llds_core.worlds import Question, World, build_atlas
from llds_core.worlds.atlas import TABLES, Country, load_cities, load_countries
from llds_core.worlds.text import fold, strip_accents, words

SPLITS = ("train", "dev", "test")


def asked_in(world: World) -> list[Question]:
    return [*world.train, *world.dev, *world.test]


@pytest.fixture(scope="module")
def desk() -> World:
    return build_atlas(cities=1200)


@pytest.fixture(scope="module")
def full() -> World:
    return build_atlas(cities=None)


@pytest.fixture(scope="module")
def questions(full: World) -> list[Question]:
    return asked_in(full)


def subject(question: Question) -> str:
    """The folded name that is asked about, without the population that tells it apart."""
    query = question.metadata["steps"][0]["query"]
    return fold(query.rpartition(" ")[0] if " (about " in question.question else query)


@pytest.mark.parametrize(
    ("profile", "digest"),
    [
        ("smoke", "f8ba1ae7d613fcc965cd1caf1c4c71248122917290f7084eafedf346b53e6f23"),
        ("desk", "97bd967ac0b6ab0b70b42f6b1abbd0e3ab5d0c54a89c1c3a62f01d093538d7d0"),
    ],
)
def test_the_worlds_of_the_profiles_are_the_published_ones(profile: str, digest: str):
    """Passages, questions and their order decide published bits."""
    world = environment.build_world(load_experiment(f"{profile}/grpo"))
    content = (world.passages, world.train, world.dev, world.test, world.answers_by_kind)
    assert hashlib.sha256(repr(content).encode()).hexdigest() == digest


def test_ids_titles_and_steps_are_unique(full: World, questions: list[Question]):
    passages = full.passages
    assert len(passages) > 34_000 and len(questions) > 130_000
    steps = [id(step) for question in questions for step in question.metadata["steps"]]
    ids, titles = zip(*((passage.id, fold(passage.title)) for passage in passages), strict=True)
    for names in (ids, titles, steps, [question.id for question in questions]):
        assert len(set(names)) == len(names)


def test_steps_lead_from_the_question_over_passages_to_its_answer(desk: World):
    passages = {passage.id: passage for passage in desk.passages}
    for question in asked_in(desk):
        metadata, steps = question.metadata, question.metadata["steps"]
        two_hops = metadata["kind"] in ("city-capital", "city-currency", "city-continent")
        assert metadata["hops"] == len(steps) == 1 + two_hops
        assert steps[-1]["answer"] == question.golden_answers[0]
        assert exact_match(steps[-1]["answer"], question.golden_answers) == 1.0
        assert question.golden_answers[0] in desk.answers_by_kind[metadata["kind"]]
        assert steps[0]["passage_id"].endswith(f"-{metadata['entity']}")
        for step in steps:
            passage = passages[step["passage_id"]]
            assert step["title"] == passage.title and step["answer"] in passage.text
        if two_hops:
            assert steps[0]["answer"] == steps[1]["query"] == steps[1]["title"]
        name, _, fact = re.match(r"(.*?)( ([\d,]+))?$", steps[0]["query"]).groups()
        assert name in question.question
        assert fact is None or f"{name} (about {fact} people)" in question.question


def test_no_question_holds_an_answer_or_the_country_on_the_way(questions: list[Question]):
    normalized, folded = cache(normalize_answer), cache(fold)
    for question in questions:
        texts = (normalize_answer(question.question), fold(question.question))
        for answer in question.golden_answers:
            assert normalized(answer) not in texts[0], question
            assert folded(answer) not in texts[1], question
        country = folded(question.metadata["steps"][0]["answer"])
        assert country not in texts[1] or question.metadata["kind"].startswith("country-")


def test_a_question_fits_no_city_with_another_answer(questions: list[Question]):
    """Repeated names carry the population; where that is equal too, all answers are accepted."""
    alike: dict[str, list[Country]] = defaultdict(list)
    named: dict[str, set[str]] = defaultdict(set)
    for city in load_cities():
        alike[fold(f"{city.name} {city.people}")].append(city.country)
        named[fold(city.name)].add(city.id)
    places: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        if question.metadata["kind"] != "city-country":
            continue
        step = question.metadata["steps"][0]
        if " (about " in question.question:
            places[subject(question)].add(step["answer"])
        if len(named.get(fold(step["query"]), ())) == 1:
            continue
        for country in alike[fold(step["query"])]:
            assert country.name in question.golden_answers, question
    assert sum(len(found) > 1 for found in places.values()) > 500, "repeated names stay in"
    # A city named like a country is told apart from it too.
    lebanon = [q for q in questions if q.metadata["steps"][0]["query"].startswith("Lebanon ")]
    assert lebanon and all("Lebanon (about " in q.question for q in lebanon)
    assert all(q.metadata["steps"][0]["title"] != "Lebanon" for q in lebanon)


def test_splits_share_no_name_and_no_entity(full: World):
    for key in (subject, lambda question: question.metadata["entity"]):
        train, dev, test = ({key(q) for q in getattr(full, split)} for split in SPLITS)
        assert not train & (dev | test) and not dev & test


def test_an_entity_keeps_passage_question_and_split_in_worlds_of_any_size(desk: World):
    small = build_atlas(cities=150, countries="cities")
    assert set(small.passages) <= set(desk.passages)
    for split in SPLITS:
        larger = {question.id: question for question in getattr(desk, split)}
        assert all(larger[question.id] == question for question in getattr(small, split))


def test_small_worlds_are_closed_and_have_wrong_answers():
    world = build_atlas(cities=100, countries="cities")
    assert 120 <= len(world.passages) <= 160 and world.dev and world.test
    ids = {passage.id for passage in world.passages}
    steps = [step for question in asked_in(world) for step in question.metadata["steps"]]
    assert all(step["passage_id"] in ids for step in steps)
    smallest = build_atlas(cities=1, countries="cities")
    assert len(smallest.passages) == 2
    for question in asked_in(smallest):
        options = smallest.answers_by_kind[question.metadata["kind"]]
        assert len(set(options) - set(question.golden_answers)) >= 5


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
