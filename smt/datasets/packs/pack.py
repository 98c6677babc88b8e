"""Packing a data set by its name, and what is refused before a byte is written."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.config.project import Project
from smt.datasets import manifest as manifests
from smt.datasets import verify
from smt.datasets.differences import Differences
from smt.datasets.hashing import ProgressCallback
from smt.datasets.manifest import Manifest
from smt.datasets.packs import record
from smt.datasets.packs.plan import SplitPlan, plan
from smt.datasets.packs.record import Pack
from smt.datasets.packs.write import Packer, PackStats
from smt.datasets.scan import PACK_RECORD, UNFINISHED_PACK, is_pack
from smt.errors import DataError, UserError
from smt.runs.atomic import explained
from smt.runs.paths import Layout

SHARD_SIZE = 10**9
"""Bytes of a shard at most, unless a user says otherwise."""

_REMEDY = "free some space, or give another folder: --to FOLDER; then run this again, which goes on"


@dataclass(frozen=True)
class PackResult:
    """A pack, and what was done for it."""

    pack: Pack
    stats: PackStats | None
    """None where nothing was to do."""


def default_folder(project: Project, layout: Layout, key: str) -> Path:
    """Return where a data set is packed unless a user says otherwise: beside its root."""
    root = layout.dataset_root(project.datasets[key])
    return root.with_name(f"{root.name}-packed")


def pack(
    project: Project,
    layout: Layout,
    key: str,
    folder: Path,
    *,
    shard_size: int | None = None,
    replace: bool = False,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Pack the images that the manifest of `key` lists into `folder`.

    A packing that was killed goes on; shards that are there and right are kept. With `replace` the
    same holds for a pack of the data as they were before, or in shards of another size. By default
    shards are of the size of those that are there, or of `SHARD_SIZE` bytes.

    Raises:
        DataError: there is no manifest, or the images are not as it says.
        UserError: the data set cannot be packed, or `folder` not be written or not hold it.
    """
    root = require_packable(project, layout, key)
    listed = manifests.read_current(project, layout, key)
    _require_free(folder, root, key)
    shard_size = shard_size or _existing(folder).get("shard_size", SHARD_SIZE)
    plans = [plan(listed, split, shard_size) for split in listed.splits]
    if (folder / PACK_RECORD).exists() and not replace:
        there = record.read(folder)
        if not _is_same(there, listed, plans):
            raise UserError(f"{_what_differs(there, listed)}; {_choices(key)}")
        if not any(record.problems(there)):
            return PackResult(there, None)
    _require_unchanged(project, layout, key)
    _require_space(folder, plans)
    packer = Packer(root, folder, listed, shard_size, jobs=jobs, progress=progress)
    with explained(folder, _REMEDY):
        return PackResult(packer.run(plans), packer.stats)


def require_packable(project: Project, layout: Layout, key: str) -> Path:
    """Return the folder of a data set's images, or raise a UserError where none can be packed."""
    manifests.require_key(project, key)
    valid = [name for name, each in project.datasets.items() if each.layout == "imagenet"]
    if key not in valid:
        raise UserError(
            f"{key} cannot be packed: only data sets in ImageNet's layout can; "
            f"valid: {', '.join(valid)}"
        )
    root = layout.dataset_root(project.datasets[key])
    if is_pack(root):
        raise UserError(
            f"{key} is packed already: {root} is a pack; to pack it again, give "
            f"datasets.{key}.root the class folders"
        )
    return root


def _require_free(folder: Path, root: Path, key: str) -> None:
    """Refuse a folder in which other things than a pack of this data set lie, or its originals."""
    if folder.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"--to {folder}: lies in {root}, which is left as it is; give a folder outside"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file; give a folder that is empty or not there")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_pack(folder):
        first = min(folder.iterdir()).name
        raise UserError(
            f"--to {folder}: holds other things, such as {first}; give a folder that is empty or "
            "not there"
        )
    if (owner := _existing(folder).get("dataset", key)) != key:
        raise UserError(f"--to {folder}: holds a pack of {owner}, not of {key}; give another one")


def _existing(folder: Path) -> dict[str, Any]:
    """Return data set and size of the shards of a pack, finished or not; {} where none says it."""
    for name in (PACK_RECORD, UNFINISHED_PACK):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads((folder / name).read_bytes())
            dataset = str(content.get("manifest", content)["dataset"])
            return {"dataset": dataset, "shard_size": int(content["shard_size"])}
    return {}


def _is_same(there: Pack, listed: Manifest, plans: list[SplitPlan]) -> bool:
    """Whether a pack is of the images of a manifest, in the shards of the plans."""
    planned = {(each.split, each.names, each.shard_bytes) for each in plans}
    packed = {
        (split, tuple(s.name for s in found.shards), tuple(s.bytes for s in found.shards))
        for split, found in there.splits.items()
    }
    return there.manifest.digest == listed.digest and planned == packed


def _what_differs(there: Pack, listed: Manifest) -> str:
    """Return how a pack differs from what a manifest and plans ask for."""
    if there.manifest.digest == listed.digest:
        return f"{there.folder} is a pack of the same images in shards of another size"
    differences = Differences(None)
    verify.compare_manifests(there.manifest, listed, differences)
    first = differences.first[0]
    return (
        f"{there.folder} is a pack of {listed.dataset} as it was before: since then "
        f"{differences.summary()}, such as {first.path}"
    )


def _choices(key: str) -> str:
    return f"to write the shards that differ anew: smt data pack {key} --replace; or give --to"


def _require_unchanged(project: Project, layout: Layout, key: str) -> None:
    """Refuse, by names and sizes, images that are not as their manifest says."""
    result = verify.check(project, layout, key)
    if not result.is_whole:
        first = next(iter([f"{d.kind} {d.path}" for d in result.differences.first]), "")
        what = first or result.count_mismatches[0]
        raise DataError(
            f"{key} has changed since its manifest was made ({result.differences.summary()}; "
            f"{what}); run smt data check {key}, and for the data as they are: smt data manifest "
            f"{key} --scale {layout.scale}"
        )


def _require_space(folder: Path, plans: list[SplitPlan]) -> None:
    """Refuse a disk that has less room than what is still to be written."""
    existing = sum(path.stat().st_size for path in _shards_in(folder, plans))
    needed = sum(each.total_bytes for each in plans) - existing
    disk = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB, and {disk} has {free / 1e9:.1f} GB free; "
            f"{_REMEDY}"
        )


def _shards_in(folder: Path, plans: list[SplitPlan]) -> Iterator[Path]:
    for each in plans:
        yield from (path for name in each.names if (path := folder / name).exists())
