"""Whether a pack is what its record says, to the last byte; the manifest of what it holds."""

from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from smt.config.datasets import Dataset
from smt.datasets import scan
from smt.datasets.decoding import require_decodable
from smt.datasets.differences import Differences
from smt.datasets.hashing import DecodeCheck, FileHasher, ProgressCallback
from smt.datasets.manifest import Manifest
from smt.datasets.packs import record, shards
from smt.datasets.packs.index import PackedImages
from smt.datasets.packs.record import Pack, Shard
from smt.datasets.scan import PACK_RECORD, FileEntry, Listing
from smt.errors import DataError
from smt.runs import atomic
from smt.runs.atomic import copy_file, write_json


def compare(pack: Pack, hasher: FileHasher | None, differences: Differences) -> None:
    """Note each file of a pack that is not as its record says; without `hasher` by their sizes.

    Of a shard with other bytes the first such entry is named.
    """
    for kind, path, what in record.problems(pack):
        if hasher is None or not path.endswith(".tar"):
            differences.add(kind, path, what)
    if hasher is None:
        return
    for split, packed in pack.manifest.splits.items():
        listed = pack.manifest.list_file(split)
        if listed.is_file() and atomic.sha256(listed) != packed.sha256:
            differences.add("changed", packed.listed_in, "other bytes")
    listings = (_listing(pack, shard) for _, shard in pack.shards())
    with closing(hasher.read(listings)) as contents:
        for (split, shard), (listing, [digest]) in zip(pack.shards(), contents, strict=True):
            if digest.sha256 is None:
                kind = "unreadable" if listing.files[0].times[0] else "missing"
                differences.add(kind, shard.name, digest.problem or "")
            elif digest.sha256 != shard.sha256:
                differences.add("changed", shard.name, _first_damage(pack, split, shard))
            elif digest.problem is not None:
                differences.add("undecodable", shard.name, digest.problem)


def _listing(pack: Pack, shard: Shard) -> Listing:
    """Return a shard as a folder with one file: a hasher hands out and remembers each alone."""
    folder, _, name = shard.name.rpartition("/")
    try:
        stat = (pack.folder / shard.name).stat()
        file = FileEntry(name, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError as error:
        file = FileEntry(name, 0, (0, 0), error.strerror)
    return Listing(folder, (file,))


def _first_damage(pack: Pack, split: str, shard: Shard) -> str:
    """Return what is wrong with a shard of other bytes, and in which entry."""
    try:
        for _ in shards.read(pack.folder / shard.name, shards.entries_of(pack, split, shard)):
            pass
    except shards.DamagedShard as damage:
        return str(damage)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"all entries as in {split}.txt, but not the bytes that {PACK_RECORD} names"


def decode_check(root: Path, *, every_split: bool) -> DecodeCheck:
    """Return what decodes each image of the shards of a pack, of validation alone or of all."""
    pack = record.read(root)
    by_path: dict[Path, tuple[PackedImages, range]] = {}
    for split in pack.splits if every_split else pack.splits.keys() & {"val"}:
        images, first = PackedImages(pack, split), 0
        for shard in pack.splits[split].shards:
            by_path[pack.folder / shard.name] = images, range(first, first + shard.images)
            first += shard.images

    def check(path: Path, content: BinaryIO) -> None:
        if path in by_path:
            _decode(content, *by_path[path])

    return check


def _decode(content: BinaryIO, images: PackedImages, positions: range) -> None:
    """Raise a DataError with the first image of a shard that cannot be decoded, and how many."""
    problems: list[str] = []
    for position in positions:
        offset, size = images.place(position)
        content.seek(offset)
        try:
            require_decodable(BytesIO(content.read(size)))
        except DataError as error:
            problems.append(f"{images.path(position)} {error}" if not problems else "")
    if problems:
        more = f" ({len(problems)} such in it)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")


def create(
    key: str, dataset: Dataset, path: Path, hasher: FileHasher,
    differences: Differences, progress: ProgressCallback,
) -> Manifest:  # fmt: skip
    """Write the manifest `path` of the pack that `hasher` reads, once every byte has been read.

    Raises:
        DataError: the pack is not as its record or params say: what is wrong is in `differences`.
    """
    pack = record.read(hasher.root)
    require_as_params_say(pack, key, dataset)
    progress.expect(len(list(pack.shards())))
    compare(pack, hasher, differences)
    for difference in differences.first:
        if difference.kind != "undecodable" or difference.path.startswith("val/"):
            raise DataError(
                f"{key}: {pack.folder / difference.path} is {difference.kind} ({difference.what}; "
                f"{differences.summary()}, all in {differences.path}); {record.remedy(pack)}"
            )
    splits = {
        split: packed.model_copy(update={"listed_in": f"{path.stem}.{split}.txt"})
        for split, packed in pack.manifest.splits.items()
    }
    written = pack.manifest.model_copy(
        update={"dataset": key, "splits": splits, "folder": path.parent}
    )
    for split in splits:
        copy_file(pack.manifest.list_file(split), written.list_file(split))
    write_json(path, written.model_dump(mode="json", exclude_defaults=True))
    return written


def require_as_params_say(pack: Pack, key: str, dataset: Dataset) -> Pack:
    """Return a pack, once none of its files is missing and params expect as much as it holds.

    Raises:
        DataError: naming the first file, or the numbers.
    """
    record.require_whole(pack)
    splits = {split: packed.images for split, packed in pack.manifest.splits.items()}
    expected = scan.expected_images(dataset)
    if (len(pack.manifest.classes), splits) != (dataset.classes, expected):
        raise DataError(
            f"{key}: {pack.folder} is a pack of {len(pack.manifest.classes)} classes and {splits} "
            f"images, params say {dataset.classes} and {expected} ({dataset.source}); give "
            f"datasets.{key} in params/data.yaml the right root, or the right counts"
        )
    return pack
