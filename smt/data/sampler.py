"""Which images make up which step, on which process: a pure function of seed, epoch and step.

The state of a sampler such as torch's would have to be in every checkpoint, and another number of
processes would see the images in other steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smt.data.rng import derive_seed
from smt.errors import UserError


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of all images in the order of an epoch, int64.

    NumPy promises to keep this generator's stream as it is, so the order outlives its versions.
    """
    seed_64 = derive_seed(seed, "order", epoch)
    return np.random.RandomState([seed_64 & 0xFFFFFFFF, seed_64 >> 32]).permutation(images)


@dataclass(frozen=True)
class MicroBatchIndices:
    """The images of a micro-batch: what one process runs through the model at once."""

    epoch: int
    step: int
    """Global step within the epoch."""
    number: int
    """Of the micro-batch in its global batch, over all processes."""
    indices: np.ndarray
    """Numbers of the images."""


def grouped_order(groups: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of all images in the order of an epoch, images of a group together.

    Cut into parts of `size`, in order, nearly every part has images of one group only: landscapes
    are padded little beside landscapes. What is left of the groups makes up the last mixed parts;
    parts come in random order, and an incomplete one at the end. `groups` has a number an image.
    """
    order = epoch_order(len(groups), seed, epoch)
    parts: list[np.ndarray] = []
    leftovers: list[np.ndarray] = []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        full = len(members) // size * size
        parts += np.split(members[:full], full // size) if full else []
        leftovers.append(members[full:])
    mixed = np.concatenate(leftovers)
    full = len(mixed) // size * size
    parts += np.split(mixed[:full], full // size) if full else []
    shuffled = [parts[i] for i in epoch_order(len(parts), derive_seed(seed, "parts"), epoch)]
    return np.concatenate([*shuffled, mixed[full:]]).astype(np.int64)


def infinite_order(images: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return the numbers of `count` images from place `start` on in an endless row of epochs."""
    parts: list[np.ndarray] = []
    while count:
        epoch, offset = divmod(start, images)
        part = epoch_order(images, seed, epoch)[offset : offset + count]
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(parts)


@dataclass(frozen=True)
class MicroBatchSampler:
    """How global batches are cut into micro-batches, and which of them are this process's.

    A global batch is `order[step * global_batch : (step + 1) * global_batch]`; what does not fill
    one at the end of the epoch is dropped. With an `interval` the epochs follow one another without
    an end, nothing is dropped, and so many steps count as an epoch. A global batch is cut into
    micro-batches of `micro_batch_size` images (`device_batch` in params), and every process takes
    the same number of them, one after another.

    Raises:
        UserError: the micro-batches cannot be shared equally, or no global batch is full.
    """

    images: int
    global_batch: int
    micro_batch_size: int
    rank: int
    world_size: int
    interval: int | None = None
    """Global steps that count as an epoch, where that is not once through the images."""
    groups: np.ndarray | None = None
    """A number an image: those of one number come together in a micro-batch."""

    def __post_init__(self) -> None:
        if self._micro_batches % self.world_size:
            valid = [
                str(n) for n in range(1, self._micro_batches + 1) if self._micro_batches % n == 0
            ]
            raise UserError(
                f"{self.world_size} processes cannot share the {self._micro_batches} micro-batches "
                f"of {self.micro_batch_size} images that make a global batch of "
                f"{self.global_batch}; valid numbers of processes: {', '.join(valid)} (or set the "
                "recipe's device_batch)"
            )
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.images} training images do not fill one global batch of "
                f"{self.global_batch}; lower the recipe's global_batch in params/recipes.yaml"
            )

    @property
    def _micro_batches(self) -> int:
        """Micro-batches in a global batch, over all processes."""
        return self.global_batch // self.micro_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.interval or self.images // self.global_batch

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one process in a global batch."""
        return self._micro_batches // self.world_size

    def micro_batches(
        self, seed: int, epoch: int, start_step: int = 0
    ) -> Iterator[MicroBatchIndices]:
        """Yield this process's micro-batches of an epoch from global step `start_step` on."""
        order = self._order(seed, epoch)
        first = self.rank * self.accumulation_steps
        for step in range(start_step, self.steps_per_epoch):
            for number in range(first, first + self.accumulation_steps):
                start = step * self.global_batch + number * self.micro_batch_size
                yield MicroBatchIndices(
                    epoch, step, number, order[start : start + self.micro_batch_size]
                )

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if self.interval is not None:
            images = self.interval * self.global_batch
            return infinite_order(self.images, seed, epoch * images, images)
        if self.groups is not None:
            return grouped_order(self.groups, self.micro_batch_size, seed, epoch)
        return epoch_order(self.images, seed, epoch)
