"""Worlds shared by the tests of this folder; building the full one takes seconds."""

import pytest

from llds_core.worlds.atlas import World, build_atlas


@pytest.fixture(scope="session")
def desk_world() -> World:
    return build_atlas(cities=1200)


@pytest.fixture(scope="session")
def full_world() -> World:
    return build_atlas(cities=None)
