"""Top-k of logits: hits of a batch, the interval of an estimate, a check of class order."""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

TOP = 5
"""Classes of an image that are counted at most."""

CONFIDENCE = 0.95
"""Of the interval of an estimate."""

INTERVAL = f"Wilson score, {100 * CONFIDENCE:g} %"
"""The interval of an estimate, as records and tables call it."""

SEPARATION = 5
"""Classes count as permuted if renumbering makes at least so many times as many images right."""

SIGNIFICANCE = 1e-6
"""Chance, at most, that images agree so often with the renumbering by accident."""


class Scores(NamedTuple):
    """A batch by image."""

    losses: Tensor
    """(B,) float64: cross entropy."""
    best: Tensor
    """(B, k) int64: the classes of the k highest logits, highest first."""
    hits: Tensor
    """(B, k) bool: which of them is the label."""


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return the scores of logits (B, classes) and labels (B,); k is 5, or all of fewer classes."""
    losses = F.cross_entropy(logits, labels, reduction="none").double()
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    return Scores(losses, best, best == labels[:, None])


def interval(hits: int, images: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share, in percent, given hits of a random sample.

    It is for draws with replacement; of a sample of different images it is a little too wide.
    """
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(hits, images).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(low), 100 * float(high)


class Renumbering(NamedTuple):
    """Labels that a model calls by other numbers, one to one."""

    accuracy: float
    """Share of images whose label the model names, from 0 to 1."""
    renumbered: float
    """The same with each label under the number that the model calls it by; of other images than
    those that the numbers were found with."""
    moved: tuple[tuple[int, int], ...]
    """Label, and the number that the model calls it by, of those that differ."""


def renumbering(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Renumbering | None:
    """Return how the classes of images are numbered, if that is not how a model numbers them.

    `labels` and `predicted` are the class numbers (N,) of images in random order. Half of the
    images say which class the model names most often for each label; a class that it names for two
    labels counts for neither, so that a model that names a few classes for everything is none that
    numbers them otherwise. The other half says how often it then is right.
    """
    accuracy = float((labels == predicted).mean()) if len(labels) else 0.0
    number_of = _one_to_one(labels[::2], predicted[::2], classes)
    held_out, expected = predicted[1::2], number_of[labels[1::2]]
    hits = int((held_out == expected).sum())
    if not hits:
        return None
    renumbered = hits / len(held_out)
    if renumbered < SEPARATION * accuracy or not _significant(
        hits, len(held_out), max(accuracy, 1 / classes)
    ):
        return None
    moved = np.flatnonzero((number_of >= 0) & (number_of != np.arange(classes)))
    pairs = tuple((int(label), int(number_of[label])) for label in moved)
    return Renumbering(accuracy, renumbered, pairs)


def _one_to_one(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the class (classes,) that is named most often for each label; -1 without its own."""
    pairs, counts = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    most = np.argsort(counts, kind="stable")  # later ones overwrite: the most frequent stays
    number_of = np.full(classes, -1)
    number_of[pairs[most] // classes] = pairs[most] % classes
    named = np.bincount(number_of[number_of >= 0], minlength=classes)
    return np.where((number_of >= 0) & (named[number_of] == 1), number_of, -1)


def _significant(hits: int, images: int, chance: float) -> bool:
    from scipy.stats import binomtest

    return float(binomtest(hits, images, chance, alternative="greater").pvalue) < SIGNIFICANCE
