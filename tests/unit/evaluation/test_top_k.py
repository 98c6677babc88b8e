"""Top-k: hits, the interval of an estimate, and the check that classes are in the same order."""

import numpy as np
import pytest
import torch

from smt.evaluation.top_k import interval, renumbering, score


def test_each_image_is_scored_by_its_highest_logits():
    logits = torch.tensor([[0.0, 3, 1, 2, -1, -2], [5.0, 4, 3, 2, 1, 0]])
    scores = score(logits, torch.tensor([3, 5]))
    assert scores.best.tolist() == [[1, 3, 2, 0, 4], [0, 1, 2, 3, 4]]
    assert scores.hits.tolist() == [[False, True, False, False, False], [False] * 5]
    by_hand = -torch.log_softmax(logits, 1)[[0, 1], [3, 5]]
    assert scores.losses.tolist() == pytest.approx(by_hand.tolist())


def test_of_fewer_than_five_classes_all_are_kept():
    assert score(torch.tensor([[0.0, 2, 1]]), torch.tensor([0])).best.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(("hits", "images"), [(1644, 2000), (0, 64), (64, 64), (1, 2)])
def test_the_interval_is_wilsons(hits, images):
    # Wilson (1927): the shares that differ from the sample's by no more than z standard errors.
    z, share = 1.959963984540054, hits / images
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * np.sqrt(
        share * (1 - share) / images + z * z / (4 * images**2)
    )  # fmt: skip
    assert interval(hits, images) == pytest.approx(
        (max(100 * (middle - half), 0), min(100 * (middle + half), 100)), abs=1e-9
    )


def test_the_interval_covers_as_often_as_it_says():
    generator, population = np.random.default_rng(0), np.arange(50_000) < 41_100  # 82.2 %
    samples = [int(generator.choice(population, 2000, replace=False).sum()) for _ in range(1000)]
    covered = [low <= 82.2 <= high for low, high in (interval(hits, 2000) for hits in samples)]
    assert np.mean(covered) > 0.935


# --- the order of the classes ---------------------------------------------------------------------


def predictions(classes, images, accuracy, seed=0):
    """Return labels, and classes that are right with this probability, else any."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    right = generator.random(images) < accuracy
    return labels, np.where(right, labels, generator.integers(0, classes, images))


@pytest.mark.parametrize(("classes", "images"), [(1000, 1000), (1000, 50_000), (10, 1000)])
def test_permuted_classes_are_found(classes, images):
    labels, predicted = predictions(classes, images, 0.82)
    numbers = np.roll(np.arange(classes), 1)
    found = renumbering(numbers[labels], predicted, classes)
    assert found is not None and found.accuracy < 0.1
    if images >= 10 * classes:
        assert all(numbers[their] == label for label, their in found.moved)
        assert found.renumbered == pytest.approx(0.82, abs=0.1)


def test_numbers_sorted_as_text_are_found():
    order = np.array(sorted(range(1000), key=str))  # 0, 1, 10, 100, 101, ...
    labels, predicted = predictions(1000, 2000, 0.82)
    assert renumbering(np.argsort(order)[labels], predicted, 1000) is not None


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("accuracy", [0.0, 0.02, 0.5, 1.0])
def test_a_model_whose_classes_are_in_order_is_not_refused_however_bad_it_is(classes, accuracy):
    for seed in range(20):
        labels, predicted = predictions(classes, 2000, accuracy, seed)
        assert renumbering(labels, predicted, classes) is None


def test_a_model_that_says_one_class_of_everything_numbers_nothing():
    labels, _ = predictions(10, 500, 0.0)
    assert renumbering(labels, np.full(500, 3), 10) is None
    assert renumbering(labels, np.where(labels < 5, 3, 4), 10) is None


def test_no_images_are_in_order():
    assert renumbering(np.zeros(0, int), np.zeros(0, int), 10) is None
