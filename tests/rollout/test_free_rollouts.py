"""Trajectories that do not wait for each other are those of the lock-step loop.

A row writes one token a step, so that short actions end before long ones; searches take a while and
are answered out of order.
"""

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_rollouts import ANSWER, SEARCH, TAGGED, FreeSampler, Late, Script, limits, run

from llds_core.config import load_experiment
from llds_core.errors import RetrieverError
from llds_core.rollout import loop
from llds_core.rollout.environment import build_environment
from llds_core.worlds.records import Passage, Question

QUESTIONS = [Question(f"q{i}", "where", ("Paris",)) for i in range(4)]
OTHERS = [Passage(f"x{i}", f"Other {i}", "else") for i in range(9)]
IT, SO = "<search>it</search>", "<search>so it is</search>"
turns = st.one_of(
    st.sampled_from([SEARCH, IT, SO, ANSWER, "so", "<search></search>", "so it is " * 4 + SEARCH]),
    st.lists(st.integers(0, len(TAGGED) - 1), min_size=1, max_size=30),
)


def both(scripts: Sequence[Script], late: Late | None = None, config=None, **options):
    """Trajectories of the lock-step loop, and of the one in which nobody waits."""
    options = {"questions": QUESTIONS, "step": 3, "passages": OTHERS} | options
    known, *_ = run(scripts, config, engine=Late(), **options)
    options |= {"engine": late or Late(), "sampler_type": FreeSampler}
    made, sampler, _ = run(scripts, config, **options)
    assert not sampler.open
    return known, made


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(st.lists(turns, min_size=4, max_size=4), min_size=1, max_size=9),
    searches=st.integers(0, 3),
    room=st.integers(40, 400),
    rate=st.sampled_from([0.0, 0.5]),
    latency=st.sampled_from([0.0, 0.001]),
)
def test_nobody_waits_and_nothing_changes(scripts, searches, room, rate, latency) -> None:
    """Tokens, hits, injected failures, ends: whatever is written, cut, invalid or out of room."""
    config = limits(max_searches=searches, max_total_tokens=room, max_action_tokens=25)
    known, made = both(scripts, Late(latency), config, failure_rate=rate)
    assert made == known


def test_a_slow_search_holds_up_its_trajectory_only() -> None:
    """The first search is answered when the other trajectory has searched twice."""
    asked_twice = threading.Event()

    class Waits(Late):
        def search(self, queries, k):
            if "so it is" in queries:
                asked_twice.set()
            if "it" in queries:
                assert asked_twice.wait(120)
            return super().search(queries, k)

    scripts = [[IT, ANSWER], ["so is so " + SEARCH, SO, ANSWER]]
    late = Waits()
    known, made = both(scripts, late)
    assert made == known and late.calls == [["where"], ["so it is"], ["it"]]


def test_searches_share_a_batch() -> None:
    """All at once is one call; what is asked while every searcher is at work is the next call."""
    late = Late()
    known, made = both([[SEARCH, ANSWER]] * 8, late)
    assert made == known and late.calls == [["where"] * 8]
    late = Late(0.3)
    known, made = both([["so " * i + SEARCH, ANSWER] for i in range(1, 30)], late)
    assert made == known
    assert sorted(map(len, late.calls))[-1] > 1
    assert len(late.calls) < 29 and sum(map(len, late.calls)) == 29


@pytest.mark.parametrize("failure", [RetrieverError("gone"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_nothing_behind(failure: BaseException) -> None:
    """A search fails for good while others are open: the error comes out, the session is empty."""
    sessions: list[FreeSampler] = []

    class Watched(FreeSampler):
        def session(self, prompts):
            sessions.append(self)
            return super().session(prompts)

    class Fails(Late):
        def search(self, queries, k):
            if "it" in queries:
                raise failure
            return super().search(queries, k)

    scripts = [[IT, ANSWER], ["so " * 400], [SEARCH, SEARCH, ANSWER]]
    config = limits(max_action_tokens=400, max_total_tokens=2000)
    with pytest.raises(type(failure)):
        run(scripts, config, engine=Fails(), sampler_type=Watched)
    assert sessions[0].most == 3 and not sessions[0].open


def test_waiting_counts_only_where_every_trajectory_waits(monkeypatch) -> None:
    seconds = []
    original = loop.RolloutLoop.run

    def watched(self, *arguments, **options):
        made = original(self, *arguments, **options)
        seconds.append(made.retrieval_seconds)
        return made

    monkeypatch.setattr(loop.RolloutLoop, "run", watched)
    run([[SEARCH, ANSWER]] * 2, engine=Late(0.1))
    both([[SEARCH, ANSWER]] * 2, Late(0.1))
    both([["so", "so", ANSWER]] * 2, Late(0.1))
    assert min(seconds[0], seconds[2]) >= 0.1 and seconds[4] == 0


@pytest.mark.parametrize("given", [True, False])
def test_whole_turns_can_be_asked_for(given: bool) -> None:
    config = load_experiment("smoke/grpo", [f"sampler.lock_step={str(given).lower()}"])
    environment = build_environment(config)
    assert environment.rollout_loop(None, seed=0, failure_rate=0.0).lock_step is given
