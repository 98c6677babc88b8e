"""Speed of hashing every file of a data set, against sha256sum over the same files.

`python benchmarks/verify.py` makes a tree of files as large as ImageNet's photographs, and prints
files and megabytes a second of this project's reading and of `find | xargs sha256sum`, as many
processes as threads, all from the page cache: what is measured is the hashing and all around it,
not the disk. Then the peak of memory, for as many files and for ten times as many small ones.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from smt.datasets import scan
from smt.datasets.hashing import FileHasher, HashCache, default_jobs

MEMORY = """
import resource, sys
from pathlib import Path
from verify import read
files = read(Path(sys.argv[1]), int(sys.argv[2]))
print(files, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_tree(root: Path, folders: int, per_folder: int, sizes: range) -> int:
    """Write files of noise of these sizes, in turn; return their bytes."""
    noise, total = os.urandom(max(sizes)), 0
    for folder in range(folders):
        path = root / "train" / f"c{folder:04d}"
        path.mkdir(parents=True)
        for number in range(per_folder):
            size = sizes[(folder * per_folder + number) % len(sizes)]
            (path / f"{number:05d}.JPEG").write_bytes(noise[:size])
            total += size
    return total


def read(root: Path, jobs: int) -> int:
    """Read the tree as `smt data verify` does, with its cache; return the number of files."""
    folders = [f"train/{name}" for name in scan.class_folders(root / "train")]
    with HashCache(root / "reading.txt") as cache:
        hasher = FileHasher(root, cache, jobs=jobs)
        for _, digests in hasher.read(scan.listings(root, folders)):
            assert all(digest.sha256 for digest in digests)
        cache.finish()
    return hasher.stats.read


def sha256sum(root: Path, jobs: int) -> None:
    """Hash the tree by coreutils."""
    command = f"find {root}/train -type f -print0 | xargs -0 -n 64 -P {jobs} sha256sum > /dev/null"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(root: Path, files: int, size: int, rounds: int) -> None:
    """Print the rate of each way, by turns, and ours over the other's."""
    jobs = default_jobs()
    ways: dict[str, Callable[[], object]] = {
        f"smt, {jobs} threads": lambda: read(root, jobs),
        "smt, 1 thread": lambda: read(root, 1),
        f"sha256sum, {jobs} processes": lambda: sha256sum(root, jobs),
        "sha256sum, 1 process": lambda: sha256sum(root, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    other = times[f"sha256sum, {jobs} processes"]
    for name, values in times.items():
        middle = statistics.median(values)
        ratio = statistics.median(b / a for a, b in zip(values, other, strict=True))
        print(
            f"{name}: {files / middle:.0f} files/s, {size / middle / 1e6:.0f} MB/s, "
            f"{ratio:.2f} times sha256sum with {jobs} processes"
        )


def memory(root: Path) -> None:
    """Print the peak memory of a process that reads the tree."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(root), str(default_jobs())],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    files, peak = process.stdout.split()
    print(f"{files} files: at most {peak} MB of memory")


def main() -> None:
    """Measure speed and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=20, help="class folders [20]")
    parser.add_argument("--per-folder", type=int, default=250, help="files of each [250]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way [5]")
    arguments = parser.parse_args()
    files = arguments.folders * arguments.per_folder
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "large"
        size = write_tree(
            root, arguments.folders, arguments.per_folder, range(60_000, 160_000, 977)
        )
        speed(root, files, size, arguments.rounds)
        for times in (4, 40):
            small = Path(name) / str(times)
            write_tree(small, arguments.folders * times, arguments.per_folder, range(100, 200))
            memory(small)


if __name__ == "__main__":
    main()
