"""How well label maps agree: mean intersection over union (mIoU) and accuracies, as mmseg 0.30."""

from dataclasses import dataclass

import numpy as np

from smt.datasets.label_maps import NO_CLASS


@dataclass(frozen=True)
class Scores:
    """Agreement of all pixels that have a class, in percent; NaN where nothing can be said."""

    miou: float
    """Mean of `class_iou` over the classes that were predicted or true anywhere."""
    mean_accuracy: float
    """Mean, over the classes that were true anywhere, of the part of their pixels predicted so."""
    pixel_accuracy: float
    class_iou: np.ndarray
    """(classes,) float64: intersection over union; NaN for a class neither predicted nor true."""


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Return how many pixels of each true class (rows) were predicted as each class (columns).

    (classes, classes) int64, of two label maps of one shape; pixels whose truth is NO_CLASS are
    left out. Sums of it over images are all that `scores` needs, in any order.
    """
    has_class = truth != NO_CLASS
    pairs = truth[has_class].astype(np.int64) * classes + prediction[has_class]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def scores(counts: np.ndarray) -> Scores:
    """Return the scores of a whole data set from its summed confusion counts."""
    correct, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    class_iou = _percent(correct, true + predicted - correct)
    return Scores(
        _mean(class_iou),
        _mean(_percent(correct, true)),
        float(_percent(correct.sum(keepdims=True), true.sum(keepdims=True))[0]),
        class_iou,
    )


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return 100 part / whole, NaN where `whole` is 0."""
    percent: np.ndarray = np.full(whole.shape, np.nan)
    np.divide(100 * part, whole, out=percent, where=whole > 0)
    return percent


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN; NaN if all is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
