"""The commands about benchmarks: `evaluate` with a profile alone, and `baselines`."""

import argparse
from typing import TYPE_CHECKING

from llds_core.config import load_experiment
from llds_core.errors import ConfigError
from llds_core.runs import Run
from llds_core.runs.identity import deviations

if TYPE_CHECKING:
    from llds_core.evaluation.evaluate import Plan
    from llds_core.evaluation.models import Model
    from llds_core.rollout.environment import Environment

# What `evaluate <profile>` takes besides, with the defaults.
_BENCHMARK_OPTIONS = {
    "benchmarks": [],
    "limit": None,
    "mode": ["greedy"],
    "samples": 1,
    "baseline": None,
    "method": None,
    "out": None,
    "shard": None,
    "merge": False,
    "publish": False,
}


def is_benchmark(options: argparse.Namespace) -> bool:
    """Whether `evaluate` was given a profile alone.

    Raises:
        ConfigError: when it was given a run, and an option that runs do not take.
    """
    profile, separator, method = options.experiment.partition("/")
    if not separator:
        return True
    for name, default in _BENCHMARK_OPTIONS.items():
        if getattr(options, name) != default:
            raise ConfigError(
                f"--{name} belongs to benchmarks: write evaluate {profile} --method {method}"
            )
    return False


def evaluate_benchmarks(options: argparse.Namespace) -> None:
    """Score any model over benchmarks."""
    from llds_core.evaluation.agents import POLICY
    from llds_core.evaluation.evaluate import evaluate_benchmarks as evaluate
    from llds_core.reporting.benchmark_scores import publish_evaluation, score_lines

    if options.merge and options.shard:
        raise ConfigError("--merge puts shards together: leave out --shard")
    if options.publish and options.shard:
        raise ConfigError("--publish needs every answer: leave out --shard")
    environment, model, plan = _asked(options, agent=options.baseline or POLICY)
    folder = evaluate(
        environment,
        model,
        plan,
        out=options.out,
        shard=options.shard,
        evaluate=not options.merge,
        about={
            "method": options.method,
            "run_seed": options.seed,
            "deviations": deviations(environment.config),
        },
        progress=not options.quiet,
    )
    if options.shard:
        print(f"shard {options.shard[0]}/{options.shard[1]}: {folder}")
        return
    print(score_lines(folder))
    print(f"summary: {folder / 'summary.json'}")
    if options.publish:
        print(f"published: {publish_evaluation(folder)}")


def _asked(options: argparse.Namespace, agent: str) -> "tuple[Environment, Model, Plan]":
    """Environment, model and plan that the options of a command describe."""
    from llds_core.evaluation.evaluate import Plan
    from llds_core.evaluation.models import open_model
    from llds_core.rollout.environment import build_environment, insisting
    from llds_core.runs.smollm2 import SMOLLM2

    plan = Plan(
        agent=agent,
        benchmarks=tuple(options.benchmarks),
        limit=options.limit,
        modes=tuple(options.mode),
        samples=options.samples,
        split=options.split,
        seed=options.seed,
    )
    name = f"{options.experiment}/{options.method or 'grpo'}"
    checkpoint = options.checkpoint
    if checkpoint in ("best", "last") and options.method is None:
        raise ConfigError(
            f"--checkpoint {checkpoint} of which run? give --method, or a folder, or smollm2"
        )
    config = load_experiment(name, options.overrides)
    if checkpoint != SMOLLM2:
        # Overrides change how questions are asked, not which run is meant.
        checkpoint = Run.load(name, options.seed, options.run_root).checkpoint(checkpoint)
    return build_environment(insisting(config)), open_model(checkpoint, config.training.dtype), plan


def baselines(options: argparse.Namespace) -> None:
    """Run the baselines of a model."""
    from llds_core.evaluation.agents import POLICY
    from llds_core.evaluation.baseline_runs import run_baselines
    from llds_core.evaluation.evaluate import ROOT
    from llds_core.reporting.store import PUBLISHED

    environment, model, plan = _asked(options, agent=POLICY)
    table = run_baselines(
        environment,
        model,
        plan,
        options.baselines,
        (PUBLISHED if options.publish else ROOT) / options.experiment,
        progress=not options.quiet,
    )
    print(f"table: {table}")
