"""Fixtures of the tests that import foreign checkpoints."""

import pytest

from tests.helpers import released_files


@pytest.fixture(scope="module")
def state():
    return released_files.state()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.safetensors"
