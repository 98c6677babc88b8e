"""What `params/data.yaml` holds: data sets, and maps between their classes."""

from typing import Annotated, Literal

from pydantic import Field

from smt.config.types import Name, Positive, Strict


class Dataset(Strict):
    """Images on disk, in the layout that the data set is published in."""

    title: str
    layout: Literal["imagenet", "coco", "ade20k"] = "imagenet"
    """imagenet: `train/CLASS/IMAGE`, `val/CLASS/IMAGE`. coco: `train2017/IMAGE`,
    `val2017/IMAGE`, `annotations/instances_train2017.json` and `instances_val2017.json`. ade20k:
    `images/training/NAME.jpg` with `annotations/training/NAME.png`, and `validation` likewise."""
    root: str
    """Folder, absolute or below the data folder (`--data`, SMT_DATA, or data/). In imagenet's
    layout it may be a pack of the images as well; see `smt.datasets.packs`."""
    classes: Positive
    train_images: Positive
    also_published: tuple[Positive, ...] = ()
    """Other counts of training images that copies of the data set have: one of them is no sign of
    an incomplete copy, but has to be chosen as `train_images`."""
    val_images: Annotated[int, Field(ge=0)]
    """0 where the data set has no validation split."""
    images_with_objects: Positive | None = None
    """Training images that show an object, of a coco data set: the others are not trained on."""
    source: str
    """Where classes and counts are published."""
    generator: Literal["digits", "digit_pairs", "scenes_coco", "scenes_ade20k"] | None
    """Demo data are made by this; null where the user brings the data."""

    @property
    def trained_images(self) -> int:
        """Images of an epoch."""
        return self.images_with_objects or self.train_images


class ClassMap(Strict):
    """For each class of the target data set, the row of the source head that starts it."""

    source: Name
    """Data set of the head that is cut down."""
    target: Name
    """Data set of the new head."""
    path: str
    """Text file, one source class number a line, absolute or below the data folder."""
