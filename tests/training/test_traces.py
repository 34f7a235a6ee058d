"""Traces use training questions only, repeat exactly, and are as imperfect as configured."""

from dataclasses import replace

import pytest

from llds_core.config import load_experiment
from llds_core.rollout.environment import build_environment
from llds_core.rollout.protocol import parse_action
from llds_core.training.experiment import training_rows
from llds_core.training.traces import Trace, make_traces

CONFIG = load_experiment("smoke/grpo")
COUNT = 1500
FAULTLESS = {"failure_rate": 0.0, "early_answer_rate": 0.0, "wrong_answer_rate": 0.0}


@pytest.fixture(scope="module")
def environment():
    return build_environment(CONFIG)


def traces(environment, count: int = COUNT, **changes: float) -> list[Trace]:
    settings = replace(CONFIG.warmstart, **changes)
    retriever = environment.failing(seed=settings.seed, failure_rate=settings.failure_rate)
    return make_traces(environment.world, retriever, settings, top_k=2, count=count)


@pytest.fixture(scope="module")
def made(environment) -> list[Trace]:
    return traces(environment)


def searches(trace: Trace) -> int:
    return sum(not by_policy for _, by_policy in trace.segments)


def hops(trace: Trace) -> int:
    return len(trace.question.metadata["steps"])


def test_every_training_question_and_no_other_comes_before_any_repeats(environment, made) -> None:
    train = [question.id for question in environment.world.train]
    ids = [trace.question.id for trace in made]
    assert sorted(ids[: len(train)]) == sorted(train) and set(ids) == set(train)


def test_traces_are_deterministic_and_move_with_the_seed(environment) -> None:
    first, again, other = (
        [trace.segments for trace in traces(environment, 40, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_every_trace_is_actions_and_observations_in_turn_and_ends_in_an_answer(made) -> None:
    for trace in made:
        writers = [by_policy for _, by_policy in trace.segments]
        assert writers == [i % 2 == 0 for i in range(len(writers))]
        kinds = [parse_action(text)[0] for text, by_policy in trace.segments if by_policy]
        assert kinds == ["search"] * (len(kinds) - 1) + ["answer"]
        answer = parse_action(trace.segments[-1][0])[1]
        assert trace.correct == (answer in trace.question.golden_answers)


def test_without_faults_every_trace_is_correct_and_as_short_as_possible(environment) -> None:
    faultless = traces(environment, 200, **FAULTLESS)
    assert all(trace.correct for trace in faultless)
    assert all(searches(trace) == hops(trace) for trace in faultless)


@pytest.mark.parametrize(
    ("rates", "count", "share", "longer", "bound"),
    [
        # A two-hop trace that stops after one search guesses.
        ({"early_answer_rate": 0.35}, 2, 0.35, 0.65, 0.05),
        ({"wrong_answer_rate": 0.17}, 1, 0.17, 0.0, 0.04),
        # The first search fails with 0.2; half of those are repeated, the others end in a guess.
        ({"failure_rate": 0.2, "retry_rate": 0.5}, 1, 0.1 / (1 - 0.1), 0.1, 0.035),
    ],
)
def test_faults_come_at_the_configured_rates(
    environment, rates: dict[str, float], count: int, share: float, longer: float, bound: float
) -> None:
    """Of traces of so many hops: those with a wrong answer, and those of more than one search."""
    found = [t for t in traces(environment, **FAULTLESS | rates) if hops(t) == count]
    wrong = sum(not trace.correct for trace in found) / len(found)
    assert wrong == pytest.approx(share, abs=bound)
    assert sum(searches(t) > 1 for t in found) / len(found) == pytest.approx(longer, abs=bound)
    if count == 2:
        assert not any(trace.correct for trace in found if searches(trace) == 1)


def test_longer_run_begins_with_the_rows_of_a_shorter_one(environment) -> None:
    def rows(steps: int, seed: int = 0) -> list[dict]:
        training = replace(CONFIG.training, steps=steps)
        longer = replace(environment, config=replace(CONFIG, training=training))
        return training_rows(longer, seed, range(questions)).to_list()

    questions = len(environment.world.train)
    whole = questions // 4 + 3  # passes the end of the first epoch
    long = rows(whole)
    assert len(long) == 4 * whole
    for steps in (1, 2, questions // 4):
        assert rows(steps) == long[: 4 * steps]
    assert sorted(row["question"] for row in long[:questions]) == list(range(questions))
    assert rows(3, seed=1) != rows(3)
    for row in long:
        assert environment.world.train[row["question"]].question in row["prompt"]
