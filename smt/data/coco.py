"""A split of COCO, or of a data set in its layout: images, boxes and masks."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from smt.datasets import coco_annotations, file_lists, masks
from smt.datasets.decoding import decode
from smt.datasets.manifest import Manifest
from smt.datasets.scan import InvalidDataset, annotation_file, image_folder
from smt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoImage:
    """An image as the annotations have it."""

    id: int
    path: Path
    height: int
    width: int


@dataclass(frozen=True)
class Annotation:
    """The objects of an image that are trained on: no crowds, nothing without an area.

    Where masks are asked for, nothing without one either.
    """

    boxes: np.ndarray
    """(N, 4) float32, x1 y1 x2 y2 in pixels, inside the image."""
    labels: np.ndarray
    """(N,) int64."""


class CocoSplit:
    """`train` or `val`, images sorted by id; for a detector of boxes alone, or of `masks` as well.

    The annotations stay in a memory map of their file that all processes of a node share, beside a
    few arrays: COCO's 860,000 as Python objects would take gigabytes in each process.

    Raises:
        DataError: the annotations are not those that the manifest is of, or cannot be read; or
            masks are asked for, and in `train` there is none, or in `val` not one of everything.
    """

    def __init__(self, root: Path, split: str, manifest: Manifest, *, masks: bool = False) -> None:
        self.name, self.classes = manifest.dataset, manifest.classes
        self.annotation_file = root / annotation_file(split)
        """COCO's JSON file, which the evaluation reads."""
        self._text = _mapped(self.annotation_file, split, manifest)
        try:
            self._instances = coco_annotations.read(self.annotation_file, self._text.data)
        except InvalidDataset as wrong:
            raise DataError(f"{wrong}; {_remedy(manifest)}") from None
        self._is_used = self._instances.is_usable
        if masks:
            self._require_masks(split)
            self._is_used = self._is_used & self._instances.has_mask
        self.category_ids = self._instances.category_ids
        """COCO's id of each class."""
        self.images = CocoImages(root / image_folder("coco", split), self._instances)
        self.trainable = np.flatnonzero(self._instances.is_trainable())
        """(T,) int64: images that are trained on, for they show an object and are not tiny."""

    def __len__(self) -> int:
        return len(self.images)

    def load_image(self, index: int) -> Image.Image:
        """Return an image as RGB, upright by its EXIF.

        Raises:
            DataError: it cannot be read, or is not of the size that its annotations are of.
        """
        entry = self.images[index]
        image = decode(entry.path, upright=True)
        if image.size != (entry.width, entry.height):
            raise DataError(
                f"image {entry.path} is {image.height} x {image.width} pixels, but "
                f"{self.annotation_file} says {entry.height} x {entry.width}"
            )
        return image

    def annotation(self, index: int) -> Annotation:
        """Return boxes and labels of the objects in an image."""
        objects = self._objects(index)
        height, width = self._instances.sizes[index]
        boxes = self._instances.boxes[objects]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        inside = corners.clip(0, [width, height, width, height])
        return Annotation(inside.astype(np.float32), self._instances.labels[objects])

    def masks(self, index: int) -> np.ndarray:
        """Return the masks of an image's objects, (N, height, width) bool, in the same order."""
        height, width = self._instances.sizes[index].tolist()
        byte_ranges = self._instances.byte_ranges[self._objects(index)].tolist()
        entries = (json.loads(self._text[start:end].tobytes()) for start, end in byte_ranges)
        return masks.rasterize([entry["segmentation"] for entry in entries], height, width)

    def _objects(self, index: int) -> np.ndarray:
        """Return the numbers of an image's objects among all of the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        first, last = self._instances.offsets[index : index + 2]
        objects: np.ndarray = first + np.flatnonzero(self._is_used[first:last])
        return objects

    def _require_masks(self, split: str) -> None:
        """Refuse what a detector of masks could not be trained on, or not be measured by."""
        instances = self._instances
        # The evaluation compares with crowds as well.
        without = ~instances.has_mask & (instances.is_usable if split == "train" else True)
        count = int(without.sum())
        if not count:
            return
        first = int(np.flatnonzero(without)[0])
        text = self._text[slice(*instances.byte_ranges[first].tolist())].tobytes()
        what = f"{count} of {len(without)} annotations of {self.annotation_file} have no mask"
        if split == "val" or not (instances.is_usable & instances.has_mask).any():
            raise DataError(
                f"{what}, such as annotation {json.loads(text)['id']}, and this head predicts "
                "masks; train one of boxes alone, such as retinanet, or bring annotations with a "
                "segmentation"
            )
        log.warning("%s: a head that predicts masks is not trained on them", what)


class CocoImages(Sequence[CocoImage]):
    """The images of a split, sorted by id."""

    def __init__(self, folder: Path, instances: coco_annotations.Instances) -> None:
        self._folder, self._instances = folder, instances

    @property
    def sizes(self) -> np.ndarray:
        """(I, 2) int64: height and width of each image in pixels."""
        return self._instances.sizes

    def __len__(self) -> int:
        return len(self._instances.image_ids)

    def __getitem__(self, index: int) -> CocoImage:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        height, width = self._instances.sizes[index].tolist()
        path = self._folder / str(self._instances.file_names[index])
        return CocoImage(int(self._instances.image_ids[index]), path, height, width)


def _mapped(path: Path, split: str, manifest: Manifest) -> np.ndarray:
    """Return the bytes of a split's annotations, once they are those that the manifest lists."""
    remedy = _remedy(manifest)
    try:
        text = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"annotations {path} cannot be read ({error}); {remedy}") from None
    name, listed_in = annotation_file(split), manifest.list_file(split)
    read_checked = file_lists.read_checked(
        listed_in, manifest.splits[split].sha256, manifest.dataset
    )
    listed = next((line for line in read_checked if line.path == name), None)
    if listed is None or listed.sha256 != hashlib.sha256(text.data).hexdigest():
        raise DataError(f"annotations {path} are not those that {listed_in} names; {remedy}")
    return text


def _remedy(manifest: Manifest) -> str:
    return f"bring back what was there, or run smt data manifest {manifest.dataset} again"
