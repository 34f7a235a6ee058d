"""Stored runs as tables, figures, trajectories to look at, and executed notebooks."""
