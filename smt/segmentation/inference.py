"""From an image to its label map: whole images, at one scale or at several (mmseg 0.30)."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smt.config.augment import SegmentationEvaluation
from smt.data.transforms.image import PADDED_TO, Normalise
from smt.data.transforms.segmentation import SegmentationEvalTransform
from smt.segmentation.resample import Size, resize
from smt.segmentation.upernet import UPerNet


def predict(
    model: UPerNet,
    image: np.ndarray,
    evaluation: SegmentationEvaluation,
    *,
    factors: Sequence[float] = (1.0,),
    hflip: bool = False,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return the class of each pixel, (H, W) uint8, of an RGB image (H, W, 3) uint8.

    It is the class of the largest probability, averaged over scales of `factors` and, with `hflip`,
    over the image and its mirror image at each. `model` is on `device`, in evaluation mode.
    """
    transform, picture = SegmentationEvalTransform(evaluation), Image.fromarray(image)
    size = (picture.height, picture.width)
    with torch.inference_mode():
        views = _views(
            model, (transform(picture, factor) for factor in factors), hflip, device, size
        )
        total = next(views)
        for view in views:
            total += view
        return total[0].argmax(0).to(torch.uint8).cpu().numpy()


def _views(
    model: UPerNet, images: Iterable[Tensor], hflip: bool, device: torch.device | str, size: Size
) -> Iterator[Tensor]:
    """Yield probabilities (1, classes, *size) of each image (3, H, W) uint8, and of its mirror."""
    normalise = Normalise(device)
    for image in images:
        inputs = normalise(image[None])
        yield probabilities(model, inputs, size)
        if hflip:
            yield probabilities(model, inputs.flip(-1), size).flip(-1)


def probabilities(model: UPerNet, images: Tensor, size: Size) -> Tensor:
    """Return (B, classes, *size) of images (B, 3, H, W), in the way that mmseg enlarges logits.

    They are enlarged to the images' size, then to `size`. Of an image narrower than the coarsest
    stage's stride, which has no logits in mmseg, the rest up to it is filled with the mean colour.
    """
    height, width = images.shape[-2:]
    inputs = images
    if min(height, width) < PADDED_TO:
        room = (0, max(PADDED_TO - width, 0), 0, max(PADDED_TO - height, 0))
        inputs = F.pad(images, room)
    enlarged = resize(model.logits(inputs).float(), (inputs.shape[-2], inputs.shape[-1]))
    return resize(enlarged[..., :height, :width], size).softmax(1)
