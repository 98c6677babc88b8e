"""BatchNorm over several processes: what one process with all of the images would do."""

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
"""Images of each of two processes: not equally many."""


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


def work(rank, folder):
    """Be one of two processes: leave in `folder` what it makes of its share."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    share = SHARES[rank]
    result = step(fill(SyncBatchNorm(3)), IMAGES[share], WEIGHTS[share])
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes make of the images, each of its own share."""
    folder = tmp_path_factory.mktemp("shared")
    with (folder / "said").open("wb") as file:
        started = [
            forkserver.start(
                "tests.unit.models.test_sync_norm", str(rank), str(folder), cwd=ROOT,
                env=dict(os.environ), stdout=file, stderr=file,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        codes = [process.wait() for process in started]
    assert codes == [0, 0], (folder / "said").read_text()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole():
    return step(fill(nn.BatchNorm2d(3)), IMAGES, WEIGHTS)


@pytest.mark.parametrize("name", ["output", "images"])
def test_each_image_is_as_in_one_batch_of_all(shared, whole, name):
    for share, result in zip(SHARES, shared, strict=True):
        assert torch.allclose(result[name], whole[name][share])


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_gradients_of_parameters_add_up_to_those_of_one_batch(shared, whole, name):
    assert torch.allclose(shared[0][name] + shared[1][name], whole[name])


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_running_statistics_are_those_of_one_batch_on_every_process(shared, whole, name):
    for result in shared:
        assert torch.allclose(result[name], whole[name])


def test_alone_it_is_torchs_own():
    ours, theirs = fill(SyncBatchNorm(3)), fill(nn.BatchNorm2d(3))
    one, other = step(ours, IMAGES, WEIGHTS), step(theirs, IMAGES, WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    ours, theirs = copy.deepcopy(ours).eval(), theirs.eval()
    assert torch.equal(ours(IMAGES), theirs(IMAGES))


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
