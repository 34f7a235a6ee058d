"""Baselines with scripted models: what they are asked, what they are shown, what counts."""

from dataclasses import replace

import pytest
from evaluation_worlds import HOSTILE, QUESTION, TOKENIZER, environment
from scripted_rollouts import ScriptedSampler, StubRetriever

from llds_core.evaluation import agents
from llds_core.evaluation.agents import BASELINES, NO_FACTS, Agent, prompt_digest
from llds_core.evaluation.predictions import POLICY
from llds_core.retrieval.base import Hit

HITS = (Hit("a", "Lyon", "Lyon lies in {France}.", 2.0), Hit("b", "Nice", "Nice is warm.", 1.0))
ROOM = ("rollout.max_total_tokens=4000", "rollout.max_observation_tokens=400")
SEARCH = "<think>hm</think><search> Lyon </search>"
ANSWER = "<answer> Paris </answer>"


def play(name, *texts, hits=HITS, helper=(), failure_rate=0.0):
    """One line of predictions, with what the model, the helper and the engine were asked."""
    engine = StubRetriever(hits)
    asked, reader = ScriptedSampler(TOKENIZER, [texts]), ScriptedSampler(TOKENIZER, [helper])
    world = replace(environment(*ROOM, "rollout.max_action_tokens=100"), retriever=engine)
    agent, names = Agent(name, world, TOKENIZER), []

    def sampler_for(streams):
        names.extend(streams)
        return reader

    [trajectory] = agent.loop(sampler_for, failure_rate).run([(QUESTION, 0)], asked).trajectories
    row = agent.prediction(("city-country", "q0", "greedy", 0), trajectory, 0.5)
    return row, asked.prompts, reader.prompts, engine.queries, names


def outcome(row):
    return row["prediction"], row["status"], row["searches"]


def test_direct_gets_the_question_alone_and_one_turn():
    row, [prompt], _, queries, _ = play("direct", ANSWER)
    assert "where is {it}?" in prompt and "<answer>" in prompt and "search" not in prompt
    assert outcome(row) == ("Paris", "answer", 0) and queries == []
    row, _, _, queries, _ = play("direct", SEARCH)  # which is not run
    assert outcome(row) == (None, "turns", 0) and queries == []


def test_rag_searches_the_question_once_and_reads_the_passages_in_its_prompt():
    row, [prompt], _, queries, _ = play("rag", ANSWER)
    assert queries == ["where is {it}"] and outcome(row) == ("Paris", "answer", 1)
    assert "Doc 1(Title: Lyon) Lyon lies in {France}." in prompt
    assert "Doc 2(Title: Nice)" in prompt and "where is {it}?" in prompt
    _, [prompt], *_ = play("rag", ANSWER, hits=(Hit("a", "Long", "word " * 2000, 1.0),))
    assert len(TOKENIZER.encode(prompt)) < 800
    # Where searches fail on purpose, its own fails, too.
    _, [prompt], *_ = play("rag", ANSWER, failure_rate=1.0)
    assert "Doc 1(" in prompt and "Lyon lies" not in prompt


def test_search_o1_condenses_what_was_found_before_it_goes_on():
    texts, helper = (SEARCH, SEARCH.replace("Lyon", "Nice"), ANSWER), ("Lyon is in France.", "")
    row, [prompt], [first, second], queries, names = play("search-o1", *texts, helper=helper)
    assert queries == ["Lyon", "Nice"] and outcome(row) == ("Paris", "answer", 2)
    assert "2 times" in prompt
    assert "Doc 1(Title: Lyon) Lyon lies in {France}." in first and "Search query: Lyon" in first
    assert "<think>hm</think>" in first and "where is {it}?" in first
    assert "Lyon is in France." in second  # it knows what was found before
    shown = row["segments"]
    turn = ["policy", "documents", "observation"]
    assert [part["kind"] for part in shown] == ["prompt", *turn, *turn, "policy"]
    assert shown[3]["text"].strip() == "<information>Lyon is in France.</information>"
    assert shown[6]["text"].strip() == f"<information>{NO_FACTS}</information>"
    assert shown[2]["text"].startswith("Doc 1(Title: Lyon)")
    assert names == [("city-country", "q0", 0, "refine", turn) for turn in (1, 2)]


def test_search_r1_explains_the_protocol_and_shows_passages_as_they_are():
    row, [prompt], _, queries, _ = play("search-r1", SEARCH, ANSWER)
    assert "<think>" in prompt and "<search>" in prompt and queries == ["Lyon"]
    kinds = [part["kind"] for part in row["segments"]]
    assert kinds == ["prompt", "policy", "observation", "policy"]
    assert "Nice is warm." in row["segments"][2]["text"]


@pytest.mark.parametrize("agent", [*BASELINES, POLICY])
def test_without_tags_every_baseline_answers_with_its_last_line_and_the_policy_not(agent):
    turns = 1 if agent in ("direct", "rag") else 3
    row, prompts, *_ = play(agent, *["I think so.\n</think>It is Paris\n\n"] * turns)
    if agent == POLICY:
        assert prompts == ["Question: where is {it}?\n"]  # the prompt of the profile
        assert (row["prediction"], row["status"]) == (None, "turns")
    else:
        assert (row["prediction"], row["status"]) == ("It is Paris", "fallback")
        assert (row["em"], row["sub_em"]) == (0.0, 1.0)


@pytest.mark.parametrize("agent", ["rag", "search-o1", "search-r1", POLICY])
def test_answers_in_passages_do_not_count(agent):
    told = {"hits": (HOSTILE,), "helper": [HOSTILE.text] * 2}
    row, _, _, queries, _ = play(agent, *[SEARCH] * (1 if agent == "rag" else 3), **told)
    assert len(queries) == (1 if agent == "rag" else 2)
    assert any("<answer>Paris</answer>" in part["text"] for part in row["segments"])
    assert (row["prediction"], row["em"], row["sub_em"]) == (None, 0.0, 0.0)


def test_another_wording_is_another_evaluation(monkeypatch):
    template = environment().template
    digests = {prompt_digest(agent, template) for agent in (*BASELINES, POLICY)}
    assert len(digests) == 5
    monkeypatch.setitem(agents.PROMPTS, "rag", "Read {documents}: {question}")
    assert prompt_digest("rag", template) not in digests
    assert prompt_digest(POLICY, template, "Try again.") not in digests
