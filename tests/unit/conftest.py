"""What holds for every unit test."""

import pytest

from smt.data.rng import reseed


@pytest.fixture(autouse=True)
def same_draws(request):
    """Begin every test with draws of its own, the same each time and in any order."""
    reseed(request.node.nodeid)
