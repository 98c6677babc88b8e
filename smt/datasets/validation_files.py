"""The validation files of a data set: evaluations need all of them, so they are checked before.

Those of training may be many times as many; `smt data check` and `smt data verify` are for them.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from smt.config.datasets import Dataset
from smt.config.project import Project
from smt.datasets import file_lists, scan
from smt.datasets.decoding import require_decodable
from smt.datasets.hashing import DecodeCheck
from smt.datasets.manifest import manifest_command, read
from smt.datasets.packs import record
from smt.datasets.packs import verify as packs
from smt.datasets.scan import is_packed
from smt.errors import DataError
from smt.runs.paths import Layout

_THREADS = 16
"""Files that are looked at side by side, for a disk on the network answers late."""


def decode_check(dataset: Dataset, root: Path) -> DecodeCheck:
    """Return what decodes the images that evaluations need: one missing is found before training.

    Those of training may be many times as many; `smt data verify --decode` is for them.
    """
    if is_packed(dataset, root):
        return packs.decode_check(root, every_split=False)
    folder = root / scan.image_folder(dataset.layout, "val")

    def check(path: Path, content: BinaryIO) -> None:
        if folder in path.parents:
            require_decodable(content)

    return check


def require_unchanged(project: Project, layout: Layout, key: str) -> None:
    """Refuse validation files that are not of the sizes that they had, before a run needs them.

    Training images may be many times as many: `smt data check` and `smt data verify` are for them.
    Of a pack all shards are looked at.

    Raises:
        DataError: naming the first such file and what to do.
    """
    recorded, root = read(layout, key), layout.dataset_root(project.datasets[key])
    if is_packed(project.datasets[key], root):
        record.require_whole(record.read_of(recorded, root))
        return
    if "val" not in recorded.splits:
        return
    sha256 = recorded.splits["val"].sha256
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = list(file_lists.read_checked(recorded.list_file("val"), sha256, key))
        sizes = pool.map(_size, (root / line.path for line in listed))
        differing = [
            (line, size) for line, size in zip(listed, sizes, strict=True) if size != line.size
        ]
    if not differing:
        return
    line, size = differing[0]
    state = "is missing" if size is None else f"has {size} bytes"
    raise DataError(
        f"{root / line.path} {state}, {line.size} when its manifest was made "
        f"({len(differing)} such); "
        f"bring back what was there, or run {manifest_command(layout, key)} for the data as they "
        "are, which makes of each run on them another one"
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
