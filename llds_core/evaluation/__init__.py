"""Evaluation: any model over questions, with every trajectory on disk.

`evaluate` is the one evaluator: `agents` say how a question is answered, `predictions` keeps the
lines, `scores` says which questions are asked and sums up. `held_out` scores the checkpoints of
runs with it.
"""

from llds_core.evaluation.agents import BASELINES, POLICY
from llds_core.evaluation.evaluate import ROOT, EvaluationPlan, evaluate_questions, run_baselines
from llds_core.evaluation.held_out import ask, ask_each, evaluate_ends, evaluate_run, unknown_places
from llds_core.evaluation.models import open_asked, open_model
from llds_core.evaluation.predictions import parse_shard
from llds_core.evaluation.scores import averages, score_rows
