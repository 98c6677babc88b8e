"""Whether a data set is what its manifest says, to the last byte, and as large as published."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smt.config.datasets import Dataset
from smt.config.project import Project
from smt.datasets import file_lists, manifest, manifest_writer, scan, validation_files
from smt.datasets.differences import Differences
from smt.datasets.file_lists import Line
from smt.datasets.hashing import (
    DecodeCheck,
    Digest,
    FileHasher,
    HashCache,
    HashStats,
    ProgressCallback,
)
from smt.datasets.manifest import Manifest
from smt.datasets.packs import record
from smt.datasets.packs import verify as packs
from smt.datasets.scan import FileEntry, InvalidDataset, Listing
from smt.errors import DataError
from smt.runs.atomic import RESULTS_REMEDY, explained
from smt.runs.paths import Layout


@dataclass(frozen=True)
class VerifyResult:
    """What was found."""

    manifest: Manifest
    created: bool
    """Whether there was no manifest before, so that this one was made of what is there."""
    differences: Differences
    """Files that are not as they should be; in its file only if there are any."""
    count_mismatches: tuple[str, ...]
    """A phrase for each number of folders or images that is not the published one."""
    stats: HashStats

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.differences and not self.count_mismatches


class _CurrentFile(NamedTuple):
    """A file as it is now."""

    path: str
    file: FileEntry
    digest: Digest | None
    """None where only names and sizes are looked at."""


def verify(
    project: Project,
    layout: Layout,
    key: str,
    *,
    jobs: int | None = None,
    decode_check: DecodeCheck | None = None,
    progress: ProgressCallback | None = None,
) -> VerifyResult:
    """Read a data set and compare it with its manifest; without one, make it.

    `decode_check` says of a file whether it can be decoded; by default those of validation are. A
    reading that was killed, or that found something wrong, resumes, so that only what
    was mended is read again.

    Raises:
        DataError: there is nothing to compare, or no data set to make a manifest of.
        UserError: the results folder cannot be written, or another process reads the data set.
    """
    progress = progress or ProgressCallback()
    root = layout.dataset_root(project.datasets[key])
    cache_file = layout.hash_cache(key, "decoding" if decode_check else "reading")
    with (
        explained(cache_file, RESULTS_REMEDY),
        HashCache(cache_file) as cache,
        Differences(layout.differences(key)) as differences,
    ):
        if decode_check is not None and scan.is_packed(project.datasets[key], root):
            decode_check = packs.decode_check(root, every_split=True)
        default = validation_files.decode_check(project.datasets[key], root)
        hasher = FileHasher(
            root, cache, jobs=jobs, decode_check=decode_check or default, progress=progress
        )
        if not manifest.manifest_path(layout, key).exists():
            created = manifest_writer.create(project, layout, key, hasher, differences, progress)
            result = VerifyResult(created, True, differences, (), hasher.stats)
        else:
            result = _compare(project, layout, key, hasher, differences, progress)
        if result.is_whole:
            cache.finish()
        return result


def check(project: Project, layout: Layout, key: str) -> VerifyResult:
    """Compare a data set with its manifest by names and sizes, without reading a file.

    Raises:
        DataError: there is no such folder, or no manifest that can be read.
        UserError: the results folder cannot be written.
    """
    with (
        explained(layout.differences(key), RESULTS_REMEDY),
        Differences(layout.differences(key)) as differences,
    ):
        return _compare(project, layout, key, None, differences, ProgressCallback())


def _compare(
    project: Project,
    layout: Layout,
    key: str,
    hasher: FileHasher | None,
    differences: Differences,
    progress: ProgressCallback,
) -> VerifyResult:
    dataset, recorded = project.datasets[key], manifest.read(layout, key)
    root, make = layout.dataset_root(dataset), manifest.make_command(project, key)
    scan.require_root(key, root, scan.remedy_for(key, dataset, make))
    if scan.is_packed(dataset, root):
        return _compare_pack(root, dataset, recorded, hasher, differences, progress)
    progress.expect(_files(recorded))
    count_mismatches: list[str] = []
    try:
        for split in dict.fromkeys((*recorded.splits, *scan.expected_images(dataset))):
            folders, images = _compare_split(root, dataset, split, recorded, hasher, differences)
            count_mismatches += _count_mismatches(root, split, dataset, folders, images)
    except InvalidDataset as error:
        raise DataError(f"{key}: {error}; fix it and run this again") from None
    stats = hasher.stats if hasher else HashStats()
    return VerifyResult(recorded, False, differences, tuple(count_mismatches), stats)


def _compare_pack(
    root: Path, dataset: Dataset, recorded: Manifest, hasher: FileHasher | None,
    differences: Differences, progress: ProgressCallback,
) -> VerifyResult:  # fmt: skip
    """Note how a pack differs from its own record, and what that lists from the manifest."""
    pack = record.read(root)
    progress.expect(len(list(pack.shards())))
    packs.compare(pack, hasher, differences)
    if not differences and pack.manifest.digest != recorded.digest:
        compare_manifests(recorded, pack.manifest, differences)
    packed = pack.manifest.splits
    count_mismatches = [
        mismatch
        for split in dict.fromkeys((*packed, *scan.expected_images(dataset)))
        for mismatch in _count_mismatches(
            root, split, dataset, len(pack.manifest.classes) if split in packed else 0,
            packed[split].images if split in packed else 0,
        )
    ]  # fmt: skip
    stats = hasher.stats if hasher else HashStats()
    return VerifyResult(recorded, False, differences, tuple(count_mismatches), stats)


def compare_manifests(before: Manifest, now: Manifest, differences: Differences) -> None:
    """Note every image that two manifests list with other bytes, or that one of them lacks.

    Raises:
        DataError: a list is missing or not the one that its manifest names.
    """
    for split in dict.fromkeys((*before.splits, *now.splits)):
        lines, files = (_listed(each, split) for each in (before, now))
        images = (
            _CurrentFile(line.path, FileEntry(line.path, line.size, (0, 0)), Digest(line.sha256))
            for line in files
        )
        _merge(lines, images, differences, scan.image_folder(now.layout, split))


def _listed(recorded: Manifest, split: str) -> Iterator[Line]:
    if split not in recorded.splits:
        return iter(())
    return file_lists.read_checked(
        recorded.list_file(split), recorded.splits[split].sha256, recorded.dataset
    )


def _files(recorded: Manifest) -> int:
    """Return how many files the lists of a manifest hold."""
    images = sum(split.images for split in recorded.splits.values())
    return images + {"imagenet": 0, "coco": len(recorded.splits), "ade20k": images}[recorded.layout]


def _compare_split(
    root: Path, dataset: Dataset, split: str, recorded: Manifest, hasher: FileHasher | None,
    differences: Differences,
) -> tuple[int, int]:  # fmt: skip
    """Return how many folders and images there are now."""
    parts = scan.parts(root, dataset.layout, split)
    lines = _listed(recorded, split)
    folder = scan.image_folder(dataset.layout, split)
    with (
        closing(scan.listings(root, parts)) as listings,
        closing(hasher.read(listings) if hasher else _without_digests(listings)) as contents,
    ):
        return len(parts), _merge(lines, _current_files(contents), differences, folder)


def _without_digests(
    listings: Iterable[Listing],
) -> Generator[tuple[Listing, list[Digest | None]], None, None]:
    for listing in listings:
        yield listing, [None] * len(listing.files)


def _current_files(
    contents: Iterable[tuple[Listing, list[Digest]]]
    | Iterable[tuple[Listing, list[Digest | None]]],
) -> Iterator[_CurrentFile]:
    for listing, digests in contents:
        for file, digest in zip(listing.files, digests, strict=True):
            yield _CurrentFile(f"{listing.folder}/{file.name}", file, digest)


def _merge(
    lines: Iterator[Line],
    files: Iterable[_CurrentFile],
    differences: Differences,
    image_folder: str,
) -> int:
    """Note every difference of two streams that are in the same order; return how many images came.

    Files outside of `image_folder` are annotations.
    """
    images = 0
    line = next(lines, None)
    for image in files:
        images += image.path.startswith(f"{image_folder}/")
        parts = image.path.split("/")
        while line is not None and line.path.split("/") < parts:
            differences.add("missing", line.path)
            line = next(lines, None)
        if line is not None and line.path == image.path:
            _compare_file(line, image, differences)
            line = next(lines, None)
        else:
            differences.add("new", image.path)
    while line is not None:
        differences.add("missing", line.path)
        line = next(lines, None)
    return images


def _compare_file(line: Line, image: _CurrentFile, differences: Differences) -> None:
    """Note how an image differs from what its line says."""
    file, digest = image.file, image.digest
    if file.error is not None:
        differences.add("unreadable", image.path, f"cannot be read ({file.error})")
    elif file.size != line.size:
        differences.add("changed", image.path, f"{line.size} bytes, now {file.size}")
    elif digest is None:
        return
    elif digest.sha256 is None:
        differences.add("unreadable", image.path, digest.problem or "")
    elif digest.sha256 != line.sha256:
        differences.add("changed", image.path, "other bytes, as many")
    elif digest.problem is not None:
        differences.add("undecodable", image.path, digest.problem)


def _count_mismatches(
    root: Path, split: str, dataset: Dataset, folders: int, images: int
) -> Iterator[str]:
    folder = root / scan.image_folder(dataset.layout, split)
    expected = scan.expected_images(dataset).get(split, 0)
    numbers = [("images", images, expected)]
    if dataset.layout == "imagenet":
        numbers.insert(0, ("class folders", folders, dataset.classes if expected else 0))
    for noun, actual, published in numbers:
        if actual != published:
            yield f"{folder} has {actual} {noun}, published are {published} ({dataset.source})"
