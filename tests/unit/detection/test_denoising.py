"""Denoising queries of DINO: groups, noise of boxes and labels, and the attention mask."""

import pytest
import torch

from smt.config.heads import Denoising
from smt.detection.denoising import attention_mask, denoising_queries
from smt.detection.dino_objects import objects_of
from smt.detection.structures import Target

NONE = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def denoising(queries=100, label_noise=0.5, box_noise=1.0):
    return Denoising(queries=queries, label_noise=label_noise, box_noise=box_noise)


def random_targets(*counts, seed=0, size=(100, 200)):
    """Return targets with `counts` objects, random boxes and labels 0 to 6."""
    torch.manual_seed(seed)
    height, width = size
    targets = []
    for count in counts:
        sides = torch.rand(count, 2) * 0.2 + 0.05
        corners = torch.rand(count, 2) * 0.7
        boxes = torch.cat([corners, corners + sides], dim=1)
        boxes = boxes * torch.tensor([width, height, width, height])
        targets.append(Target(boxes, torch.randint(7, (count,)), size))
    return targets


def centred_objects(count=1, side=20.0, classes=7):
    """Return the target of an image of 100 x 200: objects of 2 side x side at its centre."""
    box = torch.tensor([100 - side, 50 - side / 2, 100 + side, 50 + side / 2])
    return [Target(box.repeat(count, 1), torch.zeros(count, dtype=torch.int64), (100, 200))]


def test_boxes_are_fractions_of_their_own_image():
    first = Target(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([4]), (80, 40))
    second = Target(torch.tensor([[0.0, 0.0, 50.0, 50.0], [50.0, 75.0, 100.0, 100.0]]),
                    torch.tensor([1, 2]), (100, 100))  # fmt: skip
    objects = objects_of([first, Target(*NONE, (7, 9)), second])
    expected = [[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.75, 0.875, 0.5, 0.25]]
    torch.testing.assert_close(objects.boxes, torch.tensor(expected))
    assert objects.labels.tolist() == [4, 1, 2]
    assert objects.image.tolist() == [0, 2, 2]
    assert objects.number.tolist() == [0, 0, 1]
    assert objects.counts == [1, 0, 2]


@pytest.mark.parametrize(
    ("counts", "groups"),
    [((1, 0), 100), ((3, 7), 14), ((7, 3), 14), ((60,), 1), ((100, 1), 1), ((130,), 1)],
)
def test_the_number_of_groups_follows_the_image_with_most_objects(counts, groups):
    noised = denoising_queries(objects_of(random_targets(*counts)), denoising(), 7)
    assert noised.groups == groups
    assert noised.queries == groups * 2 * max(counts)


def test_without_noise_queries_equal_their_objects():
    targets = random_targets(2, 0, 3)
    objects = objects_of(targets)
    noised = denoising_queries(objects, denoising(queries=7, label_noise=0, box_noise=0), 7)
    assert noised.groups == 2
    firsts = (0, 2, 2)  # index of each image's first object
    for image, count in enumerate((2, 0, 3)):
        for slot in range(2 * 2 * 3):  # group, positive or negative, object
            number = slot % 3
            assert bool(noised.filled[image, slot]) == (number < count)
            if number < count:
                assert noised.labels[image, slot] == objects.labels[firsts[image] + number]
                torch.testing.assert_close(
                    noised.boxes[image, slot], objects.boxes[firsts[image] + number]
                )


def test_positive_queries_are_ordered_by_group_and_object():
    noised = denoising_queries(objects_of(random_targets(2, 0, 3)), denoising(queries=7), 7)
    # 12 queries per image: two groups of 3 positive and 3 negative ones.
    assert noised.positive.tolist() == [[0, 1, 24, 25, 26], [6, 7, 30, 31, 32]]


def corner_shifts(box_noise, seed=0):
    """Return the shift of each corner coordinate in half sides of the box: (groups, 2, 4)."""
    torch.manual_seed(seed)
    noised = denoising_queries(
        objects_of(centred_objects(side=10)), denoising(queries=4000, box_noise=box_noise), 7
    )
    x, y, width, height = noised.boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
    half = torch.tensor([0.05, 0.05, 0.05, 0.05])  # 20 x 10 pixels of 200 x 100
    return ((corners - torch.tensor([0.45, 0.45, 0.55, 0.55])) / half).view(-1, 2, 4)


@pytest.mark.parametrize("box_noise", [1.0, 0.4])
def test_positive_corners_move_up_to_half_a_side_and_negative_ones_further(box_noise):
    positive, negative = corner_shifts(box_noise).div(box_noise).unbind(1)
    assert positive.abs().max() <= 1 + 1e-4
    assert negative.abs().min() >= 1 - 1e-4
    assert negative.abs().max() <= 2 + 1e-4
    for shifts, mean in ((positive, 0.5), (negative, 1.5)):  # uniform, in both directions
        assert (shifts.abs().mean(0) - mean).abs().max() < 0.03
        assert (shifts.abs().std(0) - 12**-0.5).abs().max() < 0.03
        assert (shifts.sign().mean(0)).abs().max() < 0.08
        assert torch.corrcoef(shifts.sign().T).sub(torch.eye(4)).abs().max() < 0.08


def test_noised_boxes_stay_in_the_image_and_may_be_inverted():
    boxes = torch.tensor([[0.0, 0.0, 150.0, 90.0], [150.0, 60.0, 200.0, 100.0]])
    targets = [Target(boxes, torch.zeros(2, dtype=torch.int64), (100, 200))]
    torch.manual_seed(0)
    x, y, width, height = denoising_queries(objects_of(targets), denoising(), 7).boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    assert (width < 0).any()


def test_a_quarter_of_labels_is_resampled_from_all_classes():
    torch.manual_seed(0)
    noised = denoising_queries(objects_of(centred_objects()), denoising(queries=8000), 5)
    for labels in noised.labels.view(-1, 2).T:  # positive, negative
        shares = torch.bincount(labels, minlength=5) / len(labels)
        # Half of the label noise is resampled; one in five of these keeps its label.
        expected = torch.tensor([0.75 + 0.05, 0.05, 0.05, 0.05, 0.05])
        assert (shares - expected).abs().max() < 0.02


def test_noise_follows_the_global_generator():
    def noised_queries(seed):
        objects = objects_of(random_targets(3, 1))
        torch.manual_seed(seed)
        noised = denoising_queries(objects, denoising(), 7)
        return torch.cat([noised.boxes, noised.labels[..., None]], dim=-1)

    assert torch.equal(noised_queries(5), noised_queries(5))
    assert not torch.equal(noised_queries(5), noised_queries(6))


def test_without_objects_there_are_no_queries():
    noised = denoising_queries(objects_of([Target(*NONE, (5, 5))] * 2), denoising(), 7)
    assert noised.queries == 0
    assert noised.labels.shape == (2, 0)
    assert noised.boxes.shape == (2, 0, 4)
    assert noised.positive.numel() == 0
    assert not attention_mask(noised, 4).any()


def test_the_mask_isolates_groups_and_hides_them_from_selected_queries():
    noised = denoising_queries(objects_of(random_targets(2, 1)), denoising(queries=6), 7)
    queries, group_size = 5, 4
    count = noised.queries
    assert count == 3 * group_size
    mask = attention_mask(noised, queries)
    for row in range(count + queries):
        for column in range(count + queries):
            if column >= count:  # every query attends to the selected ones
                masked = False
            elif row >= count:  # which do not attend to denoising queries
                masked = True
            else:
                masked = row // group_size != column // group_size
            assert bool(mask[row, column]) == masked
