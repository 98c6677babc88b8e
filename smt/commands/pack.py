"""`smt data pack`: a data set as tar shards with an index, in place of millions of files."""

import re
from pathlib import Path
from typing import Any

import click

from smt.commands.common import load, scale_option, warn_if_not_interruptible
from smt.config.project import Project
from smt.datasets import manifest, manifest_writer
from smt.datasets.packs import pack as packing
from smt.datasets.progress import ProgressBar
from smt.errors import UserError
from smt.runs import shared_folder
from smt.runs.paths import Layout

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Size(click.ParamType[int]):
    """A number of bytes with its unit, as in 500MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", value.upper())
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if size < 1:
            raise UserError(
                f"--shard-size {value}: valid: a number with {', '.join(_UNITS)}, as in 500MB"
            )
        return size


@click.command()
@click.argument("key")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path),
    help="Folder of the pack.  [default: the root of KEY with -packed after it]",
)  # fmt: skip
@click.option(
    "--shard-size",
    type=Size(),
    help="Largest size of a shard, as in 500MB.  [default: that of the shards there, or 1GB]",
)
@click.option("--replace", is_flag=True, help="Write shards of another pack of KEY anew.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Shards that are written at a time.  [default: twice the CPUs, 4 to 16]",
)
@scale_option
def command(
    key: str,
    folder: Path | None,
    shard_size: int | None,
    replace: bool,
    jobs: int | None,
    scale: str,
) -> None:
    """Pack KEY in tar shards of WebDataset's layout, with an index for random access.

    The images stay where they are. A training reads the pack where datasets.KEY.root in
    params/data.yaml names it, and ends with the same bytes. Killed, the next call goes on.
    """
    project, layout = load(scale)
    warn_if_not_interruptible()
    packing.require_packable(project, layout, key)
    if not shared_folder.exists(manifest.manifest_path(layout, key)):
        with ProgressBar(f"{key}, manifest") as progress:
            manifest_writer.write(project, layout, key, jobs=jobs, progress=progress)
    folder = folder or packing.default_folder(project, layout, key)
    with ProgressBar(key) as progress:
        result = packing.pack(
            project, layout, key, folder, shard_size=shard_size, replace=replace, jobs=jobs,
            progress=progress,
        )  # fmt: skip
    click.echo(f"{key}: {_summary(project, layout, key, result)}")


def _summary(project: Project, layout: Layout, key: str, result: packing.PackResult) -> str:
    pack = result.pack
    sizes = [shard.bytes for _, shard in pack.shards()]
    done = "is there already:"
    if result.stats is not None:
        kept = f", {result.stats.kept} were there" if result.stats.kept else ""
        done = f"{result.stats.written} shards written{kept}:"
    images = sum(split.images for split in pack.manifest.splits.values())
    root = pack.folder.resolve()
    return (
        f"{done} {pack.folder}, {images} images in {len(sizes)} shards, {sum(sizes) / 1e6:.1f} MB, "
        f"digest {pack.manifest.digest[:12]}; to train from it, set datasets.{key}.root in params "
        f"to {_as_root(root, layout.data.resolve())}"
    )


def _as_root(root: Path, data: Path) -> Path:
    return root.relative_to(data) if root.is_relative_to(data) else root
