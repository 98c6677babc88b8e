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
"""Images of each of two processes: not equally many."""
FAR = 4096.0
"""A mean of which float32 has the square to within 1."""


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


def count_calls(name, calls):
    """Have each call of a collective of torch leave its name in `calls`."""
    original = getattr(distributed, name)

    def counted(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    setattr(distributed, name, counted)


def run_rank(rank, folder):
    """Run one of two processes on its images, and save the result in `folder`."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    share, exchanges = SHARES[rank], []
    for name in ("all_reduce", "all_gather"):
        count_calls(name, exchanges)
    result = step(fill(SyncBatchNorm(3)), IMAGES[share], WEIGHTS[share])
    result["exchanges"] = list(exchanges)
    far = SyncBatchNorm(3)(IMAGES[share].float() + FAR)
    result["far"] = far.detach()
    nothing = IMAGES[:0] if rank == 0 else IMAGES
    result["one_without"] = step(fill(SyncBatchNorm(3)), nothing, WEIGHTS[: len(nothing)])
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


def test_processes_exchange_once_forward_and_once_backward(shared):
    for result in shared:
        assert result["exchanges"] == ["all_gather", "all_reduce"]


def test_a_mean_far_from_zero_costs_no_precision(shared):
    wanted = nn.BatchNorm2d(3).double()(IMAGES.float().add(FAR).double())
    for share, result in zip(SHARES, shared, strict=True):
        # Squares about zero in float32 would be off by 1, which is the variance itself.
        assert torch.allclose(result["far"].double(), wanted[share], atol=5e-3)


def test_a_process_without_images_takes_part(shared, whole):
    empty, full = (result["one_without"] for result in shared)
    assert empty["output"].shape == (0, 3, 4, 6) and not empty["weight"].any()
    for name in ("output", "images", "weight", "bias", "mean", "variance"):
        assert torch.allclose(full[name], whole[name])


def test_in_one_process_it_equals_torchs_batch_norm():
    ours, theirs = fill(SyncBatchNorm(3)), fill(nn.BatchNorm2d(3))
    one, other = step(ours, IMAGES, WEIGHTS), step(theirs, IMAGES, WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    ours, theirs = copy.deepcopy(ours).eval(), theirs.eval()
    assert torch.equal(ours(IMAGES), theirs(IMAGES))


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
