"""`pack.json`: what a packed data set holds, and the digest of each of its shards.

A pack of a data set in ImageNet's layout is a folder:

    pack.json         the manifest of the images, and the digests of all other files
    train.txt         the list of the images, as beside a manifest
    train.npy         the index: shard, offset, size, class and CRC-32 of each line of the list
    train/000000.tar  the shards

and the same of `val`. `pack.json` is written last. Until then there is `packing.json`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from smt.config.types import Strict
from smt.datasets.differences import Difference
from smt.datasets.manifest import Manifest
from smt.datasets.scan import PACK_RECORD
from smt.errors import DataError, first_line
from smt.runs import atomic

VERSION = 1
"""Of the format; raised when a pack of before cannot be read any more."""


class Shard(Strict):
    """A tar file of images."""

    name: str
    """Below the folder of the pack, as in `train/000000.tar`."""
    images: int
    bytes: int
    sha256: str


class PackedSplit(Strict):
    """The files of `train` or `val`."""

    index: str
    """Name of the index."""
    index_sha256: str
    shards: tuple[Shard, ...]


class Pack(Strict):
    """A packed data set."""

    version: int
    shard_size: int
    """Bytes that a shard has at most, unless a single image is larger."""
    manifest: Manifest
    """Of the images; its lists lie in the pack."""
    splits: dict[str, PackedSplit]
    folder: Path = Field(exclude=True)
    """Where it lies; not part of the file."""

    def shards(self) -> Iterator[tuple[str, Shard]]:
        """Yield every shard with its split."""
        for split, packed in self.splits.items():
            for shard in packed.shards:
                yield split, shard


def read(folder: Path) -> Pack:
    """Return what `pack.json` says.

    Raises:
        DataError: it is missing, damaged or of another version, or class folders lie beside the
            shards.
    """
    path, again = folder / PACK_RECORD, "smt data pack again, with the class folders as root"
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise DataError(
                f"{path} is of version {content['version']} of the format, valid: {VERSION}; "
                f"run {again} and --replace"
            )
        content["manifest"]["folder"] = folder
        pack = Pack.model_validate({**content, "folder": folder})
        if pack.splits.keys() != pack.manifest.splits.keys():
            raise ValueError("shards of other splits than the manifest has")
    except FileNotFoundError:
        raise DataError(
            f"{folder} is a pack that is not finished (no {PACK_RECORD}); run {again}: it goes on"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
        raise DataError(
            f"{path} is not the record of a pack ({first_line(error)}); bring it back, or run "
            f"{again} and --replace"
        ) from None
    _require_no_folders(pack)
    return pack


def read_of(manifest: Manifest, folder: Path) -> Pack:
    """Return the record of a pack, once it is of the images of `manifest`.

    Raises:
        DataError: it is of other images, or see `read`.
    """
    pack, key = read(folder), manifest.dataset
    if pack.manifest.digest != manifest.digest:
        raise DataError(
            f"{folder} is a pack of other images than {manifest.folder / f'{key}.json'} is of; "
            f"smt data check {key} names them; to train on those of the pack, which makes of each "
            f"run on them another one, run: smt data manifest {key}"
        )
    return pack


def _require_no_folders(pack: Pack) -> None:
    for path in (path for split in pack.splits for path in _entries(pack.folder / split)):
        if path.is_dir():
            raise DataError(
                f"{pack.folder} holds both a pack and folders, such as {path.path}; move one of "
                "them away: a root is one or the other"
            )


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def problems(pack: Pack) -> Iterator[Difference]:
    """Yield each file that is missing or not of its size, and each index of other content."""
    for split, packed in pack.splits.items():
        name = pack.manifest.splits[split].listed_in
        if not (pack.folder / name).is_file():
            yield Difference("missing", name, "")
        try:
            if atomic.sha256(pack.folder / packed.index) != packed.index_sha256:
                yield Difference("changed", packed.index, f"not the index that {PACK_RECORD} names")
        except OSError as error:
            yield Difference("missing", packed.index, str(error.strerror))
        for shard in packed.shards:
            yield from _shard_problems(pack.folder, shard)


def _shard_problems(folder: Path, shard: Shard) -> Iterator[Difference]:
    try:
        size = (folder / shard.name).stat().st_size
    except FileNotFoundError:
        yield Difference("missing", shard.name, "")
    except OSError as error:
        yield Difference("unreadable", shard.name, str(error.strerror))
    else:
        if size != shard.bytes:
            yield Difference("changed", shard.name, f"{shard.bytes} bytes, now {size}")


def require_whole(pack: Pack) -> None:
    """Raise a DataError with the first of `problems`, if there is one."""
    found = list(problems(pack))
    if found:
        kind, path, what = found[0]
        more = f", {len(found)} such files" if len(found) > 1 else ""
        raise DataError(
            f"{pack.folder / path} is {kind}{f' ({what})' if what else ''}{more}; {remedy(pack)}"
        )


def remedy(pack: Pack) -> str:
    """Return what to do about files of a pack that are not as they were."""
    return (
        "bring back what was there, or remove those files and make them again from the class "
        f"folders: smt data pack {pack.manifest.dataset} --to {pack.folder}"
    )
