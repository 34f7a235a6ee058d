"""Rewards of whole trajectories. Only what the policy wrote is scored."""

from llds_core.config import RewardConfig
from llds_core.rollout.protocol import Trajectory, block_sequence
from llds_core.rollout.rewards import (
    exact_match,
    f1_score,
    format_reward,
    normalize_answer,
    valid_block_sequence,
)


def score(trajectory: Trajectory, config: RewardConfig) -> None:
    """Set `correct` (exact match) and `reward` (as configured) of a finished trajectory; no answer
    earns nothing.
    """
    golden = trajectory.question.golden_answers
    answer = trajectory.answer
    trajectory.correct = answer is not None and exact_match(answer, golden) == 1.0
    if config.kind == "format":
        trajectory.reward = format_reward(
            answer,
            golden,
            valid_format=valid_block_sequence(block_sequence(trajectory)),
            retrieved=_retrieved(trajectory),
            structure=config.structure,
            final=config.final,
            retrieval=config.retrieval,
        )
    elif config.kind == "f1":
        trajectory.reward = 0.0 if answer is None else f1_score(answer, golden)
    else:
        trajectory.reward = float(trajectory.correct)


def _retrieved(trajectory: Trajectory) -> bool:
    """Whether a retrieved passage contains an accepted answer."""
    texts = [normalize_answer(hit.contents) for action in trajectory.actions for hit in action.hits]
    wanted = [normalize_answer(answer) for answer in trajectory.question.golden_answers]
    # An answer such as "The" normalises to nothing, which every text contains.
    return any(answer in text for answer in wanted if answer for text in texts)
