"""Fixtures that tests of several packages share."""

import pytest
from hypothesis import settings
from world import World, make_world

# A test must not fail because its machine is busy.
settings.register_profile("kdsweep", deadline=None)
settings.load_profile("kdsweep")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny task with a prepared teacher; made once a session."""
    return make_world(tmp_path_factory.mktemp("world"))
