"""A tiny policy, hand-made trajectories and a trainer on them: what the trainer tests share."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOTrainer

from llds_core.config import PolicyConfig, laid_over, load_experiment
from llds_core.retrieval import Hit
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import TAGS, Action, Trajectory
from llds_core.runs.policies import build_policy, build_tokenizer, load_policy
from llds_core.training.micro_batches import rollout_columns, trajectory_reward
from llds_core.training.settings import SearchGRPOConfig, search_grpo_config
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.worlds.records import Question

GROUP = 4
PROMPTS = 4
TOKENIZER = build_tokenizer(["which city is where and why"] * 3, 300, TAGS)
POLICY = PolicyConfig(
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.15},
    **{"layers": 2, "heads": 2, "key_value_heads": 1},
)
_BASE = (
    *("training.warmup_steps=0", "training.learning_rate=5e-4", "training.save_every=100"),
    "rollout.max_action_tokens=8",
)


@cache
def _stored_policy() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    build_policy(POLICY, TOKENIZER, 0).save_pretrained(folder.name)
    TOKENIZER.save_pretrained(folder.name)
    return folder


def policy() -> torch.nn.Module:
    """The start policy, from disk: TRL loads its reference policy from the same place."""
    return load_policy(_stored_policy().name)[0]


def settings(folder: Path, *overrides: str, method="grpo", **direct: Any) -> SearchGRPOConfig:
    """Settings of the smoke profile: 16 trajectories, 2 epochs of 2 mini-batches of 2 x 4."""
    config = load_experiment(f"smoke/{method}", laid_over(_BASE, overrides))
    args = search_grpo_config(config, 0, folder)
    for name, value in direct.items():
        setattr(args, name, value)
    return args


def trajectory(random: np.random.Generator, question: int, sample: int, reward: float):
    """One to three actions with observations between them, all of random lengths."""
    prompt = np.random.default_rng(question).integers(2, len(TOKENIZER), 3 + question % 5).tolist()
    made = Trajectory(Question(str(question), "?", ("a",)), sample, prompt)
    count = int(random.integers(1, 4))
    for index in range(count):
        last = index == count - 1
        tokens = random.integers(2, len(TOKENIZER), int(random.integers(2, 9))).tolist()
        start = len(made.completion_ids)
        kind = "answer" if last else "search"
        hits = () if last else (Hit("p", "", " \n" if index else "text", 1.0),)
        action = Action(kind, "x", "x", start, start + len(tokens), not last, hits)
        made.add_action(action, tokens, [-1.0] * len(tokens))
        if last:
            made.answer = "a" if reward else "b"
            made.answer_span = (start + 1, start + len(tokens))
            made.stop_reason = "answer"
        else:
            observed = random.integers(2, len(TOKENIZER), int(random.integers(3, 13)))
            made.add_observation(observed.tolist())
            made.cut_observations += sample % 2
    made.reward, made.correct = reward, bool(reward)
    return made


def trajectories(step: int, prompts: int = PROMPTS, group: int = GROUP) -> list[Trajectory]:
    """Groups with mixed rewards; the last group of every step is all wrong."""
    random = np.random.default_rng(1000 + step)
    made = []
    for prompt in range(prompts):
        rewards = [float(i < 1 + prompt % (group - 1)) for i in random.permutation(group)]
        if prompt == prompts - 1:
            rewards = [0.0] * group
        made += [trajectory(random, prompt + 10 * step, i, r) for i, r in enumerate(rewards)]
    return made


def rollout(rows: Sequence[dict[str, Any]], model: torch.nn.Module, step: int) -> Rollout:
    made = trajectories(step, len(rows) // GROUP)
    assert len(made) == len(rows)
    return Rollout(made, 0.5, 0.1)


def _given(args: SearchGRPOConfig) -> dict[str, Any]:
    rows = range(args.max_steps // args.training.updates_per_rollout * PROMPTS)
    questions = Dataset.from_dict({"prompt": [f"q{i}" for i in rows], "question": list(rows)})
    given = {"model": policy(), "args": args, "processing_class": TOKENIZER}
    return given | {"train_dataset": questions}


def build(args: SearchGRPOConfig, cls: type = SearchGRPOTrainer, **options: Any) -> Any:
    return cls(**_given(args), **{"rollout": rollout} | options)


def stock(args: SearchGRPOConfig) -> GRPOTrainer:
    """TRL's own trainer on the same trajectories."""

    def rollout_func(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        step = trainer.state.global_step // args.training.updates_per_rollout + 1
        return rollout_columns(trajectories(step, len(prompts) // GROUP))

    rewards = [trajectory_reward]
    return GRPOTrainer(**_given(args), rollout_func=rollout_func, reward_funcs=rewards)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)
