"""Any model over questions, with every trajectory on disk: `evaluate` is the one evaluator, and
`held_out` scores the checkpoints of runs with it.
"""
