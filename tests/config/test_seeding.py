"""Named random streams: fixed, independent of each other, and never the global ones."""

import numpy as np
import pytest
import torch

from llds_core.config.seeding import child_seed, numpy_generator, torch_generator


def test_seeds_are_fixed_fit_a_signed_64_bit_integer_and_differ_by_root_names_and_order() -> None:
    """First eight bytes of SHA-256 of "0/rollout/3", halved: stored runs depend on it."""
    assert child_seed(0, "rollout", 3) == 3013096543775522488
    assert all(0 <= child_seed(root, "x") < 2**63 for root in range(200))
    paths = [(0,), (1,), (0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "b", "a")]
    paths += [(0, "a", 1), (0, "a", 11)]
    assert len({child_seed(*path) for path in paths}) == len(paths)


@pytest.mark.parametrize("make", [numpy_generator, torch_generator])
def test_a_stream_is_that_of_its_path(make) -> None:
    first, second = (_draw(make(7, "eval", 2)) for _ in range(2))
    assert first == second != _draw(make(7, "eval", 3))


def test_global_generators_are_not_touched() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    _draw(torch_generator(0, "x"))
    _draw(numpy_generator(0, "x"))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def _draw(generator: np.random.Generator | torch.Generator) -> list[float]:
    if isinstance(generator, torch.Generator):
        return torch.rand(5, generator=generator).tolist()
    return generator.random(5).tolist()
