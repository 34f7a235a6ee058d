"""This computer: what it can run, what a run takes, and the processes that do it."""
