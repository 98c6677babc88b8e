"""A split of ADE20K, or of a data set in its layout: images and label maps."""

from pathlib import Path

import numpy as np
from PIL import Image

from smt.datasets import file_lists, label_maps, scan
from smt.datasets.decoding import decode
from smt.datasets.label_maps import Pair
from smt.datasets.manifest import Manifest
from smt.datasets.scan import InvalidDataset
from smt.errors import DataError


class ADE20KSplit:
    """`train` or `val`, images sorted by name.

    Raises:
        DataError: the list beside the manifest is missing or not the one that the manifest names.
    """

    def __init__(self, root: Path, split: str, manifest: Manifest) -> None:
        self.name, self.classes = manifest.dataset, manifest.classes
        images = scan.image_folder("ade20k", split)
        maps = root / scan.map_folder(split)
        listed = file_lists.read_checked(
            manifest.list_file(split), manifest.splits[split].sha256, manifest.dataset
        )
        self.images = [
            Pair(root / line.path, maps / label_maps.map_name(line.path))
            for line in listed
            if line.path.startswith(f"{images}/")
        ]
        """Paths of each image and of its label map."""

    def __len__(self) -> int:
        return len(self.images)

    def load_image(self, index: int) -> Image.Image:
        """Return an image as RGB, upright by its EXIF.

        Raises:
            DataError: it cannot be read.
        """
        return decode(self.images[index].image, upright=True)

    def label_map(self, index: int) -> np.ndarray:
        """Return the classes of an image's pixels, (H, W) uint8, from 0; 255 is no class.

        Raises:
            DataError: the map cannot be read, is of another size than its image, or has labels that
                are none.
        """
        try:
            return label_maps.read(self.images[index], len(self.classes))
        except InvalidDataset as error:
            raise DataError(
                f"{error}; bring back what was there, or run smt data manifest {self.name} again"
            ) from None
