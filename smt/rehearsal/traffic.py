"""How many kernels of a GPU a computation takes, and how many bytes these move: without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from smt.rehearsal.fake_gpu import fake_gpu, fake_on_gpu, move_to_gpu
from smt.rehearsal.watch import Watch


@dataclass(frozen=True)
class Traffic:
    """What operations come to; the same on every machine."""

    kernels: int
    """Operations that compute; one may be several kernels of the GPU."""
    casts: int
    """Of these, copies of tensors to another type."""
    bytes: int
    """What they read and write: see `smt.rehearsal.watch.bytes_moved`."""


def traffic(network: nn.Module, call: Callable[..., Any], *inputs: Tensor) -> Traffic:
    """Return what `call(network, *inputs)` comes to on the fake GPU, where `network` stays.

    Raises:
        UserError: there is a real GPU, or torch is of a version that this does not know.
    """
    with watched() as watch:
        move_to_gpu(network)
        on_gpu = [fake_on_gpu(each) for each in inputs]
        watch.reset()
        call(network, *on_gpu)
        return Traffic(watch.kernels.total(), watch.casts, watch.traffic)


@contextmanager
def watched() -> Iterator[Watch]:
    """Let tensors be fake ones within the body, and count what is done with them.

    Raises:
        UserError: there is a real GPU, or torch is of a version that this does not know.
    """
    watch = Watch()
    with fake_gpu(), FakeTensorMode(allow_non_fake_inputs=False), watch, watch.host_side():
        yield watch
