"""Any model over questions: greedy and sampled, resumable, in shards, every trajectory on disk.

An answer depends on its question, not on the batch around it: sampled decoding draws from a stream
named by seed, mode, benchmark, question and sample. Batch size, shards and kills therefore change
no draw. Padding changes the order in which numbers are added, so two batchings give equal text up
to floating-point rounding: where two tokens are almost equally likely, rounding may decide.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from llds_core.config.seeding import child_seed, numpy_generator, torch_generator
from llds_core.errors import ConfigError, did_you_mean
from llds_core.evaluation.agents import BASELINES, Agent, Names, prompt_digest
from llds_core.evaluation.models import Model
from llds_core.evaluation.predictions import POLICY, Key, Predictions, Row, Shard
from llds_core.evaluation.scores import choose, score_rows, summarise, too_long
from llds_core.files import append_lines, write_json, write_table
from llds_core.machine.memory import evaluation_share
from llds_core.rollout.environment import Environment
from llds_core.rollout.samplers import Sampler, StopAtTag, TransformersSampler
from llds_core.rollout.vllm_sampler import MOST_SEQUENCES, VLLMSampler, own_sampler
from llds_core.runs.provenance import command_line, git_state, hardware, package_versions
from llds_core.worlds.records import Question

ROOT = Path("results/evaluations")
MODES = GREEDY, FAILING, SAMPLED = "greedy", "greedy_with_failures", "sampled"
BASELINE_COLUMNS = (
    *("baseline", "benchmark", "n", "em", "em_low", "em_high", "f1", "sub_em"),
    *("valid_answers", "searches", "mode", "em_tagged"),
)
_LIMITS = ("max_searches", "max_action_tokens", "max_observation_tokens", "max_total_tokens")


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked, and how: of `MODES` greedy decoding, the same with the search failures of
    training, and sampled decoding.

    `draws` says what has a random stream of its own in sampled decoding: a `question`, or a `batch`
    of them in their order, drawn from the whole distribution whatever `rollout.top_p` is, as the
    published held-out scores of runs are.
    """

    agent: str = POLICY  # or one of `BASELINES`
    benchmarks: tuple[str, ...] = ()  # none for all of the world
    limit: int | None = None  # questions in all, spread evenly; None for every question
    modes: tuple[str, ...] = (GREEDY,)
    samples: int = 1  # answers per question with sampled decoding
    split: Literal["dev", "test"] = "test"
    seed: int = 0  # root of sampled decoding and of search failures
    draws: Literal["question", "batch"] = "question"

    def __post_init__(self) -> None:
        names = {"baseline": ([self.agent], (POLICY, *BASELINES)), "mode": (self.modes, MODES)}
        for what, (given, valid) in names.items():
            for name in given:
                if name not in valid:
                    raise ConfigError(f'unknown {what} "{name}": {did_you_mean(name, valid)}')
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ConfigError(f"modes are {','.join(self.modes)!r}: name each mode once")


@dataclass(frozen=True)
class Evaluation:
    """A model, questions and how they are asked; `answer` keeps every answer in a folder. Of the
    environment it takes what `Environment.for_evaluation` gives.
    """

    environment: Environment
    model: Model
    plan: EvaluationPlan
    questions: Sequence[Question]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that changes an answer. Threads, device and shards do not."""
        config, plan = self.environment.config, self.plan
        sampled, failing = SAMPLED in plan.modes, FAILING in plan.modes
        batches = sampled and plan.draws == "batch"
        cut = config.rollout.observation_cut
        names = [*_LIMITS, *(["temperature"] if sampled else [])]
        names += ["top_p"] if sampled and not batches else []
        asked = [[q.metadata["kind"], q.id, q.question, *q.golden_answers] for q in self.questions]
        return {
            "model": self.model.digest,
            "dtype": config.training.dtype,
            "agent": plan.agent,
            "prompt": prompt_digest(plan.agent, self.environment.template, config.rollout.feedback),
            "benchmarks": ",".join(plan.benchmarks) or "all",
            "split": plan.split,
            "limit": plan.limit,
            "questions": _digits(asked, 16),
            "modes": ",".join(plan.modes),
            "samples": plan.samples if sampled else 0,
            "seed": plan.seed if sampled or failing else None,
            "retriever": self.environment.retriever.identity,
            "retrieval.top_k": config.retrieval.top_k,
            **{f"rollout.{name}": getattr(config.rollout, name) for name in names},
            **({"rollout.observation_cut": cut} if cut != "text" else {}),
            **({"retrieval.failure_rate": config.retrieval.failure_rate} if failing else {}),
            **({"evaluation.batch_size": config.evaluation.batch_size} if batches else {}),
            **({"sampler": "vllm"} if self._served else {}),
        }

    @property
    def _served(self) -> Path | None:
        """The folder of a model that vLLM serves; transformers decodes the packaged one."""
        return self.model.folder if self.environment.config.sampler.backend == "vllm" else None

    @property
    def digits(self) -> str:
        """Eight hex digits of `identity`, for folders."""
        return _digits(self.identity, 8)

    def _asked(self, shard: Shard | None = None) -> dict[Key, Question]:
        """What is to be answered, in order; of a shard every n-th question."""
        first, step = shard or (1, 1)
        samples = range(1, self.plan.samples + 1)
        return {
            (question.metadata["kind"], question.id, mode, sample): question
            for mode in self.plan.modes
            for sample in (samples if mode == SAMPLED else [0])
            for question in self.questions[first - 1 :: step]
        }

    def answer(self, folder: Path, *, shard: Shard | None = None) -> list[Row]:
        """Answer what `folder` lacks, of a shard if given; return all answers in order."""
        config = self.environment.config
        if config.retrieval.backend == "server" and config.service.on_failure == "empty":
            raise ConfigError(
                "service.on_failure=empty would score questions whose search was never answered: "
                "set it to raise (answers so far are kept, and the same command goes on)"
            )
        about = {"command": command_line(), "profile": config.profile}
        predictions, asked = Predictions(folder, shard), self._asked(shard)
        predictions.claim(self.identity, about | self.model.about | _code())
        with predictions.writing():
            done = predictions.read()
            if asked.keys() - done.keys():
                for lines in self._rest(asked, done):
                    append_lines(predictions.path, lines.values())
                    done |= lines
        return [done[key] for key in asked]

    def _rest(
        self, asked: Mapping[Key, Question], done: Mapping[Key, Row]
    ) -> Iterator[dict[Key, Row]]:
        """Batch by batch the answers that are not `done`."""
        config, plan = self.environment.config, self.plan
        torch.set_num_threads(config.training.threads)
        size = config.evaluation.batch_size
        with self._decoder() as (tokenizer, sampler_of):
            agent = Agent(plan.agent, self.environment, tokenizer)
            bar = tqdm(total=len(asked.keys() - done.keys()), desc=plan.agent, unit="answer")
            for (mode, _), group in groupby(asked, key=lambda key: key[2:]):
                sampler_for = partial(sampler_of, mode)
                rate = config.retrieval.failure_rate if mode == FAILING else 0.0
                loop = agent.loop(sampler_for, rate, plan.seed)
                # Questions that share a stream are answered in the batches that they were first in.
                keys = [key for key in group if plan.draws == "batch" or key not in done]
                for start in range(0, len(keys), size):
                    batch = keys[start : start + size]
                    if done.keys() >= set(batch):
                        continue
                    started = time.perf_counter()
                    sampler = sampler_for([(key[0], key[1], key[3]) for key in batch], start)
                    made = loop.run([(asked[key], key[3]) for key in batch], sampler).trajectories
                    seconds = (time.perf_counter() - started) / len(batch)
                    lines = {
                        key: agent.prediction(key, trajectory, seconds)
                        for key, trajectory in zip(batch, made, strict=True)
                        if key not in done
                    }
                    bar.update(len(lines))
                    yield lines
            bar.close()

    @contextmanager
    def _decoder(self) -> Iterator[tuple[PreTrainedTokenizerBase, Callable[..., Sampler]]]:
        """The tokenizer of the model, and what makes a sampler of a mode and names."""
        if self._served is None:
            _, tokenizer = self.model.load()
            yield tokenizer, partial(self._sampler, StopAtTag(tokenizer))
            return
        config, on_gpu = self.environment.config, torch.cuda.is_available()
        options: dict[str, Any] = {
            "dtype": config.training.dtype,
            "tensor_parallel_size": config.sampler.tensor_parallel,
            "max_num_seqs": min(config.evaluation.batch_size, MOST_SEQUENCES),
            **({"gpu_memory_utilization": evaluation_share(config)} if on_gpu else {}),
        }
        with own_sampler(self._served, **options) as (greedy, tokenizer):
            yield tokenizer, partial(self._vllm_sampler, greedy)

    def _sampler(
        self, stop: StopAtTag, mode: str, names: Sequence[Names], start: int = 0
    ) -> Sampler:
        """Sampler of a batch whose rows are named by `names`; the first is the question `start`."""
        config, seed = self.environment.config.rollout, self.plan.seed
        model, tokenizer = self.model.load()
        make = partial(TransformersSampler, model, tokenizer, stop=stop)
        if mode != SAMPLED:
            return make(None, temperature=0.0)
        if self.plan.draws == "batch":
            names_of_draw = (seed, "evaluation", "sampling", names[0][-1], start)
            stream = torch_generator(*names_of_draw, device=str(model.device))
            return make(stream, temperature=config.temperature)
        streams = [numpy_generator(seed, "benchmarks", mode, *name) for name in names]
        return make(None, temperature=config.temperature, top_p=config.top_p, streams=streams)

    def _vllm_sampler(
        self, greedy: VLLMSampler, mode: str, names: Sequence[Names], start: int = 0
    ) -> Sampler:
        """The same from vLLM: every action has a seed of its own, whatever has a stream there."""
        if mode != SAMPLED:
            return greedy
        config, plan = self.environment.config.rollout, self.plan
        return replace(
            greedy,
            seed_of=lambda row, turn: child_seed(plan.seed, "benchmarks", mode, *names[row], turn),
            temperature=config.temperature,
            top_p=config.top_p if plan.draws == "question" else 1.0,
        )


def evaluate_questions(
    environment: Environment,
    model: Model,
    plan: EvaluationPlan,
    *,
    out: Path | None = None,
    shard: Shard | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Answer every question that has no answer yet, write `summary.json`, and return the folder.

    Args:
        out: None for `results/evaluations/<profile>/<model>/<agent>-<digits>`, where the same
            command finds it again.
        shard: answer only its questions, and sum up nothing.
        about: further entries of the summary, such as the method that was trained.
    """
    environment = environment.for_evaluation
    config, world = environment.config, environment.world
    questions = choose(world, plan.split, plan.benchmarks, plan.limit, config.world.seed)
    evaluation = Evaluation(environment, model, plan, questions)
    named = f"{model.name}-{model.digest[:8]}"
    folder = out or ROOT / config.profile / named / f"{plan.agent}-{evaluation.digits}"
    rows = evaluation.answer(folder, shard=shard)
    if shard is None:
        modes = summarise(rows, world.name)
        summary = {
            "profile": config.profile,
            "agent": plan.agent,
            **(about or {}),
            **model.about,
            "world": world.name,
            "benchmarks": [*modes[plan.modes[0]]["benchmarks"]],
            "questions": len(questions),
            "answers": len(rows),
            "too_long": too_long(rows),
            "seconds": round(sum(row["seconds"] for row in rows), 1),
            "identity": evaluation.identity,
            "modes": modes,
            **_code(),
        }
        write_json(folder / "summary.json", summary)
    return folder


def run_baselines(
    environment: Environment, model: Model, plan: EvaluationPlan, names: Sequence[str], folder: Path
) -> Path:
    """Answer with each of the baselines `names`, whatever agent `plan` names. Write `baselines.csv`
    (a row per baseline, mode and benchmark, then the averages) and `baselines.json` (the summaries
    without scores) into `folder`, and return the table.
    """
    plans = [replace(plan, agent=name) for name in names]
    folders = [evaluate_questions(environment, model, each) for each in plans]
    summaries = [json.loads((found / "summary.json").read_text("utf-8")) for found in folders]
    rows = [row for summary in summaries for row in score_rows(summary)]
    path = folder / "baselines.csv"
    write_table(path, pd.DataFrame(rows, columns=BASELINE_COLUMNS))
    for summary in summaries:
        del summary["modes"]
    write_json(folder / "baselines.json", {"baselines": dict(zip(names, summaries, strict=True))})
    return path


def _digits(value: object, count: int) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:count]


def _code() -> dict[str, Any]:
    return {
        "schema_version": 1,
        **git_state(),
        "packages": package_versions(),
        "hardware": hardware(),
    }
