"""Studies: what to run, what is claimed, and the main job from nothing to figures."""
