"""Walking a data set in ImageNet's layout, and saying in one line what is wrong with it."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smt.errors import DataError
from smt.spec import Dataset

Content = Literal["names and sizes", "bytes"]
"""What stands in an image's line: its path and size, or the SHA-256 of its bytes as well."""

SUFFIXES = (".jpeg", ".jpg", ".png")
"""An image's file name ends so, in any case; other files and hidden ones are passed over."""

# Class folders are read side by side, for a network disk answers each question late. On a memory
# disk the threads cost: 100,000 files at 215,000 a second, against 370,000 with one thread.
_THREADS = 16


@dataclass(frozen=True)
class ClassScan:
    """The images of one class folder."""

    images: int
    total_bytes: int
    empty: tuple[str, ...]
    """Names of files without content."""
    lines: bytes
    """A line an image, sorted by name: `split/class/file<TAB>bytes[<TAB>SHA-256]`."""


@dataclass(frozen=True)
class SplitScan:
    """The images of `train` or `val`."""

    classes: tuple[str, ...]
    """Names of the class folders, sorted."""
    per_class: tuple[int, ...]
    total_bytes: int
    lines: tuple[bytes, ...]
    """The lines of each class."""

    @property
    def images(self) -> int:
        """Images of all classes."""
        return sum(self.per_class)


def expected_images(dataset: Dataset) -> dict[str, int]:
    """Return how many images params say each split has; a split of none is left out."""
    expected = {"train": dataset.train_images, "val": dataset.val_images}
    return {split: count for split, count in expected.items() if count}


def scan(name: str, dataset: Dataset, root: Path, make: str | None) -> dict[str, SplitScan]:
    """Return what each split of a data set holds, once all of it is as params say.

    A data set that the project makes itself is read to the last byte, any other by names and sizes.
    `make` is the command that makes the data set, or None where the user brings it.

    Raises:
        DataError: a folder, class or image is missing or too many, empty or unreadable: one line
            with the folder, what was expected, what was found and what to do.
    """
    remedy = f"run: {make}" if make else _remedy(name, dataset)
    if not root.is_dir():
        raise DataError(f"{name}: no folder {root}; {remedy}")
    content: Content = "bytes" if dataset.generator else "names and sizes"
    scans: dict[str, SplitScan] = {}
    for split, count in expected_images(dataset).items():
        try:
            scans[split] = scan_split(root, split, dataset.classes, content)
        except _Wrong as wrong:
            raise DataError(f"{name}: {wrong}; {remedy}") from None
        if scans[split].images != count:
            wrong_count = _count(root / split, scans[split].images, count)
            raise DataError(f"{name}: {wrong_count}; {remedy}")
    if "val" in scans and scans["val"].classes != scans["train"].classes:
        raise DataError(f"{name}: {_difference(root, scans)}; {remedy}")
    return scans


def _remedy(name: str, dataset: Dataset) -> str:
    return (
        f"bring {dataset.title} as ROOT/train/CLASS/IMAGE"
        f"{' and ROOT/val/CLASS/IMAGE' if dataset.val_images else ''}, copied whole, and name ROOT "
        f"and its counts in params/data.yaml, datasets.{name} (below --data, or absolute)"
    )


def _count(folder: Path, found: int, expected: int) -> str:
    if found < expected:
        return f"{folder} has {found} of {expected} images, so it is not copied whole"
    return f"{folder} has {found} images, {found - expected} more than the {expected} of params"


def _difference(root: Path, scans: dict[str, SplitScan]) -> str:
    train, val = set(scans["train"].classes), set(scans["val"].classes)
    missing, extra = min(train - val), min(val - train)
    return (
        f"{root}/val has other class folders than {root}/train: "
        f"no {missing}, but {extra} ({len(train - val)} differ)"
    )


class _Wrong(Exception):
    """What is wrong with a folder."""


def scan_split(root: Path, split: str, classes: int, content: Content) -> SplitScan:
    """Return what `root/split` holds: `classes` folders, none empty, no image without content."""
    folder = root / split
    names = _class_folders(folder, classes)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _scan_class(root, f"{split}/{name}", content), names))
    _require_images(folder, names, found)
    return SplitScan(
        classes=names,
        per_class=tuple(each.images for each in found),
        total_bytes=sum(each.total_bytes for each in found),
        lines=tuple(each.lines for each in found),
    )


def _class_folders(folder: Path, expected: int) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            inside = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise _Wrong(f"{folder} cannot be read ({error.strerror})") from None
    names = tuple(sorted(n for n, is_folder in inside if is_folder and not n.startswith(".")))
    _require_plain(folder, names)
    if len(names) != expected:
        loose = sum(is_image(name) for name, is_folder in inside if not is_folder)
        hint = f" beside {loose} images that are in none" if loose else ""
        raise _Wrong(f"{folder} has {len(names)} class folders{hint}, expected {expected}")
    return names


def _require_images(folder: Path, names: Sequence[str], found: Sequence[ClassScan]) -> None:
    without = [name for name, each in zip(names, found, strict=True) if not each.images]
    if without:
        raise _Wrong(f"{folder}/{without[0]} has no images ({_alike(len(without), 'folder')})")
    empty = [
        f"{name}/{file}" for name, each in zip(names, found, strict=True) for file in each.empty
    ]
    if empty:
        raise _Wrong(f"{folder}/{empty[0]} is a file of 0 bytes ({_alike(len(empty), 'file')})")


def _alike(count: int, noun: str) -> str:
    return f"{count} such {noun}{'s' if count > 1 else ''}"


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _scan_class(root: Path, inner: str, content: Content) -> ClassScan:
    """Return what the class folder `root/inner` holds."""
    folder = root / inner
    try:
        with os.scandir(folder) as entries:
            files = sorted((e.name, e.stat().st_size) for e in entries if is_image(e.name))
        _require_plain(folder, [name for name, _ in files])
        digests = [f"\t{_sha256(folder / name)}" if content == "bytes" else "" for name, _ in files]
    except OSError as error:
        raise _Wrong(f"{error.filename or folder} cannot be read ({error.strerror})") from None
    lines = [
        f"{inner}/{name}\t{size}{digest}\n"
        for (name, size), digest in zip(files, digests, strict=True)
    ]
    return ClassScan(
        images=len(files),
        total_bytes=sum(size for _, size in files),
        empty=tuple(name for name, size in files if not size),
        lines="".join(lines).encode(),
    )


def _require_plain(folder: Path, names: Sequence[str]) -> None:
    """Refuse a name that would not stand on one line of a list, in UTF-8."""
    together = "/".join(names)
    if "\t" in together or "\n" in together or not _is_utf8(together):
        bad = next(name for name in names if "\t" in name or "\n" in name or not _is_utf8(name))
        raise _Wrong(f"{folder} has a name with a tab, a line break or no valid UTF-8: {bad!r}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
