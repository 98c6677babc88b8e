"""Micro-batches of segmentation: random augmentation by occurrence of an image."""

import pytest

from smt.data.ade20k import ADE20KSplit
from smt.data.segmentation import segmentation_loader
from tests.unit.datasets.test_ade20k import ADE20K, PROJECT

DEMO = PROJECT.recipes["upernet_160k"]
RECIPE = DEMO.model_copy(
    update={
        "global_batch": 4,
        "device_batch": 2,
        "schedule": DEMO.schedule.model_copy(update={"interval": 3}),
    }
)


@pytest.fixture
def split(tmp_path):
    """A split of three identical images."""
    data = ADE20K(tmp_path)
    return ADE20KSplit(data.root, "train", data.manifest())


def augmented(split, epoch, seed=3):
    """Return the bytes of each image of an epoch, in order."""
    loader = segmentation_loader(split, RECIPE, seed=seed, rank=0, world_size=1, workers=0)
    return [
        image.numpy().tobytes()
        for _, batch in loader.micro_batches(epoch)
        for image in batch.images
    ]


def test_every_occurrence_of_an_image_has_its_own_augmentation(split):
    images = [image for epoch in range(3) for image in augmented(split, epoch)]
    images += augmented(split, 0, seed=4)
    assert len(images) == 4 * 12 and len(set(images)) == len(images)
    assert augmented(split, 0) == images[:12], "the same for the same epoch and seed"
