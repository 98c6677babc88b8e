"""Images in a folder a class, and the number of each class: what an evaluation alone reads.

A training reads what a manifest lists, with the SHA-256 of every file. An evaluation of weights of
others needs the validation images alone, from wherever they lie, so that a manifest of the whole
data set is used where there is one, and the folder is listed where there is none.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smt.datasets.decoding import EncodedImage
from smt.datasets.scan import InvalidDataset, class_folders, listings
from smt.datasets.text_file import text_lines
from smt.errors import DataError, UserError, listed

_UNPADDED = re.compile(r"0|[1-9]\d*")
"""A number as people write it: sorted as text, 10 comes before 2."""


@dataclass(frozen=True)
class LabelledImages:
    """Images, each with the number of its class."""

    root: Path
    samples: Sequence[tuple[Path | EncodedImage, int]]
    """Each image, for `decode`, and its class number; sorted by class folder, then by file."""
    classes: tuple[str, ...]
    """Class i is the i-th: names of class folders. One that labels alone name has no images."""
    digest: str
    """SHA-256 of the list of images: a line each, `class/file<TAB>bytes`, as far as `content`."""
    content: Literal["bytes", "names and sizes"]
    """What the digest covers: with `bytes`, the SHA-256 of each file is in the list as well."""

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """Return what an image is called below the root, or where it lies in a pack."""
        image, _ = self.samples[index]
        return str(image.relative_to(self.root) if isinstance(image, Path) else image)


def images_of(root: Path, labels: Path | None) -> LabelledImages:
    """Return the images of a folder, or of `val` in it, with the class numbers of its folders.

    `labels` is a file with the name of a class folder a line, that of class 0 first; what follows
    the name on a line is passed over, so that ImageNet's own list of synsets will do. Without it
    class i is the i-th folder sorted by name, as torchvision reads them.

    Raises:
        DataError: no such folder, one without class folders, a class folder without images, or one
            that `labels` does not name.
        UserError: `labels` cannot be read or repeats a name; or without it, the folders are called
            by numbers, whose order as text is not their own.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; give the one that holds a folder of images a class")
    folder = root / "val" if (root / "val").is_dir() else root
    try:
        folders = class_folders(folder)
        if not folders:
            raise DataError(f"{folder} has no class folders; give the one that holds them")
        classes = folders if labels is None else _class_order(labels)
        if labels is None:
            _refuse_unpadded_numbers(folder, folders)
        return _listed(folder, folders, classes, labels)
    except InvalidDataset as wrong:
        raise DataError(f"{wrong}; copy the images again") from None


def _listed(
    root: Path, folders: Sequence[str], classes: tuple[str, ...], source: Path | None
) -> LabelledImages:
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in folders if name not in number_of]
    if unknown:
        raise DataError(
            f"{root} has class folders that {source} does not name: {listed(unknown, 3)}; give "
            "--labels a file with every class folder of these images"
        )
    samples: list[tuple[Path | EncodedImage, int]] = []
    lines: list[str] = []
    for listing in listings(root, folders):
        if not listing.files:
            within = class_folders(root / listing.folder)
            why = "; copy them again"
            if within:
                why = f", but folders such as {within[0]}; give the one that holds a folder a class"
            raise DataError(f"{root / listing.folder} has no images{why}")
        for file in listing.files:
            path = root / listing.folder / file.name
            if file.error is not None or not file.size:
                reason = file.error or "a file of 0 bytes"
                raise DataError(f"{path} cannot be read ({reason}); copy it again")
            samples.append((path, number_of[listing.folder]))
            lines.append(f"{listing.folder}/{file.name}\t{file.size}\n")
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return LabelledImages(root, samples, classes, digest, "names and sizes")


def _class_order(path: Path) -> tuple[str, ...]:
    """Return the names of class folders in the order of a file."""
    advice = "give a text file with the name of a class folder a line, that of class 0 first"
    lines = text_lines(path, "--labels", advice)
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            raise UserError(f"--labels {path}: line {number} is empty; valid: a class folder")
        if words[0] in line_of:
            raise UserError(
                f"--labels {path}: line {number} repeats {words[0]} of line {line_of[words[0]]}; "
                "each class stands once"
            )
        line_of[words[0]] = number
    if not line_of:
        raise UserError(f"--labels {path} is empty; valid: a class folder a line")
    return tuple(line_of)


def _refuse_unpadded_numbers(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders 0, 1, 2, ..., 10: sorted as text they are in another order than counted."""
    if all(_UNPADDED.fullmatch(name) for name in folders):
        first = next((a for a, b in zip(folders, sorted(folders, key=int), strict=True) if a != b),
                     None)  # fmt: skip
        if first is not None:
            raise UserError(
                f"{root}: class folders are called by numbers, and sorted as text {first} is in "
                "another place than counted; give --labels a file with a folder a line, that of "
                f"class 0 first (by number: ls {root} | sort -n)"
            )
