"""Baselines with scripted models: what they are asked, what they are shown, what counts."""

from dataclasses import replace

import pytest
from evaluation_worlds import HOSTILE, TOKENIZER, Engine, Script, environment, question

from llds_core.evaluation import agents
from llds_core.evaluation.agents import (
    BASELINES,
    NO_FACTS,
    POLICY,
    agent_loop,
    answer_of,
    prompt_digest,
    segments,
)
from llds_core.evaluation.evaluate import prediction
from llds_core.retrieval.base import Hit

HITS = (Hit("a", "Lyon", "Lyon lies in {France}.", 2.0), Hit("b", "Nice", "Nice is warm.", 1.0))
ROOM = ("rollout.max_total_tokens=4000", "rollout.max_observation_tokens=400")
SEARCH = "<think>hm</think><search> Lyon </search>"
ANSWER = "<answer> Paris </answer>"


def play(agent, *texts, hits=HITS, helper=(), overrides=ROOM):
    """One trajectory; returns it with what the model, the helper and the engine were asked."""
    engine, asked, reader = Engine(*hits), Script(*texts), Script(*helper)
    world = environment(*overrides, "rollout.max_action_tokens=100")
    names = []

    def sampler_for(streams):
        names.extend(streams)
        return reader

    loop = agent_loop(agent, replace(world, retriever=engine), TOKENIZER, sampler_for)
    [trajectory] = loop.run([(question(), 0)], asked).trajectories
    return trajectory, asked, reader, engine, names


def line(agent, trajectory):
    return prediction(agent, ("city-country", "q0", "greedy", 0), trajectory, TOKENIZER, 0.5)


def test_direct_gets_the_question_alone_and_one_turn():
    trajectory, asked, _, engine, _ = play("direct", ANSWER)
    assert "where is {it}?" in asked.prompts[0] and "<answer>" in asked.prompts[0]
    assert "search" not in asked.prompts[0] and engine.queries == []
    assert answer_of("direct", trajectory, TOKENIZER) == ("Paris", "answer")
    assert line("direct", trajectory)["searches"] == 0
    trajectory, _, _, engine, _ = play("direct", SEARCH)  # which is not run
    assert engine.queries == [] and line("direct", trajectory)["searches"] == 0
    assert answer_of("direct", trajectory, TOKENIZER) == (None, "turns")


def test_rag_searches_the_question_once_and_reads_the_passages_in_its_prompt():
    trajectory, asked, _, engine, _ = play("rag", ANSWER)
    assert engine.queries == ["where is {it}"]
    assert "Doc 1(Title: Lyon) Lyon lies in {France}." in asked.prompts[0]
    assert "Doc 2(Title: Nice)" in asked.prompts[0] and "where is {it}?" in asked.prompts[0]
    assert line("rag", trajectory)["searches"] == 1
    assert answer_of("rag", trajectory, TOKENIZER) == ("Paris", "answer")
    long = (Hit("a", "Long", "word " * 2000, 1.0),)
    _, asked, _, _, _ = play("rag", ANSWER, hits=long)
    assert len(TOKENIZER.encode(asked.prompts[0])) < 800


def test_search_o1_condenses_what_was_found_before_it_goes_on():
    trajectory, asked, reader, engine, names = play(
        "search-o1", SEARCH, "<think>so</think><search>Nice</search>", ANSWER,
        helper=("Lyon is in France.", ""),
    )  # fmt: skip
    assert engine.queries == ["Lyon", "Nice"] and line("search-o1", trajectory)["searches"] == 2
    assert "2 times" in asked.prompts[0]
    first, second = reader.prompts
    assert "Doc 1(Title: Lyon) Lyon lies in {France}." in first and "Search query: Lyon" in first
    assert "<think>hm</think>" in first and "where is {it}?" in first
    assert "Lyon is in France." in second  # it knows what was found before
    shown = segments("search-o1", trajectory, TOKENIZER)
    assert [part["kind"] for part in shown] == (
        ["prompt"] + ["policy", "documents", "observation"] * 2 + ["policy"]
    )
    assert shown[3]["text"].strip() == "<information>Lyon is in France.</information>"
    assert shown[6]["text"].strip() == f"<information>{NO_FACTS}</information>"
    assert shown[2]["text"].startswith("Doc 1(Title: Lyon)")
    assert names == [("city-country", "q0", 0, "refine", turn) for turn in (1, 2)]


def test_search_r1_explains_the_protocol_and_shows_passages_as_they_are():
    trajectory, asked, _, engine, _ = play("search-r1", SEARCH, ANSWER)
    assert "<think>" in asked.prompts[0] and "<search>" in asked.prompts[0]
    assert engine.queries == ["Lyon"]
    shown = segments("search-r1", trajectory, TOKENIZER)
    assert [part["kind"] for part in shown] == ["prompt", "policy", "observation", "policy"]
    assert "Nice is warm." in shown[2]["text"]


def test_policy_uses_the_prompt_of_the_profile():
    _, asked, _, _, _ = play(POLICY, ANSWER)
    assert asked.prompts == ["Question: where is {it}?\n"]


def test_no_more_searches_than_the_limit_and_the_last_turn_still_answers():
    trajectory, _, _, engine, _ = play("search-r1", SEARCH, SEARCH, ANSWER)
    assert len(engine.queries) == 2 and trajectory.answer == "Paris"


@pytest.mark.parametrize("agent", BASELINES)
def test_without_tags_every_baseline_answers_with_its_last_line(agent):
    searches = 2 if agent.startswith("search") else 0
    text = "I think so.\n</think>It is Paris\n\n"
    trajectory, *_ = play(agent, *[text] * (searches + 1))
    assert answer_of(agent, trajectory, TOKENIZER) == ("It is Paris", "fallback")
    row = line(agent, trajectory)
    assert (row["em"], row["sub_em"], row["status"]) == (0.0, 1.0, "fallback")


def test_the_trained_protocol_has_no_fall_back():
    trajectory, *_ = play(POLICY, "Paris", "Paris", "Paris")
    assert answer_of(POLICY, trajectory, TOKENIZER) == (None, "turns")


@pytest.mark.parametrize("agent", ["rag", "search-o1", "search-r1", POLICY])
def test_answers_in_passages_do_not_count(agent):
    turns = 1 if agent == "rag" else 3
    trajectory, _, _, engine, _ = play(
        agent, *[SEARCH] * turns, hits=(HOSTILE,), helper=[HOSTILE.text] * 2
    )
    assert len(engine.queries) == (1 if agent == "rag" else 2)
    row = line(agent, trajectory)
    assert any("<answer>Paris</answer>" in part["text"] for part in row["segments"])
    assert (row["prediction"], row["em"], row["sub_em"]) == (None, 0.0, 0.0)


def test_another_wording_is_another_evaluation(monkeypatch):
    config = environment().config.rollout
    digests = {prompt_digest(agent, config) for agent in (*BASELINES, POLICY)}
    assert len(digests) == 5
    before = prompt_digest("rag", config)
    monkeypatch.setitem(agents._TEMPLATES, "rag", "Read {documents}: {question}")
    assert prompt_digest("rag", config) != before
