"""Evaluation: held-out questions of runs, benchmarks, and baselines that need no training.

`held_out` scores the checkpoints of runs, as `train --evaluate` and `reproduce` do. `evaluate` runs
any model over benchmarks, with every trajectory on disk: `suites` says which questions and which
averages, `agents` how a question is answered, `predictions` keeps the lines, `scores` sums up.
"""

from llds_core.evaluation.agents import BASELINES
from llds_core.evaluation.evaluate import evaluate_benchmarks
from llds_core.evaluation.held_out import (
    ask,
    choose_questions,
    evaluate_ends,
    evaluate_run,
    interval,
    run_questions,
    summarise,
)

__all__ = [
    "BASELINES",
    "ask",
    "choose_questions",
    "evaluate_benchmarks",
    "evaluate_ends",
    "evaluate_run",
    "interval",
    "run_questions",
    "summarise",
]
