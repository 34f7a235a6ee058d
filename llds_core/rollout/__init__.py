"""Multi-turn rollouts: the protocol, samplers, the loop, masks and scoring."""
