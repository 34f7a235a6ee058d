"""Any model over benchmarks: greedy and sampled, resumable, in shards, every trajectory on disk.

What an answer depends on is the question, not the batch it is in: sampled decoding draws from a
stream named by seed, mode, benchmark, question and sample. Batch size, shards and kills therefore
change no draw. Padding changes the order in which a row's numbers are added, so that two batchings
give equal text up to the rounding of floats: where two tokens are all but equally likely, rounding
may decide.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config import ExperimentConfig
from llds_core.errors import ConfigError, did_you_mean
from llds_core.evaluation.agents import (
    BASELINES,
    POLICY,
    Names,
    agent_loop,
    answer_of,
    prompt_digest,
    searches_of,
    segments,
)
from llds_core.evaluation.models import Model, describe
from llds_core.evaluation.predictions import (
    Key,
    PredictionWriter,
    Shard,
    locked,
    merge,
    open_evaluation,
    predictions_file,
    read_predictions,
)
from llds_core.evaluation.scores import score_answer, summarise_predictions
from llds_core.evaluation.suites import benchmark_names, benchmark_of, choose, digest
from llds_core.files import write_json
from llds_core.rollout.environment import Environment
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.samplers import Sampler, StopAtTag, TransformersSampler
from llds_core.runs.provenance import command_line, git_state, hardware, package_versions
from llds_core.seeding import numpy_generator
from llds_core.worlds.records import Question

ROOT = Path("results/evaluations")
MODES = ("greedy", "sampled")
SCHEMA_VERSION = 1
_LIMITS = ("max_searches", "max_action_tokens", "max_observation_tokens", "max_total_tokens")
_SAMPLING = ("temperature", "top_p")


@dataclass(frozen=True)
class Plan:
    """What is asked, and how.

    Attributes:
        agent: `policy`, the trained protocol, or one of `BASELINES`.
        benchmarks: names; none for all of the world.
        limit: questions in all, spread evenly over the benchmarks; None for every question.
        modes: of `greedy` and `sampled`.
        samples: answers per question with sampled decoding.
        split: `dev` or `test`.
        seed: root seed of sampled decoding.

    Raises:
        ConfigError: for an unknown agent or mode, or a number below 1.
    """

    agent: str = POLICY
    benchmarks: tuple[str, ...] = ()
    limit: int | None = None
    modes: tuple[str, ...] = ("greedy",)
    samples: int = 1
    split: Literal["dev", "test"] = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.agent != POLICY and self.agent not in BASELINES:
            raise ConfigError(
                f'unknown baseline "{self.agent}": {did_you_mean(self.agent, BASELINES)}'
            )
        for mode in self.modes:
            if mode not in MODES:
                raise ConfigError(f'unknown mode "{mode}": {did_you_mean(mode, MODES)}')
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ConfigError(f"modes are {','.join(self.modes)!r}: name each mode once")
        for name, value in (("limit", self.limit), ("samples", self.samples)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}: set it to 1 or more")


@dataclass(frozen=True)
class _Task:
    question: Question
    mode: str
    sample: int

    @property
    def key(self) -> Key:
        return (benchmark_of(self.question), self.question.id, self.mode, self.sample)


def evaluate_benchmarks(
    environment: Environment,
    model: Model,
    plan: Plan,
    *,
    out: Path | None = None,
    shard: Shard | None = None,
    evaluate: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Answer every question that has no answer yet, and sum up.

    Args:
        environment: world and search engine.
        model: what answers.
        plan: what is asked.
        out: folder; None for `results/evaluations/<profile>/<model>/<agent>-<digits>`.
        shard: number from 1 and how many: answer every n-th question, and sum up nothing.
        evaluate: False only merges shards and sums up.
        about: entries that the summary gets besides, such as the method that was trained.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        ConfigError: for an unknown benchmark, one without questions, a shard that does not exist,
            or searches that may be lost.
        RunError: when the folder holds another evaluation, is being written, or cannot be.
        DataError: when a file there is damaged, or answers are missing.
        CheckpointError: when the model cannot be loaded.
    """
    environment = environment.for_evaluation
    config = environment.config
    if config.retrieval.backend == "server" and config.service.on_failure == "empty":
        raise ConfigError(
            "service.on_failure=empty would score questions whose search was never answered: set "
            "it to raise (answers so far are kept, and the same command goes on)"
        )
    if shard and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"--shard is {shard[0]}/{shard[1]}: count from 1/{shard[1]}")
    questions = choose(
        environment.world, plan.split, plan.benchmarks, plan.limit, config.world.seed
    )
    identity = _identity(environment, model, plan, questions)
    folder = out or default_folder(config, model, plan, identity)
    made_by = {"command": command_line(), "profile": config.profile} | describe(model) | _code()
    open_evaluation(folder, identity, made_by)
    tasks = [task for _, task in _tasks(plan, questions)]
    keys = [task.key for task in tasks]
    mine = [task for index, task in _tasks(plan, questions) if _is_mine(index, shard)]
    path = predictions_file(folder, shard)
    with locked(path):
        if shard:
            done = read_predictions(predictions_file(folder), keys) | read_predictions(path, keys)
        else:
            done = merge(folder, keys)
        left = [task for task in mine if task.key not in done]
        if left and evaluate:
            _answer(environment, model, plan, left, path, progress=progress)
        if shard is None:
            rows = list(read_predictions(path, keys).values())
            scores = summarise_predictions(rows, keys, environment.world.name)
            summary = {"profile": config.profile, "agent": plan.agent} | dict(about or {})
            summary |= describe(model) | _counts(environment, rows)
            summary |= {"identity": identity, "modes": scores} | _code()
            write_json(folder / "summary.json", summary)
    return folder


def default_folder(
    config: ExperimentConfig, model: Model, plan: Plan, identity: Mapping[str, Any]
) -> Path:
    """Where an evaluation goes that is given no folder: the same command finds it again, another
    evaluation has another one.
    """
    digits = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    return ROOT / config.profile / model.label / f"{plan.agent}-{digits}"


def _identity(
    environment: Environment, model: Model, plan: Plan, questions: Sequence[Question]
) -> dict[str, Any]:
    """Everything that changes an answer. Batch size, threads, device and shards do not."""
    config = environment.config
    rollout = config.rollout
    names = (*_LIMITS, *_SAMPLING) if "sampled" in plan.modes else _LIMITS
    return {
        "model": model.digest,
        "dtype": config.training.dtype,
        "agent": plan.agent,
        "prompt": prompt_digest(plan.agent, rollout),
        "benchmarks": ",".join(plan.benchmarks) or "all",
        "split": plan.split,
        "limit": plan.limit,
        "questions": digest(questions),
        "modes": ",".join(plan.modes),
        "samples": plan.samples if "sampled" in plan.modes else 0,
        "seed": plan.seed if "sampled" in plan.modes else None,
        "retriever": environment.retriever.identity,
        "retrieval.top_k": config.retrieval.top_k,
    } | {f"rollout.{name}": getattr(rollout, name) for name in names}


def _tasks(plan: Plan, questions: Sequence[Question]) -> list[tuple[int, _Task]]:
    """What is to be answered, with the number of its question."""
    samples = {"greedy": [0], "sampled": list(range(1, plan.samples + 1))}
    return [
        (index, _Task(question, mode, sample))
        for mode in plan.modes
        for sample in samples[mode]
        for index, question in enumerate(questions)
    ]


def _is_mine(index: int, shard: Shard | None) -> bool:
    return shard is None or index % shard[1] == shard[0] - 1


def _answer(
    environment: Environment,
    model: Model,
    plan: Plan,
    tasks: Sequence[_Task],
    path: Path,
    *,
    progress: bool,
) -> None:
    config = environment.config
    torch.set_num_threads(config.training.threads)
    network, tokenizer = model.load()
    stop = StopAtTag(tokenizer)
    bar = tqdm(total=len(tasks), disable=not progress, desc=plan.agent, unit="answer")
    with PredictionWriter(path) as writer, bar:
        for mode, of_mode in groupby(tasks, key=lambda task: task.mode):
            sampler_for = partial(_sampler, network, tokenizer, stop, config, mode, plan.seed)
            loop = agent_loop(plan.agent, environment, tokenizer, sampler_for)
            left = list(of_mode)
            size = config.evaluation.batch_size
            for batch in (left[start : start + size] for start in range(0, len(left), size)):
                started = time.perf_counter()
                sampler = sampler_for([(*task.key[:2], task.sample) for task in batch])
                made = loop.run([(task.question, task.sample) for task in batch], sampler)
                seconds = (time.perf_counter() - started) / len(batch)
                pairs = zip(batch, made.trajectories, strict=True)
                writer.append(
                    prediction(plan.agent, task.key, trajectory, tokenizer, seconds)
                    for task, trajectory in pairs
                )
                bar.update(len(batch))


def _sampler(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop: StopAtTag,
    config: ExperimentConfig,
    mode: str,
    seed: int,
    names: Sequence[Names],
) -> Sampler:
    streams = [numpy_generator(seed, "benchmarks", mode, *parts) for parts in names]
    temperature, top_p = (config.rollout.temperature, config.rollout.top_p)
    if mode == "greedy":
        temperature, top_p = 0.0, 1.0
    return TransformersSampler(
        network, tokenizer, None, temperature=temperature, top_p=top_p, stop=stop, streams=streams
    )


def prediction(
    agent: str,
    key: Key,
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    seconds: float,
) -> dict[str, Any]:
    """One line of predictions."""
    question = trajectory.question
    answer, status = answer_of(agent, trajectory, tokenizer)
    return {
        "benchmark": key[0],
        "id": key[1],
        "mode": key[2],
        "sample": key[3],
        "question": question.question,
        "golden_answers": list(question.golden_answers),
        "prediction": answer,
        "status": status,
        **score_answer(answer, question.golden_answers),
        "searches": searches_of(agent, trajectory),
        "seconds": round(seconds, 3),
        "segments": segments(agent, trajectory, tokenizer),
    }


def _counts(environment: Environment, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    world = environment.world.name
    present = {row["benchmark"] for row in rows}
    return {
        "world": world,
        "benchmarks": [name for name in benchmark_names(world) if name in present],
        "questions": len({(row["benchmark"], row["id"]) for row in rows}),
        "answers": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _code() -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **git_state(),
        "packages": package_versions(),
        "hardware": hardware(),
    }
