"""Trajectories as HTML and for a terminal: every author apart, all of it data."""

import pytest

from llds_core.config import FEEDBACK
from llds_core.reporting import trajectories
from llds_core.reporting.store import load_run
from llds_core.reporting.trajectories import blocks, outcome, to_ansi, to_html
from llds_core.retrieval.base import Hit
from llds_core.rollout.protocol import Action, Trajectory, search_observation
from llds_core.worlds.records import Question

HITS = (Hit("1", "Homs", "<script>alert(1)</script> & </information>", 2.0),)
SEARCH = Action("search", "Homs", "<think>where?</think><search>Homs</search>", 0, 9, True, HITS)
ANSWER = Action("answer", "Asia", "so <answer>Asia</answer>", 20, 25)
INVALID = Action("invalid", "", "<b>hm</b>", 9, 12)


def made(*actions, stop="answer", **values):
    question = Question("q", "Where is <i>Homs</i>?", ("Asia",))
    return Trajectory(question, 0, [1], actions=list(actions), stop_reason=stop, **values)


def test_blocks_keep_order_and_author():
    assert blocks(made(SEARCH, INVALID, ANSWER)) == [
        ("question", "Where is <i>Homs</i>?"),
        ("policy", SEARCH.text),
        ("observation", search_observation(HITS).strip()),
        ("policy", INVALID.text),
        ("observation", FEEDBACK.strip()),
        ("policy", "so "),
        ("answer", "<answer>Asia</answer>"),
    ]


@pytest.mark.parametrize("stop, observations", [("turns", 1), ("length", 2)])
def test_the_last_action_has_an_observation_only_when_it_filled_the_context(stop, observations):
    found = blocks(made(SEARCH, INVALID, stop=stop))
    assert sum(kind == "observation" for kind, _ in found) == observations


def test_html_shows_markup_as_text_and_each_author_in_a_colour():
    page = to_html(made(SEARCH, INVALID, ANSWER))
    for raw in ("<script>", "<i>Homs", "<b>hm", "</information>", "<answer>"):
        assert raw not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;/information&gt;" in page
    for name in ("question", "written by the policy", "observation", "answer"):
        assert name in page
    assert len({part.split(";")[0] for part in page.split("background:")[1:]}) == 4


def test_terminal_text_is_coloured_on_request_only():
    trajectory = made(SEARCH, ANSWER)
    plain, coloured = to_ansi(trajectory, color=False), to_ansi(trajectory, color=True)
    assert "\x1b[" not in plain and coloured.count("\x1b[0m") == 5
    order = [plain.index(text) for text in ("<search>Homs", "Doc 1(Title: Homs)", "<answer>Asia")]
    assert order == sorted(order)


def test_the_outcome_names_the_verdict_where_there_is_one():
    assert "1 search, correct (accepted: Asia)" in outcome(made(SEARCH, ANSWER, correct=True))
    unscored = made(SEARCH, stop="turns")
    unscored.question = Question("ask", "?", ("?",))
    assert outcome(unscored) == "out of turns, 1 search"


def test_every_run_answers_after_the_start_policy(smoke_runs):
    run = load_run(smoke_runs / "smoke" / "grpo" / "seed0")
    question = Question("q", "Where is Homs?", ("Asia",), {"kind": "city-continent", "hops": 1})
    shown = trajectories.answer_with([run], question, smoke_runs)
    assert [title.split(",")[0] for title in shown] == ["before training", "GRPO"]
    assert all(trajectory.actions for trajectory in shown.values())
    texts = [text for trajectory in shown.values() for _, text in blocks(trajectory)]
    assert trajectories.trajectory_table(shown)["text"].tolist() == texts


def test_accepted_answers_are_shown_visibly() -> None:
    gold = "Pa\x1b[31mris\u202e\ud800"
    shown = Trajectory(Question("q", gold, (gold,)), 0, [1], stop_reason="answer", answer="x")
    for text in (outcome(shown), to_ansi(shown, color=False), to_html(shown)):
        assert not {"\x1b", "\u202e", "\ud800"} & {*text}
        assert "Pa\\x1b[31mris\\u202e\\ud800" in text
