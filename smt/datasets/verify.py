"""Whether a data set is what its manifest says, to the last byte, and as large as published."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smt.config.datasets import Dataset
from smt.config.project import Project
from smt.datasets import lists, manifest, scan
from smt.datasets.differences import Differences
from smt.datasets.hashing import Digest, Kept, Meter, Probe, Reader, Tally
from smt.datasets.lists import Line
from smt.datasets.manifest import Manifest
from smt.datasets.scan import Found, InvalidDataset, Listing
from smt.errors import DataError
from smt.runs.atomic import explained
from smt.runs.paths import Layout


@dataclass(frozen=True)
class Verified:
    """What was found."""

    manifest: Manifest
    recorded: bool
    """Whether there was no manifest before, so that this one was made of what is there."""
    wrong: Differences
    """Files that are not as they should be; in its file only if there are any."""
    counts: tuple[str, ...]
    """A phrase for each number of folders or images that is not the published one."""
    tally: Tally

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong and not self.counts


class _Seen(NamedTuple):
    """A file as it is now."""

    path: str
    file: Found
    digest: Digest | None
    """None where only names and sizes are looked at."""


def verify(
    project: Project,
    layout: Layout,
    key: str,
    *,
    jobs: int | None = None,
    probe: Probe | None = None,
    meter: Meter | None = None,
) -> Verified:
    """Read a data set and compare it with its manifest; without one, make it.

    `probe` says of a file whether it can be decoded; by default those of validation are. A reading
    that was killed, or that found something wrong, goes on where it was, so that only what was
    mended is read again.

    Raises:
        DataError: there is nothing to compare, or no data set to make a manifest of.
        UserError: the results folder cannot be written, or another process reads the data set.
    """
    meter = meter or Meter()
    root = layout.dataset_root(project.datasets[key])
    kept_in = layout.reading(key, "decoding" if probe else "reading")
    with (
        explained(kept_in, manifest.REMEDY),
        Kept(kept_in) as kept,
        Differences(layout.differences(key)) as wrong,
    ):
        default = manifest.probe_of_validation(project.datasets[key], root)
        reader = Reader(root, kept, jobs=jobs, probe=probe or default, meter=meter)
        if not manifest.digest_file(layout, key).exists():
            made = manifest.record(project, layout, key, reader, wrong, meter)
            found = Verified(made, True, wrong, (), reader.tally)
        else:
            found = _compare(project, layout, key, reader, wrong, meter)
        if found.is_whole:
            kept.finish()
        return found


def check(project: Project, layout: Layout, key: str) -> Verified:
    """Compare a data set with its manifest by names and sizes, without reading a file.

    Raises:
        DataError: there is no such folder, or no manifest that can be read.
        UserError: the results folder cannot be written.
    """
    with (
        explained(layout.differences(key), manifest.REMEDY),
        Differences(layout.differences(key)) as wrong,
    ):
        return _compare(project, layout, key, None, wrong, Meter())


def _compare(
    project: Project,
    layout: Layout,
    key: str,
    reader: Reader | None,
    wrong: Differences,
    meter: Meter,
) -> Verified:
    dataset, written = project.datasets[key], manifest.read(layout, key)
    root, make = layout.dataset_root(dataset), manifest.make_command(project, key)
    scan.require_root(key, root, scan.remedy_for(key, dataset, make))
    meter.expect(_files(written))
    counts: list[str] = []
    try:
        for split in dict.fromkeys((*written.splits, *scan.expected_images(dataset))):
            folders, images = _compare_split(root, dataset, split, written, reader, wrong)
            counts += _miscounts(root, split, dataset, folders, images)
    except InvalidDataset as error:
        raise DataError(f"{key}: {error}; mend it and run this again") from None
    tally = reader.tally if reader else Tally()
    return Verified(written, False, wrong, tuple(counts), tally)


def _files(written: Manifest) -> int:
    """Return how many files the lists of a manifest hold."""
    images = sum(split.images for split in written.splits.values())
    return images + {"imagenet": 0, "coco": len(written.splits), "ade20k": images}[written.layout]


def _compare_split(
    root: Path, dataset: Dataset, split: str, written: Manifest, reader: Reader | None,
    wrong: Differences,
) -> tuple[int, int]:  # fmt: skip
    """Return how many folders and images there are now."""
    parts = scan.parts(root, dataset.layout, split)
    recorded: Iterator[Line] = iter(())
    if split in written.splits:
        recorded = lists.recorded(
            written.list_file(split), written.splits[split].sha256, written.dataset
        )
    folder = scan.image_folder(dataset.layout, split)
    with (
        closing(scan.listings(root, parts)) as listings,
        closing(reader.read(listings) if reader else _unread(listings)) as contents,
    ):
        return len(parts), _merge(recorded, _seen(contents), wrong, folder)


def _unread(
    listings: Iterable[Listing],
) -> Generator[tuple[Listing, list[Digest | None]], None, None]:
    for listing in listings:
        yield listing, [None] * len(listing.files)


def _seen(
    contents: Iterable[tuple[Listing, list[Digest]]]
    | Iterable[tuple[Listing, list[Digest | None]]],
) -> Iterator[_Seen]:
    for listing, digests in contents:
        for file, digest in zip(listing.files, digests, strict=True):
            yield _Seen(f"{listing.folder}/{file.name}", file, digest)


def _merge(
    recorded: Iterator[Line], seen: Iterable[_Seen], wrong: Differences, image_folder: str
) -> int:
    """Note every difference of two streams that are in the same order; return how many images came.

    Files outside of `image_folder` are annotations.
    """
    images = 0
    line = next(recorded, None)
    for image in seen:
        images += image.path.startswith(f"{image_folder}/")
        parts = image.path.split("/")
        while line is not None and line.path.split("/") < parts:
            wrong.add("missing", line.path)
            line = next(recorded, None)
        if line is not None and line.path == image.path:
            _judge(line, image, wrong)
            line = next(recorded, None)
        else:
            wrong.add("new", image.path)
    while line is not None:
        wrong.add("missing", line.path)
        line = next(recorded, None)
    return images


def _judge(line: Line, image: _Seen, wrong: Differences) -> None:
    """Note how an image differs from what its line says."""
    file, digest = image.file, image.digest
    if file.error is not None:
        wrong.add("unreadable", image.path, f"cannot be read ({file.error})")
    elif file.size != line.size:
        wrong.add("changed", image.path, f"{line.size} bytes, now {file.size}")
    elif digest is None:
        return
    elif digest.sha256 is None:
        wrong.add("unreadable", image.path, digest.problem or "")
    elif digest.sha256 != line.sha256:
        wrong.add("changed", image.path, "other bytes, as many")
    elif digest.problem is not None:
        wrong.add("undecodable", image.path, digest.problem)


def _miscounts(
    root: Path, split: str, dataset: Dataset, folders: int, images: int
) -> Iterator[str]:
    folder = root / scan.image_folder(dataset.layout, split)
    expected = scan.expected_images(dataset).get(split, 0)
    numbers = [("images", images, expected)]
    if dataset.layout == "imagenet":
        numbers.insert(0, ("class folders", folders, dataset.classes if expected else 0))
    for noun, found, published in numbers:
        if found != published:
            yield f"{folder} has {found} {noun}, published are {published} ({dataset.source})"
