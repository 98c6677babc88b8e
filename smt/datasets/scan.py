"""Walking a data set in its layout, and saying in one line what is wrong with it."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from smt.config.datasets import Dataset
from smt.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
"""An image's file name ends so, in any case; other files and hidden ones are passed over."""

PACK_RECORD = "pack.json"
"""Of a folder that holds a data set as shards; see `smt.datasets.packs`."""

UNFINISHED_PACK = "packing.json"
"""What stands for it until the last shard is written."""

DatasetLayout = Literal["imagenet", "coco", "ade20k"]
"""How a data set lies on disk: `layout` of params."""

_ADE20K = {"train": "training", "val": "validation"}
"""Names of folders, by split."""

# Folders are listed side by side, for a network disk answers each question late. On a memory disk
# the threads cost: 100,000 files at 215,000 a second, against 370,000 with one thread.
_THREADS = 16


class FileEntry(NamedTuple):
    """An image file as its folder lists it."""

    name: str
    size: int
    """Bytes."""
    times: tuple[int, int]
    """When content and inode changed last, in nanoseconds since 1970."""
    error: str | None = None
    """Why nothing more than the name is known of it."""


@dataclass(frozen=True)
class Listing:
    """The images of one folder, sorted by name."""

    folder: str
    """Below the root, as in `train/n01440764`."""
    files: tuple[FileEntry, ...]
    other_files: tuple[str, ...] = ()
    """Names of other files, hidden ones left aside, sorted."""


@dataclass(frozen=True)
class SplitScan:
    """The files of `train` or `val`."""

    parts: tuple[str, ...]
    """Its folders below the root, in the order of its list; see `parts`."""
    files: tuple[int, ...]
    """Of each part."""
    other_files: tuple[str, ...]
    """Other files beside the images, below the root."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted; none where annotations say what the classes are."""
    images: int
    total_bytes: int


def is_packed(dataset: Dataset, root: Path) -> bool:
    """Whether `root` holds a data set as shards instead of class folders."""
    return dataset.layout == "imagenet" and is_pack(root)


def is_pack(folder: Path) -> bool:
    """Whether a folder holds shards, packed to the end or not."""
    return any((folder / name).exists() for name in (PACK_RECORD, UNFINISHED_PACK))


def image_folder(layout: DatasetLayout, split: str) -> str:
    """Return the folder below the root that holds the images of a split."""
    if layout == "coco":
        return f"{split}2017"
    return f"images/{_ADE20K[split]}" if layout == "ade20k" else split


def annotation_file(split: str) -> str:
    """Return the file below the root that holds COCO's annotations of a split."""
    return f"annotations/instances_{split}2017.json"


def map_folder(split: str) -> str:
    """Return the folder below the root that holds ADE20K's label maps of a split."""
    return f"annotations/{_ADE20K[split]}"


def required_paths(layout: DatasetLayout, split: str) -> tuple[str, ...]:
    """Return the files and folders below the root without which there is no such split."""
    images = image_folder(layout, split)
    if layout == "coco":
        return annotation_file(split), images
    return (map_folder(split), images) if layout == "ade20k" else (images,)


def parts(root: Path, layout: DatasetLayout, split: str) -> tuple[str, ...]:
    """Return what a split consists of now, in the order of its list: folders, and COCO's file.

    Raises:
        InvalidDataset: ImageNet's class folders cannot be listed.
    """
    if layout != "imagenet":
        return tuple(path for path in required_paths(layout, split) if (root / path).exists())
    names = class_folders(root / split) if (root / split).is_dir() else ()
    return tuple(f"{split}/{name}" for name in names)


def expected_images(dataset: Dataset) -> dict[str, int]:
    """Return how many images params say each split has; a split of none is left out."""
    expected = {"train": dataset.train_images, "val": dataset.val_images}
    return {split: count for split, count in expected.items() if count}


def scan(name: str, dataset: Dataset, root: Path, make: str | None) -> dict[str, SplitScan]:
    """Return what each split of a data set holds by names and sizes, once that is as params say.

    `make` is the command that makes the data set, or None where the user brings it.

    Raises:
        DataError: a folder, class or image is missing or too many, or empty: one line with the
            folder, what was expected, what was found and what to do.
    """
    remedy = remedy_for(name, dataset, make)
    require_root(name, root, remedy)
    scans: dict[str, SplitScan] = {}
    for split, count in expected_images(dataset).items():
        try:
            scans[split] = scan_split(root, dataset.layout, split, dataset.classes)
        except InvalidDataset as wrong:
            raise DataError(f"{name}: {wrong}; {remedy}") from None
        if scans[split].images != count:
            if split == "train" and scans[split].images in dataset.also_published:
                raise DataError(_another_copy(name, dataset, root, scans[split].images))
            what = _miscount(dataset, root, split, scans[split])
            raise DataError(f"{name}: {what}; {remedy}")
    if "val" in scans and scans["val"].classes != scans["train"].classes:
        raise DataError(f"{name}: {_difference(root, scans)}; {remedy}")
    return scans


def require_root(name: str, root: Path, remedy: str) -> None:
    """Raise a DataError where there is no folder `root`."""
    if not root.is_dir():
        raise DataError(f"{name}: no folder {root}; {remedy}")


def remedy_for(name: str, dataset: Dataset, make: str | None) -> str:
    """Return what the user can do about an incomplete data set."""
    if make:
        return f"run: {make}"
    places = " and ".join(
        f"ROOT/{place}"
        for split in expected_images(dataset)
        for place in places_of(dataset.layout, split)
    )
    return (
        f"bring {dataset.title} as {places}, copied whole, and name ROOT "
        f"and its counts in params/data.yaml, datasets.{name} (below --data, or absolute)"
    )


def places_of(layout: DatasetLayout, split: str) -> tuple[str, ...]:
    """Return where the files of a split lie below the root, as a message calls them."""
    images = image_folder(layout, split)
    if layout == "coco":
        return f"{images}/IMAGE", annotation_file(split)
    if layout == "ade20k":
        return f"{images}/NAME.jpg", f"{map_folder(split)}/NAME.png"
    return (f"{images}/CLASS/IMAGE",)


def _another_copy(name: str, dataset: Dataset, root: Path, images: int) -> str:
    folder = root / image_folder(dataset.layout, "train")
    return (
        f"{name}: {folder} has {images} images, as other copies of {dataset.title} do, and params "
        f"say {dataset.train_images}; set datasets.{name}.train_images in params/data.yaml to "
        f"{images}"
    )


def _miscount(dataset: Dataset, root: Path, split: str, split_scan: SplitScan) -> str:
    """Return what is to be said of a split that has another number of images than params say."""
    folder, expected = root / image_folder(dataset.layout, split), expected_images(dataset)[split]
    if split_scan.images > expected:
        more = split_scan.images - expected
        what = f"{folder} has {split_scan.images} images, {more} more than the {expected} of params"
    elif split_scan.other_files:
        what = (
            f"{folder} has {split_scan.images} of {expected} images, and "
            f"{len(split_scan.other_files)} files "
            f"that are no images by their names, such as {split_scan.other_files[0]} (valid: "
            f"{', '.join(SUFFIXES)})"
        )
    else:
        what = f"{folder} has {split_scan.images} of {expected} images, so the copy is incomplete"
    return f"{what} ({dataset.source})"


def _difference(root: Path, scans: dict[str, SplitScan]) -> str:
    train, val = set(scans["train"].classes), set(scans["val"].classes)
    missing, extra = min(train - val), min(val - train)
    return (
        f"{root}/val has other class folders than {root}/train: "
        f"no {missing}, but {extra} ({len(train - val)} differ)"
    )


class InvalidDataset(Exception):
    """What is wrong with a folder."""


def scan_split(root: Path, layout: DatasetLayout, split: str, classes: int) -> SplitScan:
    """Return what a split holds: `classes` class folders, none empty, no file without content."""
    names = class_folders(root / split, classes) if layout == "imagenet" else ()
    folders = tuple(f"{split}/{name}" for name in names) or required_paths(layout, split)
    counts, total, without, empty, other_files = [], 0, [], [], []
    for listing in listings(root, folders):
        for file in listing.files:
            path = f"{listing.folder}/{file.name}"
            if file.error is not None:
                raise InvalidDataset(f"{root / path} cannot be read ({file.error})")
            if not file.size:
                empty.append(path)
        if not listing.files:
            without.append(listing.folder)
        other_files += [f"{listing.folder}/{name}" for name in listing.other_files]
        counts.append(len(listing.files))
        total += sum(file.size for file in listing.files)
    if without:
        raise InvalidDataset(
            f"{root}/{without[0]} has no images ({_count_phrase(len(without), 'folder')})"
        )
    if empty:
        raise InvalidDataset(
            f"{root}/{empty[0]} is a file of 0 bytes ({_count_phrase(len(empty), 'file')})"
        )
    return SplitScan(
        parts=folders,
        files=tuple(counts),
        other_files=tuple(other_files),
        classes=names,
        # Annotations stand before the images that they are of.
        images=sum(counts) if layout == "imagenet" else counts[-1],
        total_bytes=total,
    )


def class_folders(folder: Path, expected: int | None = None) -> tuple[str, ...]:
    """Return the names of the class folders in `folder`, sorted; raise where not `expected`."""
    try:
        with os.scandir(folder) as entries:
            inside = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise InvalidDataset(f"{folder} cannot be read ({error.strerror})") from None
    names = tuple(sorted(n for n, is_folder in inside if is_folder and not n.startswith(".")))
    _require_plain(folder, names)
    if expected is not None and len(names) != expected:
        loose = sum(is_image(name) for name, is_folder in inside if not is_folder)
        hint = f" beside {loose} images that are in none" if loose else ""
        if len(names) > expected:
            without = [name for name in names if not image_names(folder / name)]
            hint += f", of which {without[0]} has no images" if without else ""
        raise InvalidDataset(f"{folder} has {len(names)} class folders{hint}, expected {expected}")
    return names


def _count_phrase(count: int, noun: str) -> str:
    return f"{count} such {noun}{'s' if count > 1 else ''}"


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def image_names(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted; nothing else is asked of them.

    Raises:
        InvalidDataset: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_image(entry.name))
    except OSError as error:
        raise InvalidDataset(f"{folder} cannot be read ({error.strerror})") from None


def listings(root: Path, folders: Iterable[str]) -> Generator[Listing, None, None]:
    """Yield what each folder below `root` holds, in the order given; a few are listed ahead.

    Of the folder of COCO's annotations the file that is named in its place is listed alone. Who may
    stop before the last has to close it, for threads of it wait until then.

    Raises:
        InvalidDataset: a folder cannot be listed, or holds a name that would not stand on one line.
    """
    waiting = iter(folders)
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead = deque(pool.submit(_list, root, path) for path in islice(waiting, 2 * _THREADS))
        while ahead:
            listing = ahead.popleft().result()
            ahead.extend(pool.submit(_list, root, path) for path in islice(waiting, 1))
            yield listing


def _list(root: Path, folder: str) -> Listing:
    if folder in (annotation_file("train"), annotation_file("val")):
        return _list_alone(root, folder)
    try:
        with os.scandir(root / folder) as entries:
            files, other_files = [], []
            for entry in entries:
                if is_image(entry.name):
                    files.append(_file_entry(entry))
                elif not entry.name.startswith(".") and entry.is_file():
                    other_files.append(entry.name)
    except OSError as error:
        raise InvalidDataset(f"{root / folder} cannot be read ({error.strerror})") from None
    _require_plain(root / folder, [file.name for file in files])
    return Listing(folder, tuple(sorted(files)), tuple(sorted(other_files)))


def _list_alone(root: Path, path: str) -> Listing:
    """Return the folder of a file with nothing else in it."""
    try:
        stat = (root / path).stat()
    except OSError as error:
        raise InvalidDataset(f"{root / path} cannot be read ({error.strerror})") from None
    folder, _, name = path.rpartition("/")
    return Listing(folder, (FileEntry(name, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns)),))


def _file_entry(entry: "os.DirEntry[str]") -> FileEntry:
    try:
        stat = entry.stat()
    except OSError as error:
        return FileEntry(entry.name, 0, (0, 0), error.strerror)
    return FileEntry(entry.name, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns))


def _require_plain(folder: Path, names: Sequence[str]) -> None:
    """Refuse a name that would not stand on one line of a list, in UTF-8."""
    together = "/".join(names)
    if "\t" in together or "\n" in together or not _is_utf8(together):
        bad = next(name for name in names if "\t" in name or "\n" in name or not _is_utf8(name))
        raise InvalidDataset(
            f"{folder} has a name with a tab, a line break or no valid UTF-8: {bad!r}"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
