"""What an evaluation keeps of its predictions, beside the numbers: files of them and a picture."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.evaluation import predictions, samples
from smt.evaluation.predictions import ImageResult, Kind
from smt.runs.atomic import explained, fresh_folder, publish_folder, unfinished
from smt.runs.paths import Kept

REMEDY = "see to it and evaluate the run again"


def keep_detections(
    kept: Kept, split: CocoSplit, found: Sequence[ImageResult], kinds: Collection[Kind]
) -> None:
    """Write what is found in a split as COCO's test server takes it, and a picture of some of it.

    Raises:
        UserError: it cannot be written.
    """
    with explained(kept.predictions, REMEDY):
        fresh_folder(kept.predictions)
        predictions.write(unfinished(kept.predictions), found, kinds)
        publish_folder(kept.predictions)
        samples.write(kept.samples, samples.of_detections(split, found))


class LabelMaps:
    """Keeps predicted classes of images as ADE20K's test server takes them, and a picture of some.

    A PNG an image, under the name of its label map: class c is c + 1. Each process adds its own
    images between `begin` and `end`, which one of them calls.
    """

    def __init__(self, kept: Kept, split: ADE20KSplit) -> None:
        self._kept, self._split = kept, split
        self._picked = frozenset(samples.shown_maps(split))
        self.shown: dict[int, np.ndarray] = {}
        """Classes (H, W) uint8 of the images that go into the picture, of this process."""

    def begin(self) -> None:
        """Make room; what was kept before stays until `end`.

        Raises:
            UserError: it cannot be written.
        """
        with explained(self._kept.predictions, REMEDY):
            fresh_folder(self._kept.predictions)

    def add(self, index: int, prediction: np.ndarray) -> None:
        """Keep the classes (H, W) uint8 of an image.

        Raises:
            UserError: they cannot be written.
        """
        path = unfinished(self._kept.predictions) / self._split.images[index].map.name
        with explained(path, REMEDY):
            Image.fromarray(prediction + np.uint8(1)).save(path)
        if index in self._picked:
            self.shown[index] = prediction

    def end(self, shown: Iterable[Mapping[int, np.ndarray]]) -> None:
        """Put all that was added in place, and draw what every process has to show.

        Raises:
            UserError: it cannot be written.
        """
        every = {index: each for part in shown for index, each in part.items()}
        with explained(self._kept.predictions, REMEDY):
            publish_folder(self._kept.predictions)
            samples.write(self._kept.samples, samples.of_label_maps(self._split, every))
