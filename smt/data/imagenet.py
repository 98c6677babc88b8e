"""Images of a data set in ImageNet's layout, as their manifest lists them: folders or a pack."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from smt.datasets.decoding import EncodedImage
from smt.datasets.manifest import Manifest
from smt.datasets.packs import record
from smt.datasets.packs.index import PackedImages
from smt.datasets.scan import is_pack
from smt.errors import DataError

_PART = 2**24
"""Bytes of a list that are looked through at once."""


class ImageFolder:
    """The images of one split, sorted by class, then by name.

    Raises:
        DataError: the list beside the manifest is missing or not the one that the manifest names,
            or `root` is a pack that is not finished, damaged, or of other images.
    """

    def __init__(self, root: Path, split: str, manifest: Manifest) -> None:
        self.root, self.split = root, split
        self.name, self.classes = manifest.dataset, manifest.classes
        self.samples: Sequence[tuple[Path | EncodedImage, int]]
        """Each image, for `decode`, and its class number."""
        if is_pack(root):
            self.samples = PackedImages(record.read_of(manifest, root), split)
        else:
            self.samples = SampleList(root, split, manifest)

    def __len__(self) -> int:
        return len(self.samples)


class SampleList(Sequence[tuple[Path, int]]):
    """Path and class number of every image of a split.

    The lines stay in a memory map that all processes of a node share, beside 8 bytes an image for
    where they begin: ImageNet-22K's 14 million as Python objects would take gigabytes in each
    process and each of its workers.
    """

    def __init__(self, root: Path, split: str, manifest: Manifest) -> None:
        self._root = root
        self._text = _read_list(split, manifest)
        self._ends = _line_ends(self._text)
        # Class c ends before image _class_ends[c].
        self._class_ends = np.array(list(accumulate(manifest.splits[split].per_class)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[Path, int]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start = self._ends[index - 1] + 1 if index else 0
        line = self._text[start : self._ends[index]].tobytes().decode()
        label = int(np.searchsorted(self._class_ends, index, side="right"))
        return self._root / line.split("\t", 1)[0], label


def _line_ends(text: np.ndarray) -> np.ndarray:
    """Return where each line ends; by parts, for a list of 22K is 1.6 GB and would be so twice."""
    parts = range(0, len(text), _PART)
    return np.concatenate(
        [np.flatnonzero(text[start : start + _PART] == ord("\n")) + start for start in parts]
    )


def _read_list(split: str, manifest: Manifest) -> np.ndarray:
    """Return the bytes of a split's list, checked against the manifest."""
    path = manifest.list_file(split)
    remedy = f"run smt data manifest {manifest.dataset} again"
    try:
        text = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"list of images {path} cannot be read ({error}); {remedy}") from None
    if hashlib.sha256(text.data).hexdigest() != manifest.splits[split].sha256:
        raise DataError(f"list of images {path} is not the one that its manifest names; {remedy}")
    return text
