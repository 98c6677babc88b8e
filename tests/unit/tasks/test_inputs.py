"""What a task gives its model has the bits of images that are normalised and padded one by one."""

from typing import Any

import pytest
import torch

from smt.data.detection import detection_loader, pad
from smt.data.segmentation import segmentation_loader
from smt.data.transforms.image import Normalise
from smt.engine.distributed import Ranks
from smt.tasks.detect import Detection
from smt.tasks.segment import Segmentation
from tests.unit.data.test_segmentation import RECIPE as SEGMENTATION
from tests.unit.datasets.test_ade20k import ADE20K, ADE20KSplit
from tests.unit.datasets.test_coco import Coco
from tests.unit.tasks.test_pinning import DETECTION, HERE


def inputs(kind, loader):
    """Return the micro-batches of a loader, and what a task gives its model for each."""
    task = kind.__new__(kind)
    task._ranks, task._loader = Ranks(0, 1, torch.device("cpu")), loader
    given = [batch.loss_inputs for batch in task.micro_batches(0, 0)]
    return zip([batch for _, batch in loader.micro_batches(0)], given, strict=True)


def test_the_images_of_a_detector_are_padded_with_zeros(tmp_path):
    split, padded = Coco(tmp_path).open(), 0
    for batch, (images, targets) in inputs(
        Detection, detection_loader(split, DETECTION, masks=False, seed=0, **HERE)
    ):
        alone = [Normalise()(sample.image) for sample in batch.samples]
        assert torch.equal(images, pad(alone)) and images.is_contiguous()
        assert [target.size for target in targets] == [image.shape[1:] for image in alone]
        padded += sum(image.shape != images.shape[1:] for image in alone)
    assert padded


@pytest.mark.parametrize("factor", [(0.3, 0.6), (1.5, 2.0)])
def test_the_images_of_a_segmenter_are_padded_with_zeros(tmp_path, factor):
    data, padded = ADE20K(tmp_path), 0
    split = ADE20KSplit(data.root, "train", data.manifest())
    plain: Any = SEGMENTATION
    augment = plain.augment.model_copy(update={"factor": factor})
    recipe = plain.model_copy(update={"augment": augment})
    for batch, (images, labels) in inputs(
        Segmentation, segmentation_loader(split, recipe, seed=0, **HERE)
    ):
        assert labels.dtype == torch.int64 and torch.equal(labels, batch.labels.long())
        for pixels, (height, width), image in zip(batch.images, batch.sizes, images, strict=True):
            expected = torch.zeros_like(image)
            expected[:, :height, :width] = Normalise()(pixels[:, :height, :width])
            assert torch.equal(image, expected)
            padded += (height, width) != image.shape[1:]
    assert bool(padded) == (factor[0] < 1)
