"""Speed against named baselines, measured side by side in one process.

Ratios are what counts: a candidate and its baseline run alternately on the same inputs with the
same threads, so that a busy machine slows both. Baselines are written out here, the rollout as
Search-R1 does it and the update as TRL's own trainer does it, so that anyone can read what is
compared. Nothing here is used by training.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from llds_core.bench.search_r1 import ReencodingRollout
from llds_core.config import ExperimentConfig, load_experiment
from llds_core.evaluation import open_model
from llds_core.files import cell, write_cells
from llds_core.machine.jobs import usable_cores
from llds_core.rollout.environment import Environment, build_environment
from llds_core.rollout.loop import Rollout
from llds_core.rollout.prompts import prompt_text
from llds_core.rollout.protocol import TAGS
from llds_core.rollout.samplers import StopAtTag, TransformersSampler
from llds_core.runs import Run
from llds_core.runs.policies import build_policy, build_tokenizer, load_policy
from llds_core.seeding import torch_generator
from llds_core.training.settings import SearchGRPOConfig, search_grpo_config
from llds_core.training.trainer import (
    SearchGRPOTrainer,
    rollout_columns,
    trajectory_reward,
)

REPETITIONS = 3
COLUMNS = ("measure", "value", "unit", "baseline", "baseline_value", "ratio", "aim")


@dataclass(frozen=True)
class Measure:
    """One row of the table; `ratio` is a speed-up, or a cost relative to the baseline."""

    measure: str
    value: float | str
    unit: str
    baseline: str = ""
    baseline_value: float | None = None
    ratio: float | None = None
    aim: str = ""

    def cells(self) -> list[str]:
        """Cells as text, in the order of `COLUMNS`."""
        return [cell(getattr(self, name)) for name in COLUMNS]


def bench(profile: str, run_root: Path, out: Path, *, progress: bool = True) -> None:
    """Measure `profile` on this machine; write a CSV to `out` and print it as a table.

    Args:
        profile: sizes, limits and threads; its start policy is used when it is under `run_root`.
        run_root: folder of all runs.
        out: the CSV file.
        progress: show a progress bar.

    Raises:
        ConfigError: for an unknown profile.
        RunError: when `out` cannot be written.
    """
    config = load_experiment(f"{profile}/llds-action")
    threads = torch.get_num_threads()
    torch.set_num_threads(config.training.threads)
    try:
        with tqdm(total=4, desc=f"bench {profile}", disable=not progress) as bar:
            measures = _measures(config, run_root, bar)
    finally:
        torch.set_num_threads(threads)
    rows = [list(COLUMNS), *(measure.cells() for measure in measures)]
    write_cells(out, rows)
    print(_table(rows))


def _measures(config: ExperimentConfig, run_root: Path, bar: tqdm) -> list[Measure]:
    environment = build_environment(config)
    with tempfile.TemporaryDirectory() as folder:
        path, policy_name = _start_policy(config, environment, run_root, Path(folder))
        measures = [
            Measure("policy", policy_name, ""),
            Measure("threads", config.training.threads, "threads"),
        ]
        bar.set_postfix_str("import")
        measures.append(_import_time())
        bar.update()
        bar.set_postfix_str("rollout")
        measure, rollout = _rollout_speed(config, environment, path)
        measures.append(measure)
        bar.update()
        bar.set_postfix_str("update")
        measures += _update_speed(config, rollout, path, Path(folder), bar)
    return measures


def _start_policy(
    config: ExperimentConfig, environment: Environment, run_root: Path, folder: Path
) -> tuple[str, str]:
    """Folder of the policy to measure with, and what it is."""
    path = Run(config, root=run_root).start_policy
    if path.is_dir():
        return str(path), "start policy"
    texts = [prompt_text(q.question, config.rollout.prompt) for q in environment.world.train]
    texts += [passage.contents for passage in environment.world.passages]
    tokenizer = build_tokenizer(texts, config.policy.vocab_size, TAGS)
    # TRL loads its reference policy from disk, so that a random one has to lie there too.
    build_policy(config.policy, tokenizer, 0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return str(folder / "policy"), "random initialisation"


def interleaved(candidates: Sequence[Callable[[], float]], repetitions: int) -> list[float]:
    """Median over `repetitions` of each candidate, taken in turns after one unmeasured round."""
    found: list[list[float]] = [[] for _ in candidates]
    for repetition in range(repetitions + 1):
        # Every other round backwards: drift of the machine's speed then favours nobody.
        order = range(len(candidates)) if repetition % 2 else reversed(range(len(candidates)))
        for index in order:
            value = candidates[index]()
            if repetition:
                found[index].append(value)
    return [statistics.median(values) for values in found]


def _import_time() -> Measure:
    def seconds(code: str) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            return time.perf_counter() - started

        return measure

    ours, empty = interleaved([seconds("import llds_core"), seconds("pass")], REPETITIONS)
    return Measure("import llds_core", ours, "s", "python -c pass", empty, ours / empty, "< 2 s")


def _rollout_speed(
    config: ExperimentConfig, environment: Environment, path: str
) -> tuple[Measure, Rollout]:
    model, tokenizer = open_model(path, config.training.dtype).load()
    questions = environment.world.train[: config.rollout.prompts_per_rollout]
    tasks = [(question, i) for question in questions for i in range(config.rollout.group_size)]
    loop = environment.rollout_loop(tokenizer, seed=0, failure_rate=config.retrieval.failure_rate)
    stop = StopAtTag(tokenizer)
    last: list[Rollout] = []
    turn = iter(range(10**6))

    def ours() -> float:
        generator = torch_generator(0, "bench", next(turn), device=str(model.device))
        sampler = TransformersSampler(
            model, tokenizer, generator, temperature=config.rollout.temperature, stop=stop
        )
        started = time.perf_counter()
        last[:] = [loop.run(tasks, sampler, step=1)]
        return len(tasks) / (time.perf_counter() - started)

    baseline = ReencodingRollout(config, environment, model, tokenizer)

    def theirs() -> float:
        started = time.perf_counter()
        baseline.run(tasks)
        return len(tasks) / (time.perf_counter() - started)

    value, reference = interleaved([ours, theirs], REPETITIONS)
    measure = Measure(
        "rollout",
        value,
        "trajectories/s",
        "whole context encoded again every turn, as Search-R1 does",
        reference,
        value / reference,
        ">= 3 x",
    )
    return measure, last[0]


class _UntrimmedTrainer(GRPOTrainer):
    """TRL's own path on the same trajectories; its statistics are not kept, as ours are not."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._metrics["train"].clear()
        return loss

    def _send_telemetry(self) -> None:
        """No message leaves the machine."""


def _update_speed(
    config: ExperimentConfig, rollout: Rollout, path: str, folder: Path, bar: tqdm
) -> list[Measure]:
    config = _smaller(config)
    made = rollout.trajectories[: config.trajectories_per_rollout]
    rollout = Rollout(made, rollout.seconds, rollout.retrieval_seconds)
    for index, trajectory in enumerate(made):
        # Rewards of a start policy may all be equal; the work of an update does not depend on them.
        trajectory.reward = float(index % 2)
        trajectory.correct = bool(index % 2)
    tokens = sum(t.total_tokens for t in made) * config.training.epochs

    def settings(weight: float) -> SearchGRPOConfig:
        args = search_grpo_config(config, 0, folder / "checkpoint")
        args.llds_weight = weight
        args.max_steps = config.training.updates_per_rollout
        args.save_strategy = "no"
        return args

    padding: list[float] = []

    def ours(weight: float) -> Callable[[], float]:
        def measure() -> float:
            rows: list[dict[str, Any]] = []
            model, tokenizer = load_policy(path)  # in float32, as runs do
            trainer = SearchGRPOTrainer(
                model=model,
                args=settings(weight),
                train_dataset=_prompts(config),
                processing_class=tokenizer,
                rollout=lambda given, policy, step: rollout,
                on_step=lambda row, trajectories: rows.append(row),
            )
            seconds = _train_seconds(trainer)
            padding[:] = [rows[0]["padding"]]
            return seconds

        return measure

    def theirs() -> float:
        model, tokenizer = load_policy(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
            trainer = _UntrimmedTrainer(
                model=model,
                args=settings(0.0),
                reward_funcs=[trajectory_reward],
                train_dataset=_prompts(config),
                processing_class=tokenizer,
                rollout_func=lambda prompts, owner: rollout_columns(rollout.trajectories),
            )
        return _train_seconds(trainer)

    penalised, cores = ours(config.loss.llds_weight), usable_cores()

    def on_all_cores() -> float:
        torch.set_num_threads(cores)
        try:
            return penalised()
        finally:
            torch.set_num_threads(config.training.threads)

    with_penalty, without, untrimmed, all_cores = interleaved(
        [penalised, ours(0.0), theirs, on_all_cores], REPETITIONS
    )
    bar.update(2)
    prompts = max(len(t.prompt_ids) for t in made)
    width = prompts + max(len(t.completion_ids) for t in made)
    whole = 1 - sum(t.total_tokens for t in made) / (width * len(made))
    return [
        Measure(
            "padding",
            padding[0],
            "share of positions",
            "rollout padded to its longest trajectory",
            whole,
            padding[0] / whole if whole else None,
            "<= 0.15",
        ),
        Measure(
            "step time with LLDS",
            with_penalty,
            f"s for {config.training.updates_per_rollout} updates",
            "the same with weight 0",
            without,
            with_penalty / without,
            "<= 1.03 x",
        ),
        Measure(
            "update",
            tokens / with_penalty,
            "tokens/s",
            "TRL's trainer: full width, its own pass for old log-probabilities",
            tokens / untrimmed,
            untrimmed / with_penalty,
            ">= 1.5 x",
        ),
        Measure(
            "update on all cores",
            tokens / all_cores,
            f"tokens/s on {cores} threads",
            "the profile's threads",
            tokens / with_penalty,
            with_penalty / all_cores,
            "> 1 x",
        ),
    ]


def _smaller(config: ExperimentConfig) -> ExperimentConfig:
    """A step with fewer prompts and updates: mini-batches and epochs stay as they are."""
    training, rollout = config.training, config.rollout
    per_epoch = training.updates_per_rollout // training.epochs
    for factor in (4, 2):
        if rollout.prompts_per_rollout % factor == 0 and per_epoch % factor == 0:
            return replace(
                config,
                rollout=replace(rollout, prompts_per_rollout=rollout.prompts_per_rollout // factor),
                training=replace(
                    training, updates_per_rollout=training.updates_per_rollout // factor
                ),
            )
    return config


class _Stopwatch(TrainerCallback):
    """Seconds from the first update to the last: setting a trainer up is not its speed."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started


def _train_seconds(trainer: GRPOTrainer) -> float:
    watch = _Stopwatch()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.seconds


def _prompts(config: ExperimentConfig) -> Dataset:
    """One row per prompt; the trajectories are there already."""
    return Dataset.from_dict(
        {"prompt": [str(i) for i in range(config.rollout.prompts_per_rollout)]}
    )


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
