"""`train`: one experiment and seed, from the start policy to a finished run directory, resumable at
any moment.
"""

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llds_core.config.seeding import child_seed, numpy_generator, torch_generator
from llds_core.errors import ConfigError, RunError, TrainingDivergedError
from llds_core.files import file_sha256
from llds_core.rollout.environment import Environment, build_environment
from llds_core.rollout.loop import Rollout
from llds_core.rollout.prompts import prompt_text
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.rewards import overlong_punishment, score
from llds_core.rollout.samplers import (
    Sampler,
    StopAtTag,
    TransformersSampler,
    end_of_sequence_ids,
    rounded_weights,
)
from llds_core.rollout.vllm_sampler import Engine, VLLMSampler
from llds_core.runs import Run, RunDirectory
from llds_core.runs.checkpoints import checkpoint_steps, read_object
from llds_core.runs.policies import policy_digest
from llds_core.training.processes import Processes, check_world_size, ending_together
from llds_core.training.recorder import Recorder, note_collapse
from llds_core.training.settings import check_vllm, engine_options, open_engine, search_grpo_config
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import load_start_policy, start_policy
from llds_core.worlds.question_sets import MIX_FILE
from llds_core.worlds.records import Question

_logger = logging.getLogger("llds_core")


def train(run: Run, *, after_step: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Train `run`, or continue it, or return at once when it is complete.

    Args:
        run: what to train; its seed moves data order, sampling and injected search failures, while
            world and start policy stay.
        after_step: called with each step's metrics, after they are on disk.

    Raises:
        RunError: when the directory is in use, not writable or holds another configuration.
        CheckpointError: when the last checkpoint cannot be read.
        TrainingDivergedError: when updates stay non-finite, or dynamic sampling finds no groups.
    """
    config = run.config
    processes = check_world_size(config)
    if processes.decide(run.is_complete):
        return
    # Several processes cannot make a start policy: it must be there.
    makes = processes.count == 1 or not config.warm_starts
    processes.decide(lambda: start_policy(run) if makes else run.checkpoint("start"))
    command = f"python -m llds_core {shlex.join(run.command('train'))}"
    held: list[RunDirectory] = []
    processes.decide(lambda: held.append(RunDirectory(run.path, config, run.seed, command=command)))
    # The first process has the directory, and decides.
    directory = cast(RunDirectory, held[0] if held else None)
    with directory or nullcontext(), ending_together(processes):
        torch.set_num_threads(config.training.threads)
        done, resume, streams = processes.decide(lambda: _begin(run, directory))

        def is_over() -> bool:
            return processes.decide(lambda: note_collapse(directory, config))

        if is_over():
            return
        recorder = Recorder(directory, config, done, after_step=after_step) if held else None
        if recorder and resume:
            # A process killed right after its last save has not ranked it.
            recorder.saved(done)
        trainer = _build_trainer(run, streams, processes, recorder)
        trainer.is_over = is_over
        if resume:
            # Whole, as `check_checkpoint` has seen.
            extra = read_object(resume / "extra.json")
            trainer.nonfinite_in_a_row = extra["nonfinite_in_a_row"]
            _logger.info("continuing %s after step %d", run.path, done)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _begin(run: Run, directory: RunDirectory) -> tuple[int, Path | None, str]:
    """Steps that are behind the run, the checkpoint of the last one, and the random streams that it
    samples from: those it began with.
    """
    config, start = run.config, run.start_policy
    directory.update(start_policy=str(start))
    directory.record("policy", policy_digest(start))
    several = config.world_size > 1
    streams: str = config.rollout.streams
    if streams == "auto":
        # vLLM gives every trajectory a seed of its own.
        new = "trajectory" if several or config.sampler.backend == "vllm" else "rollout"
        begun = checkpoint_steps(directory.checkpoints)
        streams = directory.manifest.get("streams", "rollout") if begun else new
    if several and streams == "rollout":
        raise RunError(
            f"{directory.path} samples a whole rollout from one random stream, which "
            f"{config.world_size} processes cannot share: continue it with hardware.processes=1, "
            "or begin a run with rollout.streams=trajectory"
        )
    directory.update(streams=streams)
    return *directory.rewind(), streams


def _build_trainer(
    run: Run, streams: str, processes: Processes, recorder: Recorder | None
) -> SearchGRPOTrainer:
    config = run.config
    check_vllm(config, run.start_policy)
    arguments = search_grpo_config(config, run.seed, run.checkpoints)
    environment = build_environment(config)
    model, tokenizer = load_start_policy(run, environment)
    processes.decide(lambda: _record_data(cast(Recorder, recorder).directory, environment))
    rollout = SearchRollout(environment, tokenizer, run.seed, streams, processes.rank)
    with engine_options(config):
        trainer = SearchGRPOTrainer(
            model=model,
            args=arguments,
            train_dataset=training_rows(environment, run.seed, rollout.fitting),
            processing_class=tokenizer,
            rollout=rollout,
            on_step=recorder,
            callbacks=[recorder] if recorder else [],
        )
    if config.sampler.backend == "vllm":
        rollout.engine = open_engine(trainer)
    return trainer


def _record_data(directory: RunDirectory, environment: Environment) -> None:
    """Note what is searched and asked, and refuse other data than the run began with."""
    directory.record("corpus", environment.retriever.identity)
    if environment.world.name == "files":
        folder = Path(environment.config.data.folder)
        directory.record("train_sha256", file_sha256(folder / MIX_FILE))


def training_rows(environment: Environment, seed: int, fitting: Sequence[int]) -> Dataset:
    """Prompts of a whole run in order: every training question of the places `fitting` once before
    any comes again.

    A longer run begins with the rows of a shorter one.
    """
    config = environment.config
    questions = environment.world.train
    per_step = config.rollout.prompts_per_rollout
    if len(fitting) < per_step:
        raise ConfigError(
            f"rollout.prompts_per_rollout={per_step} exceeds the {len(fitting)} training "
            "questions: lower it or raise world.cities"
        )
    needed = config.training.steps * per_step
    order: list[int] = []
    for epoch in range(-(-needed // len(fitting))):
        order += numpy_generator(seed, "data-order", epoch).permutation(fitting).tolist()
    order = order[:needed]
    prompts = [prompt_text(questions[i].question, environment.template) for i in order]
    return Dataset.from_dict({"prompt": prompts, "question": order})


@dataclass
class SearchRollout:
    """The trainer's rollout function: samples trajectories of the given rows and rewards them.

    Attributes:
        streams: whether each `rollout` or each `trajectory` has a random stream.
        rank: of this process among those that share a rollout equally, in order.
        engine: vLLM's, once the trainer has built it; without, the trained model itself samples.
    """

    environment: Environment
    tokenizer: PreTrainedTokenizerBase
    seed: int
    streams: str = "rollout"
    rank: int = 0
    engine: Engine | None = None

    def __post_init__(self) -> None:
        self._stop = StopAtTag(self.tokenizer)
        self._loop = self.environment.rollout_loop(
            self.tokenizer,
            seed=self.seed,
            failure_rate=self.environment.config.retrieval.failure_rate,
        )

    @cached_property
    def fitting(self) -> list[int]:
        """Places of the training questions whose prompts leave room for an action; a `ConfigError`
        where others may not be skipped.
        """
        skip = self.environment.config.data.too_long == "skip"
        return self._loop.fitting(self.environment.world.train, skip=skip)

    def __call__(
        self, rows: Sequence[dict[str, Any]], model: PreTrainedModel, step: int
    ) -> Rollout:
        """Return a rewarded trajectory per row; row i of all is sample `i % group_size`."""
        config, questions = self.environment.config, self.environment.world.train
        numbers = range(self.rank * len(rows), (self.rank + 1) * len(rows))
        tasks = [
            (questions[row["question"]], number % config.rollout.group_size)
            for number, row in zip(numbers, rows, strict=True)
        ]
        rounded = rounded_weights(model, config.sampler.rounding)
        is_half = config.training.dtype == "bfloat16" and self.engine is None
        # Around all actions of the rollout: autocast keeps its copies of the weights until it ends.
        half = torch.autocast(model.device.type, torch.bfloat16, enabled=is_half)
        with self.engine.rollout() if self.engine else rounded, half:
            rollout = self._sample(tasks, model, step, numbers)
            if config.rollout.sampling_rounds > 1:
                rollout = self._replace_uniform(rollout, model, step, numbers)
        return rollout

    def _sample(
        self,
        tasks: Sequence[tuple[Question, int]],
        model: PreTrainedModel,
        step: int,
        numbers: Sequence[int],
    ) -> Rollout:
        """Sample and reward; the `numbers` of the tasks tell their random streams apart."""
        config = self.environment.config
        rollout = self._loop.run(tasks, self._sampler(model, step, numbers), step=step)
        budget = config.rollout.max_action_tokens * (config.rollout.max_searches + 1)
        credits = config.reward
        for trajectory in rollout.trajectories:
            score(trajectory, credits)
            if credits.overlong_weight > 0:
                tokens = sum(trajectory.response_mask)
                punishment = overlong_punishment(tokens, budget, credits.overlong_share)
                trajectory.reward += credits.overlong_weight * punishment
        return rollout

    def _replace_uniform(
        self, rollout: Rollout, model: PreTrainedModel, step: int, numbers: Sequence[int]
    ) -> Rollout:
        """DAPO's dynamic sampling: where all of a group is correct, or none, another question takes
        its place. Which one depends on step, round and place, not on the processes.
        """
        limits, questions = self.environment.config.rollout, self.environment.world.train
        size, total = limits.group_size, self.environment.config.trajectories_per_rollout
        kept, parts = list(rollout.trajectories), [rollout]
        dropped: list[Trajectory] = []
        for number in range(limits.sampling_rounds):
            uniform = [
                place
                for start in range(0, len(kept), size)
                if len({t.correct for t in kept[start : start + size]}) == 1
                for place in range(start, start + size)
            ]
            if not uniform:
                seconds = sum(part.seconds for part in parts)
                waiting = sum(part.retrieval_seconds for part in parts)
                return Rollout(kept, seconds, waiting, dropped)
            if number + 1 == limits.sampling_rounds:
                break
            drawn = numpy_generator(self.seed, "dynamic-sampling", step, number).integers(
                len(self.fitting), size=limits.prompts_per_rollout
            )
            places = [self.fitting[drawn[numbers[p] // size]] for p in uniform]
            samples = [numbers[place] % size for place in uniform]
            tasks = [(questions[p], sample) for p, sample in zip(places, samples, strict=True)]
            streams = [numbers[place] + (number + 1) * total for place in uniform]
            parts.append(self._sample(tasks, model, step, streams))
            for place, trajectory in zip(uniform, parts[-1].trajectories, strict=True):
                dropped.append(kept[place])
                kept[place] = trajectory
        raise TrainingDivergedError(
            f"{len(uniform) // size} of {len(kept) // size} groups were all correct or all wrong "
            f"after rollout.sampling_rounds={limits.sampling_rounds} rounds at step {step}: raise "
            "it, or train without dynamic sampling; the last checkpoint is intact"
        )

    def _sampler(self, model: PreTrainedModel, step: int, numbers: Sequence[int]) -> Sampler:
        config = self.environment.config
        limits = config.rollout
        if self.engine is not None:
            return VLLMSampler(
                self.engine,
                self._stop,
                end_of_sequence_ids(model.generation_config.eos_token_id, self.tokenizer),
                lambda row, turn: child_seed(self.seed, "sampling", step, numbers[row], turn),
                temperature=limits.temperature,
                top_p=limits.top_p,
                unused=range(len(self.tokenizer), model.config.vocab_size),
            )
        generator, streams = None, None
        if self.streams == "trajectory":
            streams = [numpy_generator(self.seed, "sampling", step, row) for row in numbers]
        else:
            total = config.trajectories_per_rollout
            again = (numbers[0] // total,) if numbers[0] >= total else ()  # rounds after the first
            generator = torch_generator(
                self.seed, "sampling", step, *again, device=str(model.device)
            )
        return TransformersSampler(
            model,
            self.tokenizer,
            generator,
            temperature=limits.temperature,
            top_p=limits.top_p,
            stop=self._stop,
            streams=streams,
            autocast=torch.bfloat16 if config.training.dtype == "bfloat16" else None,
        )
