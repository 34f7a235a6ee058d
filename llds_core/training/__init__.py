"""Warm start and reinforcement learning on TRL."""
