"""mIoU and accuracies against a loop over pixels and against scikit-learn.

scikit-learn is imported in the tests that use it: the import takes two seconds.
"""

import numpy as np
import pytest

from smt.evaluation.semantic import confusion, scores


def maps(seed, shape=(40, 50), classes=6, unlabelled=0.1):
    """Return a prediction and a truth that agree in about two thirds of the pixels."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, shape).astype(np.uint8)
    other = generator.integers(0, classes, shape)
    prediction = np.where(generator.random(shape) < 0.6, truth, other).astype(np.uint8)
    truth[generator.random(shape) < unlabelled] = 255
    return prediction, truth


def test_counts_are_those_of_each_pixel():
    prediction, truth = maps(0)
    expected = np.zeros((6, 6), np.int64)
    for predicted, true in zip(prediction.ravel(), truth.ravel(), strict=True):
        if true != 255:
            expected[true, predicted] += 1
    counts = confusion(prediction, truth, 6)
    assert np.array_equal(counts, expected) and counts.dtype == np.int64
    assert counts.sum() == (truth != 255).sum()


def test_counts_and_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

    prediction, truth = maps(1)
    labelled = truth != 255
    pairs = truth[labelled], prediction[labelled]
    counts = confusion(prediction, truth, 6)
    assert np.array_equal(counts, confusion_matrix(*pairs, labels=range(6)))
    result = scores(counts)
    assert result.class_iou == pytest.approx(100 * jaccard_score(*pairs, average=None))
    assert result.miou == pytest.approx(100 * jaccard_score(*pairs, average="macro"))
    assert result.mean_accuracy == pytest.approx(100 * recall_score(*pairs, average="macro"))
    assert result.pixel_accuracy == pytest.approx(100 * accuracy_score(*pairs))


def test_scores_of_a_data_set_are_over_pixels_not_means_over_images():
    several = [maps(seed, (20 + seed, 30)) for seed in range(5)]
    together = [
        np.concatenate([arrays.ravel() for arrays in part]) for part in zip(*several, strict=True)
    ]
    summed = sum(confusion(*arrays, classes=6) for arrays in reversed(several))
    assert np.array_equal(summed, confusion(*together, classes=6))
    mean_of_images = np.mean([scores(confusion(*arrays, classes=6)).miou for arrays in several])
    assert scores(summed).miou != pytest.approx(mean_of_images, rel=1e-6)


def test_scores_by_hand_where_classes_are_missing():
    truth = np.uint8([[0, 0, 0, 1], [1, 255, 255, 0]])
    prediction = np.uint8([[0, 0, 2, 1], [0, 1, 3, 0]])
    # Class 0: 3 of 4 true right, 4 predicted, union 5. Class 1: 1 of 2, 1 predicted, union 2. Class
    # 2: never true, predicted once. Classes 3 and 4: neither, since 3 is predicted at label 255.
    result = scores(confusion(prediction, truth, 5))
    assert result.class_iou[:3] == pytest.approx([60, 50, 0])
    assert np.isnan(result.class_iou[3:]).all()
    assert result.miou == pytest.approx(110 / 3)
    assert result.mean_accuracy == pytest.approx((75 + 50) / 2)
    assert result.pixel_accuracy == pytest.approx(100 * 4 / 6)


def test_a_perfect_prediction_has_100_percent_of_everything():
    _, truth = maps(3)
    result = scores(confusion(np.where(truth == 255, 0, truth), truth, 6))
    assert (result.miou, result.mean_accuracy, result.pixel_accuracy) == (100, 100, 100)


def test_scores_without_a_labelled_pixel_are_nan():
    counts = confusion(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8), 4)
    assert not counts.any() and counts.shape == (4, 4)
    result = scores(counts)
    assert np.isnan([result.miou, result.mean_accuracy, result.pixel_accuracy]).all()


def test_counts_of_150_classes_exceed_32_bits():
    from sklearn.metrics import confusion_matrix

    prediction, truth = maps(4, (300, 300), classes=150)
    labelled = truth != 255
    one_image = confusion(prediction, truth, 150)
    assert np.array_equal(one_image, confusion_matrix(truth[labelled], prediction[labelled]))
    counts = one_image * 40_000  # 3.2e9 pixels: beyond 32 bits
    assert counts.sum() == 40_000 * labelled.sum()
    assert scores(counts).miou == pytest.approx(scores(one_image).miou)
