"""Speed against named baselines, measured side by side in one process.

Ratios are what counts: a candidate and its baseline run alternately on the same inputs with the
same threads, so that a busy machine slows both. Baselines are a rollout as Search-R1 makes it
(`rollouts`) and the update of TRL's own trainer.
"""

import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from llds_core.bench.rollouts import PASS_SECONDS, ReencodingSampler, measure_waiting
from llds_core.config import ExperimentConfig, load_experiment
from llds_core.config.seeding import torch_generator
from llds_core.evaluation.models import open_model
from llds_core.files import write_table
from llds_core.rollout.environment import build_environment
from llds_core.rollout.loop import Rollout
from llds_core.rollout.samplers import StopAtTag, TransformersSampler
from llds_core.runs import Run
from llds_core.runs.policies import given_policy, load_policy
from llds_core.training.micro_batches import rollout_columns, trajectory_reward
from llds_core.training.settings import search_grpo_config
from llds_core.training.trainer import SearchGRPOTrainer
from llds_core.training.warmstart import start_policy

_REPETITIONS = 3
_Trainer = TypeVar("_Trainer", bound=SearchGRPOTrainer)


@dataclass
class Measure:
    """One row of the table; `ratio` is a speed-up, or a cost relative to the baseline."""

    measure: str
    value: Any
    unit: str
    baseline: str = ""
    baseline_value: float | None = None
    ratio: float | None = field(init=False)
    aim: str = ""

    def __post_init__(self) -> None:
        self.ratio = self.value / self.baseline_value if self.baseline_value else None


def bench(profile: str, run_root: Path, out: Path, layout: str | None = None) -> None:
    """Measure `profile` on this machine; write a CSV to `out` and print it as a table."""
    config = load_experiment(f"{profile}/llds-action", layout=layout)
    table = pd.DataFrame(measure_profile(config, run_root), dtype=object).fillna("")
    table = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    write_table(out, table)
    print(table.to_string(index=False))


def measure_profile(config: ExperimentConfig, run_root: Path) -> list[Measure]:
    """Every measure of `config`, with its start policy under `run_root`: a pre-trained policy that
    is not warm-started yet is taken as it is, another is made first.
    """
    run, name = Run(config, root=run_root), "start policy"
    if config.policy.path and not run.start_policy.is_dir():
        path, name = given_policy(config, run_root), f"{config.policy.path} as it is"
    else:
        path = start_policy(run)
    torch.set_num_threads(config.training.threads)
    measures, rollout = _measure_rollouts(config, path)
    smaller = _smaller(config)
    with tempfile.TemporaryDirectory() as folder:
        measures += _measure_updates(smaller, Updates(smaller, rollout, path, Path(folder)))
    threads = Measure("threads", config.training.threads, "threads")
    return [Measure("policy", name, ""), threads, *measures]


def interleaved(candidates: Sequence[Callable[[], float]]) -> list[float]:
    """Median of each candidate, taken in turns after one unmeasured round."""
    found: list[list[float]] = [[] for _ in candidates]
    for repetition in range(_REPETITIONS + 1):
        # Every other round backwards: drift of the machine's speed then favours nobody.
        order = range(len(candidates)) if repetition % 2 else reversed(range(len(candidates)))
        for index in order:
            value = candidates[index]()
            if repetition:
                found[index].append(value)
    return [statistics.median(values) for values in found]


def _measure_rollouts(config: ExperimentConfig, path: Path) -> tuple[list[Measure], Rollout]:
    """The speed of rollouts, and one of them."""
    environment = build_environment(config)
    model, tokenizer = open_model(str(path), config.training.dtype).load()
    questions = environment.world.train[: config.rollout.prompts_per_rollout]
    tasks = [(question, i) for question in questions for i in range(config.rollout.group_size)]
    loop = environment.rollout_loop(tokenizer, seed=0, failure_rate=config.retrieval.failure_rate)
    stop, turns = StopAtTag(tokenizer), itertools.count()

    def ours() -> Rollout:
        generator = torch_generator(0, "bench", next(turns), device=str(model.device))
        sampler = TransformersSampler(
            model, tokenizer, generator, temperature=config.rollout.temperature, stop=stop
        )
        return loop.run(tasks, sampler, step=1)

    theirs = ReencodingSampler(model, tokenizer, config.rollout.temperature)
    fast, slow = interleaved(
        [lambda: ours().seconds, lambda: loop.run(tasks, theirs, step=1).seconds]
    )
    count, unit = len(tasks), "trajectories/s"
    against = "whole context encoded again every turn, as Search-R1 does"
    rows = [Measure("rollout", count / fast, unit, against, count / slow, ">= 3 x")]
    against = f"every turn waits for all; simulated passes of {1000 * PASS_SECONDS:g} ms"
    measured = zip(measure_waiting(loop, tasks), (">= 1 x", ">= 1.3 x", ">= 2 x"), strict=True)
    for (latency, free, waiting, most), aim in measured:
        name, best = f"rollout, searches of {1000 * latency:g} ms", most / waiting
        rows.append(Measure(name, free, unit, against, waiting, f"{aim} (limit {best:.2f} x)"))
    return rows, ours()


class Updates:
    """The updates of one step on trajectories that are there already, timed.

    Each measurement has a configuration of its own, of which objective and micro-batches count.

    Attributes:
        tokens: that all updates train on.
        row: all metrics of the last step of our trainer.
        whole_padding: its share of positions when all trajectories are padded to the longest.
        budget: tokens that the longest trajectories take in a micro-batch of a fixed number.
    """

    def __init__(
        self, config: ExperimentConfig, rollout: Rollout, path: Path, folder: Path
    ) -> None:
        made = rollout.trajectories[: config.trajectories_per_rollout]
        for index, trajectory in enumerate(made):
            # Rewards of a start policy may all be equal; the work does not depend on them.
            trajectory.reward = float(index % 2)
            trajectory.correct = bool(index % 2)
        total = sum(trajectory.total_tokens for trajectory in made)
        width = max(len(t.prompt_ids) for t in made) + max(len(t.completion_ids) for t in made)
        self.tokens = total * config.training.epochs
        self.whole_padding = 1 - total / (width * len(made))
        self.budget = config.training.micro_batch_size * max(t.total_tokens for t in made)
        self.row: dict[str, Any] = {}
        self._path, self._folder = path, folder
        self._rollout = replace(rollout, trajectories=made)

    def trainer(self, config: ExperimentConfig, kind: type[_Trainer]) -> _Trainer:
        """This package's trainer, or a `kind` of it."""
        return kind(
            rollout=lambda given, policy, step: self._rollout,
            on_step=self._record,
            **self._common(config),
        )

    def ours(self, config: ExperimentConfig) -> float:
        """Seconds of this package's trainer."""
        return train_seconds(self.trainer(config, SearchGRPOTrainer))

    def trl(self, config: ExperimentConfig) -> float:
        """Seconds of TRL's own trainer, which knows no penalty."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
            trainer = _UntrimmedTrainer(
                reward_funcs=[trajectory_reward],
                rollout_func=lambda prompts, owner: rollout_columns(self._rollout.trajectories),
                **self._common(config),
            )
        return train_seconds(trainer)

    def _record(self, row: dict[str, Any], trajectories: object) -> None:
        self.row = row

    def _common(self, config: ExperimentConfig) -> dict[str, Any]:
        """What both trainers are given."""
        model, tokenizer = load_policy(self._path)  # in float32, as runs do
        args = search_grpo_config(config, 0, self._folder / "checkpoint")
        args.max_steps = config.training.updates_per_rollout
        args.save_strategy = "no"
        prompts = [str(index) for index in range(config.rollout.prompts_per_rollout)]
        dataset = Dataset.from_dict({"prompt": prompts})
        about = {"model": model, "args": args}
        return about | {"train_dataset": dataset, "processing_class": tokenizer}


def _measure_updates(config: ExperimentConfig, updates: Updates) -> list[Measure]:
    plain = replace(config, loss=replace(config.loss, llds_weight=0.0))
    lp_reg = replace(plain, loss=replace(plain.loss, lp_reg_weight=1.0))
    in_parts = replace(config.training, max_tokens_per_micro_batch=updates.budget)
    packed, with_lp_reg, trl, without, ours = interleaved(
        [
            lambda: updates.ours(replace(config, training=in_parts)),
            lambda: updates.ours(lp_reg),
            lambda: updates.trl(plain),
            lambda: updates.ours(plain),
            lambda: updates.ours(config),  # the last one, whose padding is told
        ]
    )
    padding, whole, tokens = updates.row["padding"], updates.whole_padding, updates.tokens
    per_step = f"s for {config.training.updates_per_rollout} updates"
    same, speed = "the same with weight 0", "tokens/s"
    by_tokens = f"update by {updates.budget} tokens"
    longest = "rollout padded to its longest trajectory"
    fixed = f"micro-batches of {config.training.micro_batch_size} trajectories"
    full_width = "TRL's trainer: full width, its own pass for old log-probabilities"
    return [
        Measure("padding", padding, "share of positions", longest, whole, "<= 0.15"),
        Measure("step time with LLDS", ours, per_step, same, without, "<= 1.03 x"),
        Measure("step time with Lp-Reg", with_lp_reg, per_step, same, without, "<= 1.25 x"),
        Measure("update", tokens / ours, speed, full_width, tokens / trl, ">= 1.5 x"),
        Measure(by_tokens, tokens / packed, speed, fixed, tokens / ours, ">= 1.1 x"),
    ]


class _UntrimmedTrainer(GRPOTrainer):
    """TRL's own path on the same trajectories."""

    def _send_telemetry(self) -> None:
        """No message leaves the machine."""


def _smaller(config: ExperimentConfig) -> ExperimentConfig:
    """A step with fewer prompts and updates: mini-batches and epochs stay as they are."""
    prompts, updates = config.rollout.prompts_per_rollout, config.training.updates_per_rollout
    for factor in (4, 2):
        if prompts % factor == 0 and (updates // config.training.epochs) % factor == 0:
            rollout = replace(config.rollout, prompts_per_rollout=prompts // factor)
            training = replace(config.training, updates_per_rollout=updates // factor)
            return replace(config, rollout=rollout, training=training)
    return config


def train_seconds(trainer: GRPOTrainer) -> float:
    """Seconds from the first update to the last: setting a trainer up is not its speed."""
    trainer.remove_callback(PrinterCallback)
    return trainer.train().metrics["train_runtime"]
