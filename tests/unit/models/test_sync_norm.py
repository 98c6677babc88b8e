"""BatchNorm over several processes equals that of one process with all images."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from smt.models.sync_norm import SyncBatchNorm
from tests.helpers import ROOT, forkserver

IMAGES = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WEIGHTS = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SHARES = (slice(0, 2), slice(2, 5))
"""Images of the two processes, of different numbers."""


def fill(norm):
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.0]))
    return norm.double()


def step(norm, images, weights):
    """Return output, gradients and running statistics of one training step."""
    images = images.clone().requires_grad_()
    output = norm(images)
    (output * weights).sum().backward()
    return {
        "output": output.detach(), "images": images.grad, "weight": norm.weight.grad,
        "bias": norm.bias.grad, "mean": norm.running_mean.clone(),
        "variance": norm.running_var.clone(),
    }  # fmt: skip


def run_rank(rank, folder):
    """Run one of two processes on its images, and save the result in `folder`."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    share = SHARES[rank]
    result = step(fill(SyncBatchNorm(3)), IMAGES[share], WEIGHTS[share])
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The results of two processes, each on its own images."""
    folder = tmp_path_factory.mktemp("shared")
    with (folder / "output").open("wb") as file:
        processes = [
            forkserver.start(
                "tests.unit.models.test_sync_norm", str(rank), str(folder), cwd=ROOT,
                env=dict(os.environ), stdout=file, stderr=file,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        codes = [process.wait() for process in processes]
    assert codes == [0, 0], (folder / "output").read_text()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole():
    return step(fill(nn.BatchNorm2d(3)), IMAGES, WEIGHTS)


@pytest.mark.parametrize("name", ["output", "images"])
def test_outputs_and_input_gradients_equal_those_of_one_batch(shared, whole, name):
    for share, result in zip(SHARES, shared, strict=True):
        assert torch.allclose(result[name], whole[name][share])


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_gradients_of_parameters_add_up_to_those_of_one_batch(shared, whole, name):
    assert torch.allclose(shared[0][name] + shared[1][name], whole[name])


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_running_statistics_are_those_of_one_batch_on_every_process(shared, whole, name):
    for result in shared:
        assert torch.allclose(result[name], whole[name])


def test_in_one_process_it_equals_torchs_batch_norm():
    ours, theirs = fill(SyncBatchNorm(3)), fill(nn.BatchNorm2d(3))
    one, other = step(ours, IMAGES, WEIGHTS), step(theirs, IMAGES, WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    ours, theirs = copy.deepcopy(ours).eval(), theirs.eval()
    assert torch.equal(ours(IMAGES), theirs(IMAGES))


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
