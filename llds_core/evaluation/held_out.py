"""Held-out evaluation of a checkpoint, and asking it a single question.

Every question counts, none is dropped; questions are spread evenly over the kinds. Greedy decoding
is the headline, sampled decoding beside it; first without injected search failures, then with the
failures of training.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.evaluation.models import open_model
from llds_core.files import write_json
from llds_core.rollout.environment import Environment, build_environment, insisting
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.rewards import score
from llds_core.rollout.samplers import StopAtTag, TransformersSampler
from llds_core.runs import Run
from llds_core.seeding import numpy_generator, torch_generator
from llds_core.worlds.records import Question

_KIND = "kind"


def choose_questions(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Up to `limit` questions, spread as evenly over the kinds as they allow; deterministic in
    `seed`.
    """
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.metadata[_KIND]].append(question)
    shuffled = []
    for kind in sorted(by_kind):
        order = numpy_generator(seed, "evaluation", kind).permutation(len(by_kind[kind]))
        shuffled.append([by_kind[kind][i] for i in order])
    mixed = [
        group[rank]
        for rank in range(max(map(len, shuffled), default=0))
        for group in shuffled
        if rank < len(group)
    ]
    return mixed[:limit]


def run_questions(
    environment: Environment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    temperature: float,
    failure_rate: float = 0.0,
    sample: int = 0,
    seed: int = 0,
) -> list[Trajectory]:
    """One scored trajectory per question, at `temperature` (0 is greedy), with the searches that
    evaluation allows.
    """
    environment = environment.for_evaluation
    config = environment.config
    loop = environment.rollout_loop(tokenizer, seed=seed, failure_rate=failure_rate)
    stop = StopAtTag(tokenizer)
    trajectories: list[Trajectory] = []
    size = config.evaluation.batch_size
    for start in tqdm(range(0, len(questions), size), desc="questions", unit="batch"):
        generator = torch_generator(
            seed, "evaluation", "sampling", sample, start, device=str(model.device)
        )
        sampler = TransformersSampler(
            model, tokenizer, generator, temperature=temperature, stop=stop
        )
        tasks = [(question, sample) for question in questions[start : start + size]]
        trajectories += loop.run(tasks, sampler).trajectories
    for trajectory in trajectories:
        score(trajectory, config.reward)
    return trajectories


def summarise(trajectories: Sequence[Trajectory]) -> dict[str, dict[str, float | int]]:
    """Exact match by question kind, by hops and over all: `n`, `em`, `low`, `high` (95 %
    bootstrap), `searches`.
    """
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        metadata = trajectory.question.metadata
        for name in ("all", f"{metadata['hops']}-hop", metadata[_KIND]):
            groups[name].append(trajectory)
    return {name: _summary(group) for name, group in sorted(groups.items())}


def _summary(group: Sequence[Trajectory]) -> dict[str, float | int]:
    correct = np.array([float(t.correct) for t in group])
    low, high = interval(correct)
    searches = float(np.mean([t.searches for t in group]))
    return {
        "n": len(group),
        "em": float(correct.mean()),
        "low": low,
        "high": high,
        "searches": searches,
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (n,); the mean itself when they
    are all equal.
    """
    if len(values) < 2 or np.all(values == values[0]):
        return float(values.mean()), float(values.mean())
    result = bootstrap(
        (values,),
        np.mean,
        method="percentile",
        rng=numpy_generator(0, "bootstrap"),
        n_resamples=2000,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def evaluate_run(run: Run, checkpoint: str = "best", split: str = "test") -> Path:
    """Score a checkpoint of a run on held-out questions and write
    `evaluation-<checkpoint>-<split>.json` beside it.

    Raises:
        CheckpointError: when the checkpoint is missing or cannot be read.
        ConfigError: when the split holds no question.
    """
    config, folder = run.config, run.checkpoint(checkpoint)
    environment = build_environment(insisting(config))
    questions = choose_questions(
        getattr(environment.world, split), config.evaluation.questions, config.world.seed
    )
    if not questions:
        raise ConfigError(
            f"the {split} split of this world holds no question: raise world.{split}_fraction"
        )
    torch.set_num_threads(config.training.threads)
    opened = open_model(folder, config.training.dtype)
    model, tokenizer = opened.load()
    modes = {
        "greedy": (0.0, 0.0, 0),
        "greedy_with_failures": (0.0, config.retrieval.failure_rate, 0),
    }
    modes |= {
        f"sampled_{k}": (config.rollout.temperature, 0.0, k)
        for k in range(1, config.evaluation.samples + 1)
    }
    results: dict[str, Any] = {}
    for name, (temperature, failure_rate, sample) in modes.items():
        trajectories = run_questions(
            environment,
            model,
            tokenizer,
            questions,
            temperature=temperature,
            failure_rate=failure_rate,
            sample=sample,
            seed=config.world.seed,
        )
        results[name] = summarise(trajectories)
    target = (
        run.path if run.path.is_dir() else folder
    ) / f"evaluation-{Path(checkpoint).name}-{split}.json"
    write_json(
        target,
        {
            "experiment": config.name,
            "seed": run.seed,
            "checkpoint": folder.name,
            "model_digest": opened.digest,
            "max_searches": environment.for_evaluation.config.rollout.max_searches,
            "split": split,
            "questions": len(questions),
            "results": results,
        },
    )
    return target


def ask(
    run: Run, question: str, *, checkpoint: str = "best", temperature: float = 0.0
) -> Trajectory:
    """Let a trained agent answer `question` and return its trajectory (unscored: no accepted answer
    is known).

    Raises:
        ConfigError: for an empty question.
        CheckpointError: when the run has no checkpoint.
    """
    if not question.strip():
        raise ConfigError(
            'the question is empty: write it in quotes, e.g. "which continent is Homs in?"'
        )
    config, folder = run.config, run.checkpoint(checkpoint)
    environment = build_environment(insisting(config)).for_evaluation
    model, tokenizer = open_model(folder, config.training.dtype).load()
    loop = environment.rollout_loop(tokenizer, seed=run.seed, failure_rate=0.0)
    generator = torch_generator(run.seed, "ask", device=str(model.device))
    sampler = TransformersSampler(model, tokenizer, generator, temperature=temperature)
    item = Question(
        id="ask",
        question=question,
        golden_answers=("?",),
        metadata={_KIND: "ask", "hops": 0, "steps": []},
    )
    return loop.run([(item, 0)], sampler).trajectories[0]


__all__ = [
    "ask",
    "choose_questions",
    "evaluate_run",
    "interval",
    "run_questions",
    "summarise",
]


def evaluate_ends(run: Run) -> Iterator[Path]:
    """Score the best and the last checkpoint of a run on test questions; where it is longer than
    its profile plans and keeps all checkpoints, those of the planned steps too.
    """
    checkpoints = ["best", "last"]
    training, planned = run.config.training, load_experiment(run.config.name).training.steps
    keeps_all = training.keep_checkpoints * training.save_every >= training.steps
    if training.steps > planned and keeps_all:
        # Comparable with runs of the usual length.
        checkpoints += [f"best-{planned}", f"last-{planned}"]
    for checkpoint in checkpoints:
        yield evaluate_run(run, checkpoint)
