"""What must hold over all 34,000 cities: no question gives its answer away, none is ambiguous."""

from collections import defaultdict

import pytest

from llds_core.rollout.rewards import normalize_answer
from llds_core.worlds.atlas import World
from llds_core.worlds.atlas_facts import load_cities, load_countries
from llds_core.worlds.records import Question
from llds_core.worlds.text import fold


@pytest.fixture(scope="module")
def questions(full_world: World) -> list[Question]:
    return [*full_world.train, *full_world.dev, *full_world.test]


def test_the_full_world_is_full(full_world: World, questions: list[Question]):
    assert len(full_world.passages) > 34_000
    assert len(questions) > 130_000
    assert len({fold(passage.title) for passage in full_world.passages}) == len(full_world.passages)


def test_no_question_holds_an_answer(questions: list[Question]):
    for question in questions:
        texts = (normalize_answer(question.question), fold(question.question))
        for answer in question.golden_answers:
            assert normalize_answer(answer) not in texts[0], question
            assert fold(answer) not in texts[1], question


def test_no_question_names_the_country_on_the_way(questions: list[Question]):
    for question in questions:
        first = question.metadata["steps"][0]["answer"]
        assert fold(first) not in fold(question.question) or question.metadata["kind"].startswith(
            "country-"
        )


def test_a_question_fits_no_city_with_another_answer(questions: list[Question]):
    """Repeated names carry the population; where that is equal too, all answers are accepted."""
    countries = load_countries()
    alike: dict[str, set[str]] = defaultdict(set)
    named: dict[str, set[str]] = defaultdict(set)
    for city in load_cities():
        alike[fold(f"{city.name} {city.people}")].add(city.iso)
        named[fold(city.name)].add(city.id)
    for question in questions:
        if question.metadata["kind"] != "city-country":
            continue
        step = question.metadata["steps"][0]
        if len(named.get(fold(step["query"]), ())) == 1:
            continue
        for iso in alike[fold(step["query"])]:
            assert countries[iso].name in question.golden_answers, question


def test_hundreds_of_repeated_names_stay_in(questions: list[Question]):
    places: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        if question.metadata["kind"] == "city-country" and " (about " in question.question:
            step = question.metadata["steps"][0]
            places[step["query"].rpartition(" ")[0]].add(step["answer"])
    assert sum(len(found) > 1 for found in places.values()) > 500


def test_a_city_named_like_a_country_is_told_apart(questions: list[Question]):
    lebanon = [
        question
        for question in questions
        if question.metadata["kind"] == "city-country"
        and question.metadata["steps"][0]["query"].startswith("Lebanon ")
    ]
    assert lebanon
    assert all("Lebanon (about " in question.question for question in lebanon)
    assert all(question.metadata["steps"][0]["title"] != "Lebanon" for question in lebanon)


@pytest.mark.parametrize(
    "name", ["Mexico City", "Kuwait City", "Guatemala City", "Luxembourg", "Singapore", "Djibouti"]
)
def test_cities_that_name_their_country_are_not_asked_about(name: str, questions: list[Question]):
    # Mexico City itself may still be asked for, as the capital of Mexico.
    asked = [q for q in questions if q.metadata["steps"][0]["query"].startswith(name)]
    assert not [q for q in asked if q.metadata["kind"].startswith("city-")]


def test_splits_share_no_name(full_world: World):
    names = {}
    for split in ("train", "dev", "test"):
        subjects = (q.question for q in getattr(full_world, split))
        queries = (q.metadata["steps"][0]["query"] for q in getattr(full_world, split))
        names[split] = {
            fold(query.rpartition(" ")[0] if " (about " in text else query)
            for text, query in zip(subjects, queries, strict=True)
        }
    assert not names["train"] & (names["dev"] | names["test"])
    assert not names["dev"] & names["test"]
