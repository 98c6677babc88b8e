"""Denoising queries: what noise they have, which object each is to find, and who sees whom."""

import pytest
import torch

from smt.config.heads import Denoising
from smt.detection.denoising import attention_mask, denoising_queries
from smt.detection.dino_objects import objects_of
from smt.detection.structures import Target

NONE = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def noise(queries=100, label_noise=0.5, box_noise=1.0):
    return Denoising(queries=queries, label_noise=label_noise, box_noise=box_noise)


def batch(*counts, seed=0, size=(100, 200)):
    """Return targets with so many objects, boxes anywhere, labels 0 to 6."""
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


def central(count=1, side=20.0, classes=7):
    """Return an image of 100 x 200 pixels with objects at its centre, 2 * side by side pixels."""
    box = torch.tensor([100 - side, 50 - side / 2, 100 + side, 50 + side / 2])
    return [Target(box.repeat(count, 1), torch.zeros(count, dtype=torch.int64), (100, 200))]


def test_objects_are_fractions_of_their_own_image():
    first = Target(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([4]), (80, 40))
    second = Target(torch.tensor([[0.0, 0.0, 50.0, 50.0], [50.0, 75.0, 100.0, 100.0]]),
                    torch.tensor([1, 2]), (100, 100))  # fmt: skip
    objects = objects_of([first, Target(*NONE, (7, 9)), second])
    wanted = [[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.75, 0.875, 0.5, 0.25]]
    torch.testing.assert_close(objects.boxes, torch.tensor(wanted))
    assert objects.labels.tolist() == [4, 1, 2]
    assert objects.image.tolist() == [0, 2, 2]
    assert objects.number.tolist() == [0, 0, 1]
    assert objects.counts == [1, 0, 2]


@pytest.mark.parametrize(
    ("counts", "groups"),
    [((1, 0), 100), ((3, 7), 14), ((7, 3), 14), ((60,), 1), ((100, 1), 1), ((130,), 1)],
)
def test_as_many_groups_as_objects_of_the_fullest_image_fit_into_the_queries(counts, groups):
    noised = denoising_queries(objects_of(batch(*counts)), noise(), 7)
    assert noised.groups == groups
    assert noised.queries == groups * 2 * max(counts)


def test_without_noise_every_query_is_its_object():
    targets = batch(2, 0, 3)
    objects = objects_of(targets)
    noised = denoising_queries(objects, noise(queries=7, label_noise=0, box_noise=0), 7)
    assert noised.groups == 2
    firsts = (0, 2, 2)  # of each image, among all objects
    for image, count in enumerate((2, 0, 3)):
        for slot in range(2 * 2 * 3):  # group, positive or negative, object
            number = slot % 3
            assert bool(noised.filled[image, slot]) == (number < count)
            if number < count:
                assert noised.labels[image, slot] == objects.labels[firsts[image] + number]
                torch.testing.assert_close(
                    noised.boxes[image, slot], objects.boxes[firsts[image] + number]
                )


def test_positive_queries_are_named_group_by_group_object_by_object():
    noised = denoising_queries(objects_of(batch(2, 0, 3)), noise(queries=7), 7)
    # 12 queries an image: in groups of 3 positive and 3 negative ones.
    assert noised.positive.tolist() == [[0, 1, 24, 25, 26], [6, 7, 30, 31, 32]]


def corner_shifts(box_noise, seed=0):
    """Return by how many halves of its side each corner's coordinate has moved: (groups, 2, 4)."""
    torch.manual_seed(seed)
    noised = denoising_queries(
        objects_of(central(side=10)), noise(queries=4000, box_noise=box_noise), 7
    )
    x, y, width, height = noised.boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
    half = torch.tensor([0.05, 0.05, 0.05, 0.05])  # 20 x 10 pixels of 200 x 100
    return ((corners - torch.tensor([0.45, 0.45, 0.55, 0.55])) / half).view(-1, 2, 4)


@pytest.mark.parametrize("box_noise", [1.0, 0.4])
def test_corners_move_less_than_half_a_side_if_positive_and_up_to_a_whole_if_negative(box_noise):
    positive, negative = corner_shifts(box_noise).div(box_noise).unbind(1)
    assert positive.abs().max() <= 1 + 1e-4
    assert negative.abs().min() >= 1 - 1e-4
    assert negative.abs().max() <= 2 + 1e-4
    for shifts, middle in ((positive, 0.5), (negative, 1.5)):  # uniform, to either side
        assert (shifts.abs().mean(0) - middle).abs().max() < 0.03
        assert (shifts.abs().std(0) - 12**-0.5).abs().max() < 0.03
        assert (shifts.sign().mean(0)).abs().max() < 0.08
        assert torch.corrcoef(shifts.sign().T).sub(torch.eye(4)).abs().max() < 0.08


def test_boxes_stay_in_the_image_and_a_side_may_turn_over():
    boxes = torch.tensor([[0.0, 0.0, 150.0, 90.0], [150.0, 60.0, 200.0, 100.0]])
    targets = [Target(boxes, torch.zeros(2, dtype=torch.int64), (100, 200))]
    torch.manual_seed(0)
    x, y, width, height = denoising_queries(objects_of(targets), noise(), 7).boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    assert (width < 0).any()


def test_a_quarter_of_labels_is_drawn_anew_among_all_classes():
    torch.manual_seed(0)
    noised = denoising_queries(objects_of(central()), noise(queries=8000), 5)
    for labels in noised.labels.view(-1, 2).T:  # positive, negative
        shares = torch.bincount(labels, minlength=5) / len(labels)
        # Half of the label noise is redrawn; one in five of those gets its own label back.
        wanted = torch.tensor([0.75 + 0.05, 0.05, 0.05, 0.05, 0.05])
        assert (shares - wanted).abs().max() < 0.02


def test_the_global_generator_decides():
    def draw(seed):
        objects = objects_of(batch(3, 1))
        torch.manual_seed(seed)
        noised = denoising_queries(objects, noise(), 7)
        return torch.cat([noised.boxes, noised.labels[..., None]], dim=-1)

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_no_objects_no_queries():
    noised = denoising_queries(objects_of([Target(*NONE, (5, 5))] * 2), noise(), 7)
    assert noised.queries == 0
    assert noised.labels.shape == (2, 0)
    assert noised.boxes.shape == (2, 0, 4)
    assert noised.positive.numel() == 0
    assert not attention_mask(noised, 4).any()


def test_a_group_sees_itself_and_the_others_and_they_see_no_group():
    noised = denoising_queries(objects_of(batch(2, 1)), noise(queries=6), 7)
    queries, of_group = 5, 4
    count = noised.queries
    assert count == 3 * of_group
    mask = attention_mask(noised, queries)
    for row in range(count + queries):
        for column in range(count + queries):
            if column >= count:  # anyone sees the selected queries
                hidden = False
            elif row >= count:  # which see nothing of the objects
                hidden = True
            else:
                hidden = row // of_group != column // of_group
            assert bool(mask[row, column]) == hidden
