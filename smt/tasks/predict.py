"""The logits of a classifier on images, batch by batch: one loop for whatever evaluates it."""

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor, nn

from smt.config.recipes import ClassificationRecipe
from smt.data.classification import ImageSamples, eval_batches
from smt.data.transforms.image import Normalise
from smt.engine import optim
from smt.engine.distributed import Ranks


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: ImageSamples,
    recipe: ClassificationRecipe,
    ranks: Ranks,
    *,
    workers: int,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield logits (B, classes) float32 and labels (B,) int64 of this process, on its device.

    `model` is on that device and in evaluation mode. Images are brought to it as the recipe says,
    and the forward pass is in the recipe's precision. Over all processes every image comes once.

    Raises:
        DataError: an image cannot be read.
    """
    normalise = Normalise(ranks.device)
    batches = eval_batches(
        images, recipe, rank=ranks.rank, world_size=ranks.world_size, workers=workers
    )
    with closing(batches):
        for pixels, labels in batches:
            labels = labels.to(ranks.device, non_blocking=True)
            inputs = normalise(pixels, torch.channels_last)
            with optim.autocast(recipe, ranks.device):
                logits: Tensor = model(inputs)
            yield logits.float(), labels
