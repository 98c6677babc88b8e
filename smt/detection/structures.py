"""What detectors take and give.

Boxes are (N, 4) float32, x1 y1 x2 y2 in pixels of the image that the model sees, x1 y1 the corner
of the first pixel and x2 y2 the corner beyond the last. Labels count classes from 0.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from smt.models.profile import Calls


@dataclass(frozen=True)
class Target:
    """The objects of one image. Crowds are not among them."""

    boxes: Tensor
    labels: Tensor
    """(N,) int64."""
    size: tuple[int, int]
    """Height and width of the image, without the padding of its batch."""
    masks: Tensor | None = None
    """(N, height, width) bool, or None where no masks are asked for."""


@dataclass(frozen=True)
class Detections:
    """What a model finds in one image, best first."""

    boxes: Tensor
    """Inside the image's unpadded size."""
    scores: Tensor
    """(N,) float32, 0 to 1."""
    labels: Tensor
    """(N,) int64."""
    masks: Tensor | None = None
    """(N, M, M) float32: probabilities on a grid of M x M cells that fill each box."""


Size = tuple[int, int]
"""Height and width."""


class Backbone(Protocol):
    """A network that gives a pyramid of features."""

    widths: tuple[int, int, int, int]
    """Channels of each level."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return images (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 of (B, 3, H, W)."""
        ...


class DetectionModel(nn.Module):
    """A backbone and the head that finds objects in its features."""

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars whose sum is minimised.

        `images` are (B, 3, H, W), normalised, padded with zeros at right and bottom to one size, a
        multiple of 32. Every parameter takes part in the sum, whatever the batch holds: with no
        object at all the losses of objects are zero and have a gradient of zero.
        """
        raise NotImplementedError

    def predict(self, images: Tensor, sizes: list[Size]) -> list[Detections]:
        """Return what is found in each image; `sizes` are those without padding.

        To be called in evaluation mode, without gradients.
        """
        raise NotImplementedError

    def calls(self, features: list[Tensor], size: Size) -> Calls:
        """Return what prediction runs on `features` of one image of `size`, to count its cost.

        Where that depends on what is found, it is the most: all proposals, all detections.
        """
        raise NotImplementedError
