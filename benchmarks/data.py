"""Images per second of one core from JPEG files to a normalised batch, against timm's loader.

`python benchmarks/data.py` prints, for small and for photograph-sized files, what each part of the
pipeline takes, and the throughput of this project's loader over that of timm's own with the same
recipe: once with a normalised batch as result, and once with what timm does by default, 8-bit
batches that are normalised and erased afterwards (here on the CPU).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader

from smt.config.datasets import Dataset
from smt.config.load import load_project
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.data.classification import TrainLoader
from smt.data.imagenet import ImageFolder
from smt.data.rng import reseed
from smt.data.transforms.classification import TrainTransform
from smt.data.transforms.classification_eval import normalise
from smt.datasets import manifest
from smt.datasets.decoding import decode
from smt.runs.paths import Layout, bundled_params

CASES = (((56, 56), 32), ((500, 375), 224))
"""Size of the files and the resolution that the model sees, in pixels."""

BATCH = 64


def write_photographs(root: Path, size: tuple[int, int], images: int) -> None:
    """Write JPEG files of `size`, random crops of photographs, in one class."""
    photographs = [Image.fromarray(getattr(skimage.data, n)()) for n in ("astronaut", "coffee")]
    draw = np.random.default_rng(0)
    (root / "train" / "photographs").mkdir(parents=True)
    for number in range(images):
        x, y = draw.integers(0, 50, 2)
        crop = photographs[number % 2].crop((x, y, x + 400, y + 300)).resize(size)
        crop.save(root / "train" / "photographs" / f"{number:04d}.JPEG", quality=95)


def project_of(root: Path, images: int, resolution: int) -> tuple[Project, ClassificationRecipe]:
    """Return the paper's project with one data set in `root`, and its recipe at `resolution`."""
    project = load_project(bundled_params(), "paper")
    dataset = Dataset(
        title="photographs", root=str(root), classes=1, train_images=images, val_images=0,
        source="counted", generator=None,
    )  # fmt: skip
    recipe = project.recipes["imagenet1k"]
    assert isinstance(recipe, ClassificationRecipe)
    recipe = recipe.model_copy(
        update={"resolution": resolution, "global_batch": BATCH, "device_batch": BATCH}
    )
    return project.model_copy(update={"datasets": {"photographs": dataset}}), recipe


def timm_loader(
    root: Path, recipe: ClassificationRecipe, prefetcher: bool
) -> torch.utils.data.DataLoader:
    """Return timm's training loader of the same recipe, in this process."""
    augment = recipe.augment
    return create_loader(
        ImageDataset(root / "train"), (3, recipe.resolution, recipe.resolution), BATCH,
        is_training=True, use_prefetcher=prefetcher, re_prob=augment.random_erasing,
        re_mode="pixel", scale=augment.scale, ratio=augment.ratio, hflip=augment.hflip,
        color_jitter=augment.color_jitter, auto_augment=augment.rand_augment,
        interpolation="bicubic", num_workers=0, device=torch.device("cpu"),
        persistent_workers=False,
    )  # fmt: skip


PARTS = ("decode", "seed", "crop and resize", "flip and RandAugment", "normalise", "erase")


def parts(folder: ImageFolder, recipe: ClassificationRecipe) -> dict[str, float]:
    """Return microseconds of each part of an image's way, taken one after another.

    Each image's is its median over five rounds, which draw the same; of these, the mean. The sum
    is not the loader's time: it decodes several images before it augments them, into new memory.
    """
    transform, out = TrainTransform(recipe), torch.empty(3, recipe.resolution, recipe.resolution)
    clock = time.perf_counter

    def one(index: int) -> np.ndarray:
        path = folder.samples[index][0]
        times = [clock()]
        image = decode(path)
        times.append(clock())
        reseed(0, "augment", 0, index)
        times.append(clock())
        image = transform.crop(image)
        times.append(clock())
        image = transform.flip_and_colour(image)
        times.append(clock())
        normalise(image, out)
        times.append(clock())
        transform.erase(out)
        times.append(clock())
        return np.diff(times)

    rounds = [[one(index) for index in range(len(folder))] for _ in range(5)]
    return dict(zip(PARTS, np.median(rounds, axis=0).mean(axis=0) * 1e6, strict=True))


def throughput(loaders: dict[str, Callable[[int], Iterator]], rounds: int) -> dict[str, float]:
    """Return images per second of each, medians of rounds in which they take turns.

    The turns change from round to round: each finds the memory as the one before it left it.
    """
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    draw = np.random.default_rng(0)
    for round_ in range(rounds):
        for name in draw.permutation(list(loaders)):
            start, images = time.perf_counter(), 0
            for batch in loaders[name](round_):
                images += len(batch)
            rates[name].append(images / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def measure(root: Path, size: tuple[int, int], resolution: int, images: int, rounds: int) -> None:
    """Print the figures of one case."""
    write_photographs(root, size, images)
    project, recipe = project_of(root, images, resolution)
    layout = Layout("paper", results=root / "results", data=root)
    found = manifest.write(project, layout, "photographs")
    assert isinstance(found, manifest.Manifest)
    folder = ImageFolder(root, "train", found)
    print(f"{size[0]} x {size[1]} files, {resolution} pixels seen")
    print("  " + ", ".join(f"{k} {v:.0f} us" for k, v in parts(folder, recipe).items()))
    loader = TrainLoader(folder, recipe, seed=0, rank=0, world_size=1, workers=0)
    plain, prefetched = (timm_loader(root, recipe, each) for each in (False, True))
    rates = throughput(
        {
            "smt": lambda epoch: (batch.images for batch in loader.batches(epoch)),
            "timm": lambda epoch: (batch[0] for batch in plain),
            "timm with prefetcher": lambda epoch: (batch[0] for batch in prefetched),
        },
        rounds,
    )
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} images/s, smt {rates['smt'] / rate:.2f} times as fast")


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="files a case [256]")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each loader [7]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size, resolution in CASES:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), size, resolution, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
