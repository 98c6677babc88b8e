"""Whether an exported program computes what its network does, on random images of several sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from smt.export.programs import Program
from smt.models.smt import SMT

TOLERANCE = 1e-4
"""Largest difference of a logit, as a part of the largest logit: float32 sums in another order."""
BATCHES = (1, 3)


@dataclass(frozen=True)
class Comparison:
    """Logits of a program and of its network on random images of one shape."""

    shape: tuple[int, int, int]
    """Batch, height, width."""
    difference: float | None
    """Largest difference of a logit, as a part of the largest; None where the program does not
    take images of this shape."""
    reason: str = ""
    """Why it does not, in the words of what runs it."""

    @property
    def agrees(self) -> bool:
        """Whether the program computes the same, within `TOLERANCE`."""
        return self.difference is not None and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return " × ".join(map(str, self.shape))


def sizes(size: int) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths that are tried with a program traced at `size`."""
    return ((size, size), (size + 32, size), (2 * size, size + 64), (size + 13, size + 5))


def compare(network: SMT, program: Program, shapes: Sequence[tuple[int, int]]) -> list[Comparison]:
    """Return a comparison for each of these heights and widths, with one image and with several."""
    return list(_comparisons(network, program, shapes))


def _comparisons(
    network: SMT, program: Program, shapes: Sequence[tuple[int, int]]
) -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(0)
    for (height, width), batch in product(shapes, BATCHES):
        images = torch.randn(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = network(images)
        shape = batch, height, width
        try:
            actual = program(images)
        except Exception as error:  # a guard of torch, or whatever ONNX Runtime raises
            yield Comparison(shape, None, str(error).strip().splitlines()[0])
        else:
            yield Comparison(shape, _difference(actual, expected))


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of the largest value; infinite for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
