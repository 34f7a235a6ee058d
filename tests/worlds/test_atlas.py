"""The desk and smoke worlds: splits, steps, determinism, and the errors of bad settings."""

import hashlib
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from llds_core.errors import ConfigError
from llds_core.rollout.rewards import exact_match
from llds_core.worlds.atlas import World, build_atlas
from llds_core.worlds.atlas_questions import KINDS
from llds_core.worlds.records import Question, read_corpus, read_questions
from llds_core.worlds.text import fold


def _all(world: World) -> list[Question]:
    return [*world.train, *world.dev, *world.test]


def _by_kind(questions: list[Question]) -> Counter:
    return Counter(question.metadata["kind"] for question in questions)


def test_the_desk_world_has_the_size_and_kinds_it_promises(desk_world: World):
    assert len(desk_world.passages) == 1446
    counts = _by_kind(_all(desk_world))
    assert set(counts) == set(KINDS)
    # Some cities give their country away; capitals are never asked for themselves.
    assert 1150 < counts["city-country"] < 1200
    assert 1000 < counts["city-capital"] < 1200
    assert 220 < counts["country-capital"] <= counts["country-currency"] <= 246
    assert "GeoNames" in desk_world.attribution
    assert "CC BY 4.0" in desk_world.attribution


def test_passages_are_short(desk_world: World):
    lengths = [len(passage.text.split()) for passage in desk_world.passages]
    assert statistics.median(lengths) <= 15
    assert max(lengths) <= 35


def test_passages_state_every_step_in_plain_words(desk_world: World):
    passages = {passage.id: passage for passage in desk_world.passages}
    for question in _all(desk_world):
        for step in question.metadata["steps"]:
            passage = passages[step["passage_id"]]
            assert step["title"] == passage.title
            assert step["answer"] in passage.text


def test_ids_and_titles_are_unique(desk_world: World):
    passages = desk_world.passages
    assert len({passage.id for passage in passages}) == len(passages)
    assert len({fold(passage.title) for passage in passages}) == len(passages)
    assert len({question.id for question in _all(desk_world)}) == len(_all(desk_world))


def test_steps_lead_from_the_question_to_its_answer(desk_world: World):
    countries = {p.id: p.title for p in desk_world.passages if p.id.startswith("country-")}
    for question in _all(desk_world):
        metadata, steps = question.metadata, question.metadata["steps"]
        assert metadata["hops"] == len(steps)
        two_hops = metadata["kind"] in ("city-capital", "city-currency", "city-continent")
        assert len(steps) == 1 + two_hops
        assert steps[-1]["answer"] == question.golden_answers[0]
        assert exact_match(steps[-1]["answer"], question.golden_answers) == 1.0
        assert steps[0]["passage_id"].endswith(f"-{metadata['entity']}")
        if two_hops:
            assert steps[0]["answer"] == steps[1]["query"] == countries[steps[1]["passage_id"]]
        name, _, fact = re.match(r"(.*?)( ([\d,]+))?$", steps[0]["query"]).groups()[0:3]
        assert name in question.question
        assert fact is None or f"{name} (about {fact} people)" in question.question


def test_steps_of_two_questions_are_not_shared(desk_world: World):
    ids = [id(step) for question in _all(desk_world) for step in question.metadata["steps"]]
    assert len(set(ids)) == len(ids)


def test_every_kind_is_worded_in_several_ways_and_asks(desk_world: World):
    frames: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for question in _all(desk_world):
        assert question.question.endswith("?")
        assert question.question == question.question.strip()
        name = question.metadata["steps"][0]["query"]
        frame = question.question.replace(name, "X").replace("the X", "X")
        if "X" in frame:
            frames[question.metadata["kind"]].add(frame)
    assert all(len(found) >= 4 for found in frames.values()), frames


def test_splits_share_no_subject(desk_world: World):
    """Neither as an entity nor as a name."""
    subjects = {
        split: {fold(q.metadata["steps"][0]["query"]) for q in getattr(desk_world, split)}
        for split in ("train", "dev", "test")
    }
    entities = {
        split: {q.metadata["entity"] for q in getattr(desk_world, split)}
        for split in ("train", "dev", "test")
    }
    for groups in (subjects, entities):
        assert not groups["train"] & groups["test"]
        assert not groups["train"] & groups["dev"]
        assert not groups["dev"] & groups["test"]


def test_split_sizes_follow_the_fractions():
    world = build_atlas(cities=1200, dev_fraction=0.2, test_fraction=0.3, seed=4)
    total = len(_all(world))
    assert 0.16 < len(world.dev) / total < 0.24
    assert 0.26 < len(world.test) / total < 0.34
    everything = build_atlas(cities=50, dev_fraction=0, test_fraction=0)
    assert not everything.dev
    assert not everything.test


def test_an_entity_keeps_passage_question_and_split_in_worlds_of_any_size(desk_world: World):
    small = build_atlas(cities=150, countries="cities")
    assert set(small.passages) <= set(desk_world.passages)
    for split in ("train", "dev", "test"):
        larger = {question.id: question for question in getattr(desk_world, split)}
        assert all(larger[question.id] == question for question in getattr(small, split))


def test_seeds_move_splits_and_wordings_but_not_facts(desk_world: World):
    other = build_atlas(cities=1200, seed=1)
    assert {p.id: p.title for p in other.passages} == {p.id: p.title for p in desk_world.passages}
    assert {q.id for q in other.test} != {q.id for q in desk_world.test}
    ours, theirs = ({q.id: q.question for q in _all(world)} for world in (desk_world, other))
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 0.99 * len(ours)
    assert sum(ours[i] != theirs[i] for i in shared) > 0.5 * len(shared)


def _digest(world: World) -> str:
    content = (world.passages, world.train, world.dev, world.test, world.answers_by_kind)
    return hashlib.sha256(repr(content).encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_builds_the_same_world(hash_seed: str):
    code = (
        "import hashlib; from llds_core.worlds.atlas import build_atlas;"
        "w = build_atlas(cities=200);"
        "c = (w.passages, w.train, w.dev, w.test, w.answers_by_kind);"
        "print(hashlib.sha256(repr(c).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == _digest(build_atlas(cities=200))


def test_wrong_answers_of_every_kind_exist_in_the_smallest_world():
    world = build_atlas(cities=1, countries="cities")
    assert len(world.passages) == 2
    for question in _all(world):
        options = world.answers_by_kind[question.metadata["kind"]]
        assert list(options) == sorted(set(options))
        assert len(set(options) - set(question.golden_answers)) >= 5


def test_answers_by_kind_hold_the_usual_answers(desk_world: World):
    for question in _all(desk_world):
        assert question.golden_answers[0] in desk_world.answers_by_kind[question.metadata["kind"]]


def test_the_smoke_world_is_small_and_closed():
    world = build_atlas(cities=100, countries="cities")
    assert 120 <= len(world.passages) <= 160
    ids = {passage.id for passage in world.passages}
    steps = chain.from_iterable(question.metadata["steps"] for question in _all(world))
    assert all(step["passage_id"] in ids for step in steps)
    assert world.dev
    assert world.test


def test_a_world_of_countries_only():
    world = build_atlas(cities=0)
    assert {question.metadata["hops"] for question in _all(world)} == {1}
    assert len(world.passages) == 246


def test_export_writes_what_it_holds_and_the_attribution(tmp_path: Path):
    world = build_atlas(cities=30, countries="cities")
    world.export(tmp_path)
    assert read_corpus(tmp_path / "corpus.jsonl") == world.passages
    assert read_questions(tmp_path / "train.jsonl") == world.train
    assert (tmp_path / "ATTRIBUTION.txt").read_text() == f"{world.attribution}\n"


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"cities": -1}, "world.cities is -1: set it to 0 or more"),
        ({"cities": 0, "countries": "cities"}, "set one of them higher"),
        ({"countries": "none"}, 'set it to "all" or "cities"'),
        ({"dev_fraction": 0.6, "test_fraction": 0.6}, "together at most 1"),
        ({"test_fraction": -0.1}, "to 0 or more"),
        ({"test_fraction": float("nan")}, "to 0 or more"),
    ],
)
def test_impossible_settings_are_refused_with_advice(settings: dict, advice: str):
    with pytest.raises(ConfigError, match=re.escape(advice)):
        build_atlas(**settings)
