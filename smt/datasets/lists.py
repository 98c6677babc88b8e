"""The lists beside a manifest: a line a file, `folder/file<TAB>bytes<TAB>SHA-256`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smt.datasets import scan
from smt.datasets.differences import Differences, Kind
from smt.datasets.hashing import Digest, Reader
from smt.datasets.scan import Listing, SplitScan
from smt.errors import DataError
from smt.runs import atomic


class Line(NamedTuple):
    """A file as a list has it."""

    path: str
    """Below the root of the data set."""
    size: int
    sha256: str


@dataclass(frozen=True)
class SplitSum:
    """What the list of a split amounts to."""

    total_bytes: int
    sha256: str


class DatasetChanged(Exception):
    """The data set was changed between its listing and its reading."""


def lines(listing: Listing, digests: list[Digest]) -> bytes:
    """Return the lines of a folder's files."""
    return "".join(
        f"{listing.folder}/{file.name}\t{file.size}\t{digest.sha256}\n"
        for file, digest in zip(listing.files, digests, strict=True)
    ).encode()


def read(path: Path) -> Iterator[Line]:
    """Yield what a list says, file by file."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            name, size, sha256 = line.rstrip("\n").split("\t")
            yield Line(name, int(size), sha256)


def recorded(path: Path, sha256: str, dataset: str) -> Iterator[Line]:
    """Yield what the list of a split says, once it is the one that its manifest names.

    Raises:
        DataError: it is missing or another one.
    """
    remedy = f"bring it back (git, dvc), or run smt data manifest {dataset} again"
    if not path.is_file():
        raise DataError(f"list of images {path} is missing; {remedy}")
    if atomic.sha256(path) != sha256:
        raise DataError(f"list of images {path} is not the one that its manifest names; {remedy}")
    return read(path)


def make(
    reader: Reader,
    scans: Mapping[str, SplitScan],
    write: Callable[[str, bytes], object],
    wrong: Differences,
) -> tuple[str, dict[str, SplitSum]]:
    """Read every file; return the SHA-256 of all lists together, and what each amounts to.

    `write` is given the lines of a split, a folder at a time; files that cannot be read, or that
    `reader` is to decode and cannot, are added to `wrong`.

    Raises:
        DatasetChanged: a folder holds another number of images than it was scanned with.
    """
    whole = hashlib.sha256()
    sums: dict[str, SplitSum] = {}
    for split, found in scans.items():
        own, size = hashlib.sha256(), 0
        with (
            closing(scan.listings(reader.root, found.parts)) as listings,
            closing(reader.read(listings)) as contents,
        ):
            for (listing, digests), expected in zip(contents, found.files, strict=True):
                if len(listing.files) != expected:
                    raise DatasetChanged(
                        f"{reader.root / listing.folder} was changed while it was read"
                    )
                for file, digest in zip(listing.files, digests, strict=True):
                    if digest.problem is not None:
                        # An evaluation needs every image; in training others can stand in.
                        spared = split == "train" and digest.sha256 is not None
                        kind: Kind = "undecodable" if spared else "unreadable"
                        wrong.add(kind, f"{listing.folder}/{file.name}", digest.problem)
                text = lines(listing, digests)
                whole.update(text)
                own.update(text)
                write(split, text)
                size += sum(file.size for file in listing.files)
        sums[split] = SplitSum(size, own.hexdigest())
    return whole.hexdigest(), sums
