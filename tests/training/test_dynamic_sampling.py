"""DAPO's dynamic sampling and overlong punishment in the rollout of training."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import refused

from llds_core.config import LossConfig, load_experiment
from llds_core.errors import TrainingDivergedError
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.rewards import overlong_punishment
from llds_core.training.experiment import SearchRollout
from llds_core.training.step_metrics import StepMetrics
from llds_core.worlds.records import Question

MODEL: Any = SimpleNamespace(device=torch.device("cpu"))


class Scripted(SearchRollout):
    """Every third question is answered rightly by some; the loop and the sampler are left out."""

    def __post_init__(self) -> None:
        self.calls: list[list[int]] = []
        self.fitting = list(range(60))

    def _sample(self, tasks: Any, model: Any, step: int, numbers: Sequence[int]) -> Rollout:
        self.calls.append(list(numbers))
        made = [Trajectory(question, sample, [1]) for question, sample in tasks]
        for one in made:
            one.correct = one.sample == 0 and int(one.question.id) % self.mixed == 0
            one.reward = float(one.correct)
        return Rollout(made, 1.0, 0.25)


def scripted(mixed: int = 3, rank: int = 0, rounds: int = 20) -> Scripted:
    config = load_experiment("smoke/dapo", [f"rollout.sampling_rounds={rounds}"])
    questions = [Question(str(i), "?", ("a",)) for i in range(60)]
    environment: Any = SimpleNamespace(config=config, world=SimpleNamespace(train=questions))
    made = Scripted(environment, None, seed=1, rank=rank)
    made.mixed = mixed
    return made


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"question": number} for number in numbers for _ in range(4)]


def names(rollout: Rollout) -> list[tuple[str, int]]:
    return [(t.question.id, t.sample) for t in rollout.trajectories]


def test_uniform_groups_are_replaced_until_all_are_mixed() -> None:
    sampler = scripted()
    found = sampler(rows(0, 1, 2, 3), MODEL, step=1)
    groups = [found.trajectories[i : i + 4] for i in range(0, 16, 4)]
    assert all(len({t.correct for t in group}) == 2 for group in groups)
    assert [group[0].question.id for group in groups][::3] == ["0", "3"]
    assert [t.sample for t in found.trajectories] == [0, 1, 2, 3] * 4
    rounds = len(sampler.calls)
    assert rounds > 1 and (found.seconds, found.retrieval_seconds) == (rounds, rounds / 4)
    # No two trajectories of a step share a random stream.
    numbers = [number for call in sampler.calls for number in call]
    assert len(set(numbers)) == len(numbers) == 16 + len(found.dropped)
    assert sampler.calls[1] == list(range(16 + 4, 16 + 12))
    # What was dropped was sampled: it counts in the reward, and nowhere else.
    row = StepMetrics(found, 1, 4, LossConfig())
    row.part.states = dict.fromkeys(range(16), torch.ones(2))
    metrics = row.row(updates=1)
    assert metrics["dropped_groups"] == len(found.dropped) / 4
    assert metrics["reward"] == metrics["em"] == 4 / (16 + len(found.dropped))
    assert 0 < metrics["zero_variance_groups"] < 1


def test_a_question_that_does_not_fit_replaces_none() -> None:
    sampler = scripted()
    sampler.fitting = [7, 30, 33]
    found = sampler(rows(0, 1, 2, 3), MODEL, step=1)
    assert {name for name, _ in names(found)} - {"0", "3"} <= {"30", "33"}


def test_processes_find_together_what_one_finds_alone() -> None:
    alone = scripted()(rows(0, 1, 2, 3), MODEL, step=2)
    first = scripted(rank=0)(rows(0, 1), MODEL, step=2)
    second = scripted(rank=1)(rows(2, 3), MODEL, step=2)
    assert names(first) + names(second) == names(alone)


def test_too_many_rounds_end_the_run_with_one_line() -> None:
    said = r"\d of 4 groups .*sampling_rounds=3 rounds at step 7"
    never = scripted(mixed=1000, rounds=3)
    refused(TrainingDivergedError, said, never, rows(1, 2, 3, 4), MODEL, step=7)


@pytest.mark.parametrize(
    ("tokens", "punishment"), [(80, 0.0), (90, -0.5), (95, -0.75), (100, -1.0), (101, -1.0)]
)
def test_overlong_punishment_matches_its_published_values(tokens: int, punishment: float) -> None:
    assert overlong_punishment(tokens, 100, 0.2) == pytest.approx(punishment)
