"""Files that an evaluation writes beside its numbers: all predictions, and a sheet of samples."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.evaluation import predictions, samples
from smt.evaluation.predictions import ImageResult, Kind
from smt.runs.atomic import explained, fresh_folder, publish_folder, unfinished
from smt.runs.paths import EvaluationOutputs

REMEDY = "see to it and evaluate the run again"


def write_detections(
    outputs: EvaluationOutputs,
    split: CocoSplit,
    results: Sequence[ImageResult],
    kinds: Collection[Kind],
) -> None:
    """Write what is found in a split as COCO's test server takes it, and a sheet of some of it.

    Raises:
        UserError: it cannot be written.
    """
    with explained(outputs.predictions, REMEDY):
        fresh_folder(outputs.predictions)
        predictions.write(unfinished(outputs.predictions), results, kinds)
        publish_folder(outputs.predictions)
        samples.write(outputs.samples, samples.detection_sheet(split, results))


class LabelMapWriter:
    """Keeps predicted classes of images as ADE20K's test server takes them, and a sheet of some.

    A PNG an image, under the name of its label map: class c is c + 1. Each process adds its own
    images between `begin` and `end`, which one of them calls.
    """

    def __init__(self, outputs: EvaluationOutputs, split: ADE20KSplit) -> None:
        self._outputs, self._split = outputs, split
        self._sample_indices = frozenset(samples.sample_indices(split))
        self.samples: dict[int, np.ndarray] = {}
        """Classes (H, W) uint8 of the images that go into the sheet, of this process."""

    def begin(self) -> None:
        """Make an empty temporary folder; earlier predictions stay until `end`.

        Raises:
            UserError: it cannot be written.
        """
        with explained(self._outputs.predictions, REMEDY):
            fresh_folder(self._outputs.predictions)

    def add(self, index: int, prediction: np.ndarray) -> None:
        """Keep the classes (H, W) uint8 of an image.

        Raises:
            UserError: they cannot be written.
        """
        path = unfinished(self._outputs.predictions) / self._split.images[index].map.name
        with explained(path, REMEDY):
            Image.fromarray(prediction + np.uint8(1)).save(path)
        if index in self._sample_indices:
            self.samples[index] = prediction

    def end(self, samples_of_ranks: Iterable[Mapping[int, np.ndarray]]) -> None:
        """Publish all that was added, and draw the samples of every process.

        Raises:
            UserError: it cannot be written.
        """
        predicted = {
            index: prediction for part in samples_of_ranks for index, prediction in part.items()
        }
        with explained(self._outputs.predictions, REMEDY):
            publish_folder(self._outputs.predictions)
            samples.write(self._outputs.samples, samples.label_map_sheet(self._split, predicted))
