"""`train`: one experiment and seed, from the start policy to a finished run directory, resumable at
any moment.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from llds_core.checkpoints import (
    check_checkpoint,
    checkpoint_path,
    checkpoint_steps,
    read_checkpoint_extra,
    remove_leftovers,
    rotate_checkpoints,
)
from llds_core.config import ExperimentConfig
from llds_core.diagnostics.phases import collapse_step
from llds_core.errors import ConfigError
from llds_core.rollout.loop import Rollout
from llds_core.rollout.protocol import Trajectory
from llds_core.rollout.samplers import StopAtTag, TransformersSampler
from llds_core.rollout.scoring import score
from llds_core.runs import RunDirectory, is_complete, read_metrics, run_path
from llds_core.seeding import numpy_generator, torch_generator
from llds_core.training.environment import Environment, build_environment
from llds_core.training.settings import search_grpo_config
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import load_start_policy, warmstart, warmstart_policy_path
from llds_core.worlds.prompts import prompt_text

_logger = logging.getLogger("llds_core")
BEST_WINDOW = 4  # steps whose mean reward ranks a checkpoint


def train(
    config: ExperimentConfig,
    seed: int,
    run_root: Path,
    *,
    overrides: Sequence[str] = (),
    progress: bool = True,
    after_step: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train `config` with `seed`, or continue, or return at once when the run is complete.

    Args:
        config: the resolved experiment.
        seed: moves data order, sampling and injected search failures; world and start policy stay.
        run_root: folder of all runs.
        overrides: as given by the user; they name the run directory.
        progress: show a progress bar.
        after_step: called with each step's metrics, after they are on disk.

    Returns:
        The run directory.

    Raises:
        RunError: when the directory is in use, not writable or holds another configuration.
        CheckpointError: when the last checkpoint cannot be read.
        TrainingDivergedError: when updates stay non-finite.
    """
    path = run_path(run_root, config, seed, overrides)
    if is_complete(path, config):
        return path
    if not config.policy.path:
        warmstart(config, run_root, progress=progress)
    with RunDirectory(
        path, config, seed, command=_command(config, seed, run_root, overrides)
    ) as run:
        torch.set_num_threads(config.training.threads)
        run.update(start_policy=str(warmstart_policy_path(run_root, config)))
        remove_leftovers(run.checkpoints)
        steps = checkpoint_steps(run.checkpoints)
        resume = checkpoint_path(run.checkpoints, steps[-1]) if steps else None
        done = steps[-1] if steps else 0
        if resume:
            check_checkpoint(resume)
        run.truncate(done)
        if _has_collapsed(run, config):
            run.collapsed = True
            return path
        recorder = _Recorder(run, config, done, progress=progress, after_step=after_step)
        trainer = _build_trainer(config, seed, run, run_root, recorder)
        if resume:
            # A process killed right after its last save has not ranked it.
            recorder.saved(done)
            trainer.nonfinite_in_a_row = read_checkpoint_extra(resume)["nonfinite_in_a_row"]
            _logger.info("continuing %s after step %d", path, done)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return path


def _has_collapsed(run: RunDirectory, config: ExperimentConfig) -> bool:
    """Whether a run that is to stop after its collapse has proved it."""
    rows = read_metrics(run.path)
    if not config.diagnostics.stop_after_collapse or not rows:
        return False
    rewards = pd.Series([row["reward"] for row in rows], [row["step"] for row in rows])
    return collapse_step(rewards, config.diagnostics.window) is not None


def _command(config: ExperimentConfig, seed: int, run_root: Path, overrides: Sequence[str]) -> str:
    return " ".join(
        [
            "python -m llds_core train",
            config.name,
            *overrides,
            f"--seed {seed}",
            f"--run-root {run_root}",
        ]
    )


def _build_trainer(
    config: ExperimentConfig,
    seed: int,
    run: RunDirectory,
    run_root: Path,
    recorder: "_Recorder",
) -> SearchGRPOTrainer:
    environment = build_environment(config)
    model, tokenizer = load_start_policy(environment, run_root)
    run.record_corpus(environment.retriever.identity)
    rollout = SearchRollout(environment, tokenizer, seed)
    return SearchGRPOTrainer(
        model=model,
        args=search_grpo_config(config, seed, run.checkpoints),
        train_dataset=training_rows(environment, seed),
        processing_class=tokenizer,
        rollout=rollout,
        on_step=recorder,
        callbacks=[recorder.callback()],
    )


def training_rows(environment: Environment, seed: int) -> Dataset:
    """Prompts of a whole run in order: every training question once before any comes again.

    A longer run begins with the rows of a shorter one.
    """
    config = environment.config
    questions = environment.world.train
    needed = config.training.steps * config.rollout.prompts_per_rollout
    if len(questions) < config.rollout.prompts_per_rollout:
        raise ConfigError(
            f"rollout.prompts_per_rollout={config.rollout.prompts_per_rollout} exceeds the "
            f"{len(questions)} training "
            "questions: lower it or raise world.cities"
        )
    order: list[int] = []
    epoch = 0
    while len(order) < needed:
        order += numpy_generator(seed, "data-order", epoch).permutation(len(questions)).tolist()
        epoch += 1
    order = order[:needed]
    return Dataset.from_dict(
        {
            "prompt": [prompt_text(questions[i].question, config.rollout.prompt) for i in order],
            "question": order,
        }
    )


class SearchRollout:
    """The trainer's rollout function: samples trajectories of the given rows and rewards them."""

    def __init__(
        self, environment: Environment, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> None:
        self._environment = environment
        self._tokenizer = tokenizer
        self._seed = seed
        self._stop = StopAtTag(tokenizer)
        failure_rate = environment.config.retrieval.failure_rate
        self._loop = environment.rollout_loop(tokenizer, seed=seed, failure_rate=failure_rate)

    def __call__(
        self, rows: Sequence[dict[str, Any]], model: PreTrainedModel, step: int
    ) -> Rollout:
        """Return a rewarded trajectory per row; row i is sample `i % group_size`."""
        config = self._environment.config
        questions = self._environment.world.train
        tasks = [
            (questions[row["question"]], i % config.rollout.group_size)
            for i, row in enumerate(rows)
        ]
        sampler = TransformersSampler(
            model,
            self._tokenizer,
            torch_generator(self._seed, "sampling", step, device=str(model.device)),
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            stop=self._stop,
        )
        rollout = self._loop.run(tasks, sampler, step=step)
        for trajectory in rollout.trajectories:
            score(trajectory, config.reward)
        return rollout


class _Recorder:
    """Writes each step to the run directory and keeps the progress bar, the best checkpoint and the
    rotation.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: ExperimentConfig,
        done: int,
        *,
        progress: bool,
        after_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._run = run
        self._config = config
        self._after_step = after_step
        self._started = time.perf_counter()
        self._bar = tqdm(
            total=config.training.steps,
            initial=done,
            desc=f"{config.name}",
            unit="step",
            disable=not progress,
        )

    def __call__(self, row: dict[str, Any], trajectories: list[Trajectory]) -> None:
        stored = trajectories[: self._config.training.trajectories_per_step]
        self._run.append_trajectories(trajectory_record(t, row["step"]) for t in stored)
        self._run.append_metrics(row)
        shown = {
            "reward": row["reward"],
            "loglik": row["loglik_correct"],
            "entropy": row["entropy"],
        }
        self._bar.set_postfix(
            {key: "–" if value is None else f"{value:.3f}" for key, value in shown.items()}
        )
        self._bar.update()
        if self._after_step is not None:
            self._after_step(row)

    def saved(self, step: int) -> None:
        """A checkpoint of `step` is on disk: rank it and drop old ones."""
        rewards = {row["step"]: row["reward"] for row in read_metrics(self._run.path)}
        ranked = {
            kept: sum(window) / len(window)
            for kept in checkpoint_steps(self._run.checkpoints)
            if (
                window := [
                    rewards[s]
                    for s in range(max(1, kept - BEST_WINDOW + 1), kept + 1)
                    if s in rewards
                ]
            )
        }
        best = max(ranked, key=ranked.__getitem__)
        rotate_checkpoints(self._run.checkpoints, self._config.training.keep_checkpoints, best)
        self._run.update(best_step=best, last_step=step)

    def callback(self) -> TrainerCallback:
        """The trainer's view of this recorder."""
        recorder = self

        class Follow(TrainerCallback):
            """Forwards saved checkpoints; ends a run whose collapse is proved."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """One update has ended, and maybe a step."""
                if state.global_step % recorder._config.training.updates_per_rollout == 0:
                    collapsed = _has_collapsed(recorder._run, recorder._config)
                    recorder._run.collapsed = collapsed
                    control.should_training_stop |= collapsed
                    control.should_save |= collapsed

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """A checkpoint was written."""
                recorder.saved(state.global_step // recorder._config.training.updates_per_rollout)

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                """Training is over."""
                recorder._bar.close()

        return Follow()


def trajectory_record(trajectory: Trajectory, step: int) -> dict[str, Any]:
    """JSON-compatible record of a whole trajectory: tokens, masks, actions, hits, reward."""
    return {
        "step": step,
        "question_id": trajectory.question.id,
        "question": trajectory.question.question,
        "golden_answers": list(trajectory.question.golden_answers),
        "kind": trajectory.question.metadata.get("kind"),
        "sample": trajectory.sample,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "correct": trajectory.correct,
        "stop_reason": trajectory.stop_reason,
        "actions": [
            {
                "kind": action.kind,
                "content": action.content,
                "text": action.text,
                "start": action.start,
                "end": action.end,
                "executed": action.executed,
                "retrieval_failed": action.retrieval_failed,
                "hits": [
                    {"id": hit.id, "title": hit.title, "text": hit.text} for hit in action.hits
                ],
            }
            for action in trajectory.actions
        ],
        "prompt_ids": trajectory.prompt_ids,
        "completion_ids": trajectory.completion_ids,
        "response_mask": trajectory.response_mask,
        "sampler_logprobs": [round(value, 6) for value in trajectory.sampler_logprobs],
    }
