"""One root seed, many named streams.

Every random choice of the package draws from a generator made here from a root seed and a tuple of
names, so that a stream never depends on how much another stream consumed. That is what makes a
resumed run equal to an uninterrupted one, and runs of one study comparable question by question.
Nothing in the package draws from the global generators.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def child_seed(root: int, *names: str | int) -> int:
    """A 63-bit seed from a root seed and a path of names: `child_seed(0, "rollout", step)`."""
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream `names` of `root`."""
    return np.random.default_rng(child_seed(root, *names))


def torch_generator(root: int, *names: str | int, device: str = "cpu") -> "torch.Generator":
    """Return a torch generator on `device` for the stream `names` of `root`."""
    import torch

    return torch.Generator(device=device).manual_seed(child_seed(root, *names))
