"""Images per second of one core from JPEG files to a normalised batch, against timm's loader.

`python benchmarks/data.py` prints, for small and for photograph-sized files, what each part of the
pipeline takes, and the throughput of this project's loader over that of timm's own with the same
recipe: once normalised in the loader, and once as timm does by default, 8-bit batches that are
normalised and erased afterwards (here on the CPU), which is what this project's loader does.

Then what worker processes hand over: 8-bit levels and the noise of what is erased, against the same
batches normalised and erased by the worker, in bytes a batch and images per second.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader

from smt.config.datasets import Dataset
from smt.config.load import load_project
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.data.classification import ClassificationBatch, TrainLoader
from smt.data.imagenet import ImageFolder
from smt.data.loader import read_in_order
from smt.data.rng import reseed
from smt.data.transforms.classification import TrainTransform
from smt.data.transforms.image import Normalise
from smt.datasets import manifest, manifest_writer
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


PARTS = ("decode", "seed", "crop and resize", "flip and RandAugment", "draw what is erased")


def parts(folder: ImageFolder, recipe: ClassificationRecipe) -> dict[str, float]:
    """Return microseconds of each part of an image's way, taken one after another.

    Each image's is its median over five rounds, which draw the same; of these, the mean. The sum
    is not the loader's time: it decodes several images before it augments them, into new memory.
    """
    transform = TrainTransform(recipe)
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
        transform.erase(image.size)
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


Normalised = tuple[torch.Tensor, torch.Tensor]
"""Images (B, 3, R, R) float32 and labels (B,)."""


class FloatReader(torch.utils.data.Dataset[Any]):
    """A loader's reader whose batches are normalised and erased before they are handed over."""

    def __init__(self, reader: torch.utils.data.Dataset[Any]) -> None:
        self._reader, self._normalise = reader, Normalise()

    def __getitem__(self, key: Any) -> Normalised:
        batch, _ = self._reader[key]
        return batch.inputs(self._normalise), batch.labels


class HandOver(torch.utils.data.Dataset[Any]):
    """Returns the same batch for each key: nothing but its way from the worker takes time."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: int) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in self._tensors)


def tensors_of(batch: ClassificationBatch | Normalised) -> tuple[torch.Tensor, ...]:
    """Return what of a batch is handed over in shared memory."""
    if isinstance(batch, ClassificationBatch):
        return batch.images, batch.erasures.noise, batch.labels
    return batch


def hand_over(loader: TrainLoader, workers: int, rounds: int) -> None:
    """Print bytes a batch and images per second of 8-bit levels and of float32."""
    normalise, keys = Normalise(), list(loader._sampler.micro_batches(0, 0))
    readers = {"float32": FloatReader(loader._reader), "uint8": loader._reader}

    def training(kind: str, round_: int) -> Iterator[torch.Tensor]:
        for batch in read_in_order(readers[kind], keys, workers):
            yield batch[0] if kind == "float32" else batch[0].inputs(normalise)

    first = {"float32": readers["float32"][keys[0]], "uint8": readers["uint8"][keys[0]][0]}
    sent = {kind: tensors_of(batch) for kind, batch in first.items()}
    size = {kind: sum(each.nbytes for each in tensors) for kind, tensors in sent.items()}

    def alone(kind: str, round_: int) -> Iterator[torch.Tensor]:
        for tensors in read_in_order(HandOver(sent[kind]), range(32), workers):
            yield tensors[0]

    print(
        f"  handed over by {workers} workers, a batch of {BATCH}: float32 "
        f"{size['float32'] / 1e6:.2f} MB, uint8 with noise {size['uint8'] / 1e6:.2f} MB, "
        f"{size['uint8'] / size['float32']:.2f} of it"
    )
    for what, way in (("read, augmented and normalised", training), ("the way alone", alone)):
        rates = throughput({kind: partial(way, kind) for kind in readers}, rounds)
        print(
            f"  {what}: float32 {rates['float32']:.0f} images/s, uint8 {rates['uint8']:.0f}, "
            f"{rates['uint8'] / rates['float32']:.2f} times as fast"
        )


def measure(
    root: Path, size: tuple[int, int], resolution: int, images: int, rounds: int, workers: int
) -> None:
    """Print the figures of one case."""
    write_photographs(root, size, images)
    project, recipe = project_of(root, images, resolution)
    layout = Layout("paper", results=root / "results", data=root)
    found = manifest_writer.write(project, layout, "photographs")
    assert isinstance(found, manifest.Manifest)
    folder = ImageFolder(root, "train", found)
    print(f"{size[0]} x {size[1]} files, {resolution} pixels seen")
    print("  " + ", ".join(f"{k} {v:.0f} us" for k, v in parts(folder, recipe).items()))
    loader = TrainLoader(folder, recipe, seed=0, rank=0, world_size=1, workers=0)
    normalise = Normalise()
    plain, prefetched = (timm_loader(root, recipe, each) for each in (False, True))
    rates = throughput(
        {
            "smt": lambda epoch: (batch.inputs(normalise) for batch in loader.batches(epoch)),
            "timm": lambda epoch: (batch[0] for batch in plain),
            "timm with prefetcher": lambda epoch: (batch[0] for batch in prefetched),
        },
        rounds,
    )
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} images/s, smt {rates['smt'] / rate:.2f} times as fast")
    hand_over(loader, workers, rounds)


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="files a case [256]")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each loader [7]")
    parser.add_argument("--workers", type=int, default=2, help="worker processes [2]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size, resolution in CASES:
        with tempfile.TemporaryDirectory() as folder:
            measure(
                Path(folder), size, resolution, arguments.images, arguments.rounds,
                arguments.workers,
            )  # fmt: skip


if __name__ == "__main__":
    main()
