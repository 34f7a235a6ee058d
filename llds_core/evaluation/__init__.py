"""Evaluation: any model over questions, with every trajectory on disk.

`evaluate` is the one evaluator: `agents` say how a question is answered, `predictions` keeps the
lines, `scores` says which questions are asked and sums up. `held_out` scores the checkpoints of
runs with it.
"""
