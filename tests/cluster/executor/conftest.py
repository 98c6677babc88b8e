"""What tests of the executor on a real SLURM share."""

import pytest

from tests.helpers.toy_workflow import Toy


@pytest.fixture
def toy(tmp_path, cluster):
    """A folder for a workflow; what runs when the test ends, is ended."""
    with Toy(tmp_path / "toy", cluster) as toy:
        yield toy
