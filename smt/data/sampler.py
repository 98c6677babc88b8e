"""Which images make up which step, on which process: a pure function of seed, epoch and step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smt.data.rng import derive
from smt.errors import UserError


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of all images in the order of an epoch, int64.

    NumPy promises to keep this generator's stream as it is, so the order outlives its versions.
    """
    word = derive(seed, "order", epoch)
    return np.random.RandomState([word & 0xFFFFFFFF, word >> 32]).permutation(images)


@dataclass(frozen=True)
class Job:
    """The images of one chunk: what one process runs through the model at once."""

    epoch: int
    step: int
    """Global step within the epoch."""
    chunk: int
    """Number of the chunk in its global batch, over all processes."""
    indices: np.ndarray
    """Numbers of the images."""


def grouped_order(groups: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of all images in the order of an epoch, neighbours of a group together.

    Cut into parts of `size`, in order, nearly every part has images of one group only: landscapes
    are padded little beside landscapes. What is left of the groups makes up the last mixed parts;
    parts come in random order, and an incomplete one at the end. `groups` has a number an image.
    """
    order = epoch_order(len(groups), seed, epoch)
    parts: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for group in np.unique(groups):
        own = order[groups[order] == group]
        whole = len(own) // size * size
        parts += np.split(own[:whole], whole // size) if whole else []
        rest.append(own[whole:])
    left = np.concatenate(rest)
    whole = len(left) // size * size
    parts += np.split(left[:whole], whole // size) if whole else []
    shuffled = [parts[i] for i in epoch_order(len(parts), derive(seed, "parts"), epoch)]
    return np.concatenate([*shuffled, left[whole:]]).astype(np.int64)


def stream(images: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return `count` numbers of images from place `start` on of an endless row of epochs."""
    taken: list[np.ndarray] = []
    while count:
        epoch, offset = divmod(start, images)
        part = epoch_order(images, seed, epoch)[offset : offset + count]
        taken.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(taken)


@dataclass(frozen=True)
class Schedule:
    """How global batches are cut into chunks, and which of them are this process's.

    A global batch is `order[step * global_batch : (step + 1) * global_batch]`; what does not fill
    one at the end of the epoch is left out. With an `interval` the images come in one endless row,
    nothing left out, and an epoch is so many steps of it. It is cut into chunks of `device_batch`
    images, of which each process takes as many as the next, in a row.

    Raises:
        UserError: the chunks cannot be shared equally, or there is no full global batch.
    """

    images: int
    global_batch: int
    device_batch: int
    rank: int
    world_size: int
    interval: int | None = None
    """Global steps that count as an epoch, where that is not once through the images."""
    groups: np.ndarray | None = None
    """A number an image: those of one number come together in a chunk."""

    def __post_init__(self) -> None:
        if self._chunks % self.world_size:
            valid = [str(n) for n in range(1, self._chunks + 1) if self._chunks % n == 0]
            raise UserError(
                f"{self.world_size} processes cannot share the {self._chunks} batches of "
                f"{self.device_batch} images that make a global batch of {self.global_batch}; "
                f"valid numbers of processes: {', '.join(valid)} (or set the recipe's device_batch)"
            )
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.images} training images do not fill one global batch of "
                f"{self.global_batch}; lower the recipe's global_batch in params/recipes.yaml"
            )

    @property
    def _chunks(self) -> int:
        """Chunks in a global batch."""
        return self.global_batch // self.device_batch

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.interval or self.images // self.global_batch

    @property
    def accumulation(self) -> int:
        """Chunks of one process in a global batch."""
        return self._chunks // self.world_size

    def jobs(self, seed: int, epoch: int, start_step: int = 0) -> Iterator[Job]:
        """Yield this process's chunks of an epoch in order, from global step `start_step` on."""
        order = self._order(seed, epoch)
        first = self.rank * self.accumulation
        for step in range(start_step, self.steps_per_epoch):
            for chunk in range(first, first + self.accumulation):
                start = step * self.global_batch + chunk * self.device_batch
                yield Job(epoch, step, chunk, order[start : start + self.device_batch])

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if self.interval is not None:
            images = self.interval * self.global_batch
            return stream(self.images, seed, epoch * images, images)
        if self.groups is not None:
            return grouped_order(self.groups, self.device_batch, seed, epoch)
        return epoch_order(self.images, seed, epoch)
