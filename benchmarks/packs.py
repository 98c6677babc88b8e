"""A packed data set of the size of ImageNet-22K: how long it takes to open, and in how much memory.

`python benchmarks/packs.py` writes the list and the index of 14,197,122 images of 110 kB, beside
shards of 1 GB that are holes, and prints seconds and megabytes of a process that opens them as a
training does, of planning such a pack, and of opening the list of as many files in folders. Then,
for real files from the page cache, images a second: packing, and reading in random order from the
shards and from the folders.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from verify import seconds, write_tree

from smt.config.datasets import Dataset
from smt.config.load import load_project
from smt.config.project import Project
from smt.data.imagenet import SampleList
from smt.datasets import manifest_writer
from smt.datasets.manifest import Manifest, Split
from smt.datasets.packs import record
from smt.datasets.packs.index import PackedImages
from smt.datasets.packs.plan import SplitPlan, plan
from smt.datasets.packs.record import Pack, PackedSplit, Shard
from smt.datasets.packs.write import Packer
from smt.runs import atomic
from smt.runs.paths import Layout, bundled_params

CLASSES, IMAGES, SIZE = 21841, 14197122, 110_000
"""Of ImageNet-22K; the size of an image in bytes is about its mean."""

SHARD_SIZE = 10**9
READS = 20_000


def write_list(folder: Path, images: int) -> Manifest:
    """Write the list of a data set that nobody has, and return its manifest."""
    per_class = [images // CLASSES + (c < images % CLASSES) for c in range(CLASSES)]
    digest = hashlib.sha256()
    with (folder / "train.txt").open("wb") as file:
        for label, count in enumerate(per_class):
            prefix, end = f"train/n{label:08d}/n{label:08d}_", f".JPEG\t{SIZE}\t{'0' * 64}\n"
            text = "".join(f"{prefix}{number}{end}" for number in range(count)).encode()
            digest.update(text)
            file.write(text)
    split = Split(
        images=images, total_bytes=images * SIZE, per_class=tuple(per_class),
        listed_in="train.txt", sha256=digest.hexdigest(),
    )  # fmt: skip
    return Manifest(
        dataset="synthetic", content="bytes", digest=digest.hexdigest(), splits={"train": split},
        classes=tuple(f"n{label:08d}" for label in range(CLASSES)), folder=folder,
    )  # fmt: skip


def write_holes(folder: Path, manifest: Manifest, planned: SplitPlan) -> None:
    """Write index and record of a planned pack, and shards in which every image is zeros."""
    planned.index["crc32"] = zlib.crc32(bytes(SIZE))
    np.save(folder / planned.index_name, planned.index)
    (folder / "train").mkdir()
    counts = np.diff(planned.starts).tolist()
    for name, size in zip(planned.names, planned.shard_bytes, strict=True):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    listed = tuple(
        Shard(name=name, images=count, bytes=size, sha256="0" * 64)
        for name, count, size in zip(planned.names, counts, planned.shard_bytes, strict=True)
    )
    digest = atomic.sha256(folder / planned.index_name)
    split = PackedSplit(index=planned.index_name, index_sha256=digest, shards=listed)
    pack = Pack(
        version=record.VERSION, shard_size=SHARD_SIZE, manifest=manifest,
        splits={"train": split}, folder=folder,
    )  # fmt: skip
    atomic.write_json(folder / "pack.json", pack.model_dump(mode="json", exclude_defaults=True))


def measured(what: str, folder: Path) -> None:
    """Print seconds and peak memory of a part below, in a process of its own."""
    command = [sys.executable, __file__, "--part", what, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"  {what}: {done.stdout.strip()}")


def project_of(root: Path, classes: int, images: int) -> Project:
    """Return the demo's project with one data set, `tiny`, in `root`."""
    dataset = Dataset(
        title="tiny", root=str(root), classes=classes, train_images=images, val_images=0,
        source="counted", generator=None,
    )  # fmt: skip
    project = load_project(bundled_params(), "demo")
    return project.model_copy(update={"datasets": {"tiny": dataset}})


def part(what: str, folder: Path) -> None:
    """Do one part, and print what it took."""
    manifest, start = record.read(folder).manifest, time.perf_counter()
    images: SampleList | PackedImages | np.ndarray
    if what == "open the pack":
        images = PackedImages(record.read(folder), "train")
    elif what == "open the list of folders":
        images = SampleList(folder, "train", manifest)
    else:
        images = plan(manifest, "train", SHARD_SIZE).index
    print(f"{len(images)} images in {time.perf_counter() - start:.1f} s, {memory()}", end="")
    if isinstance(images, PackedImages):
        positions = np.random.default_rng(0).integers(0, len(images), READS).tolist()
        start = time.perf_counter()
        for position in positions:
            images[position][0].read()
        each = (time.perf_counter() - start) / len(positions)
        print(f"; {each * 1e6:.0f} us to read an image, by then {memory()}", end="")


def memory() -> str:
    """Return the most memory of this process, and how much it has now beside mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return f"{int(values['VmHWM']) // 1000} MB ({int(values['RssAnon']) // 1000} of its own)"


def opening(folder: Path, images: int) -> None:
    """Measure a data set of `images` that is not there."""
    manifest = write_list(folder, images)
    planned = plan(manifest, "train", SHARD_SIZE)
    write_holes(folder, manifest, planned)
    size = (folder / planned.index_name).stat().st_size
    print(f"{images} images, {len(planned.names)} shards, index of {size / 1e6:.0f} MB")
    del planned
    for what in ("open the pack", "open the list of folders", "plan"):
        command = [sys.executable, __file__, "--part", what, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"  {what}: {done.stdout}")


def reading(folder: Path, images: int, rounds: int) -> None:
    """Measure packing and reading of files that are there, from the page cache."""
    root = folder / "files"
    write_tree(root, 10, images // 10, range(60_000, 160_000, 977))
    project = project_of(root, 10, images)
    layout = Layout("demo", results=folder / "results", data=folder)
    found = manifest_writer.write(project, layout, "tiny")
    assert isinstance(found, Manifest)
    size = SHARD_SIZE // 10
    plans, start = [plan(found, "train", size)], time.perf_counter()
    packed = Packer(root, folder / "packed", found, size).run(plans)
    rate = images / (time.perf_counter() - start)
    print(f"{images} files of 60 to 160 kB: {rate:.0f} packed a second")
    from_pack, from_folders = PackedImages(packed, "train"), SampleList(root, "train", found)
    draw, times = np.random.default_rng(0), []
    for _ in range(rounds):
        order = draw.permutation(images).tolist()
        times.append(
            (
                seconds(lambda order=order: [from_folders[i][0].read_bytes() for i in order]),
                seconds(lambda order=order: [from_pack[i][0].read() for i in order]),
            )
        )
    folders, shards = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"  in random order, {images / folders:.0f} read a second from folders, "
        f"{images / shards:.0f} from shards with their CRC-32"
    )


def main() -> None:
    """Measure opening at the size of ImageNet-22K, and reading of real files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="to open [14197122]")
    parser.add_argument("--files", type=int, default=4000, help="to pack and read [4000]")
    parser.add_argument("--rounds", type=int, default=5, help="of reading [5]")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part, arguments.folder)
        return
    for measure in (
        lambda folder: opening(folder, arguments.images),
        lambda folder: reading(folder, arguments.files, arguments.rounds),
    ):
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name))


if __name__ == "__main__":
    main()
