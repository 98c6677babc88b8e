"""What is cut out for boxes: features of the pyramid, and the masks that are to be drawn there."""

import math

import pytest
import torch

from smt.detection.mask_loss import mask_loss, mask_targets, select_class
from smt.detection.pooling import by_image, level_of, pool
from smt.detection.roi_heads import MaskHead
from tests.helpers.dense_scenes import head

STRIDES = (4, 8, 16, 32)


def interpolated(features, y, x):
    """Return features (H, W) between cells, whose centres are whole numbers; 0 far outside."""
    height, width = len(features), len(features[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = min(int(y), height - 2), min(int(x), width - 2)
    v, u = y - i, x - j
    return (
        features[i][j] * (1 - v) * (1 - u)
        + features[i][j + 1] * (1 - v) * u
        + features[i + 1][j] * v * (1 - u)
        + features[i + 1][j + 1] * v * u
    )


def aligned(features, stride, box, resolution):
    """Return a box's bins, each the mean of samples in it, one for each cell of the level."""
    x1, y1, x2, y2 = (each / stride - 0.5 for each in box)  # cell i has its centre at i + 0.5
    tall, wide = (y2 - y1) / resolution, (x2 - x1) / resolution
    rows, columns = math.ceil(tall), math.ceil(wide)
    return [
        [
            sum(
                interpolated(
                    features,
                    y1 + (i + (row + 0.5) / rows) * tall,
                    x1 + (j + (column + 0.5) / columns) * wide,
                )
                for row in range(rows)
                for column in range(columns)
            )
            / (rows * columns)
            for j in range(resolution)
        ]
        for i in range(resolution)
    ]


def test_boxes_of_images_become_one_list():
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.empty(0, 4), torch.tensor([[5.0, 6, 7, 8]])]
    assert by_image(boxes).tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8]]


def test_a_box_of_224_pixels_belongs_to_stride_16_and_each_octave_to_its_level():
    sides = [(224, 224), (223, 223), (112, 112), (111, 111), (448, 448), (447, 447), (900, 900)]
    sides += [(56, 224), (1, 1), (0, 50), (1333, 800), (448, 112)]
    boxes = torch.tensor([[10.0, 20, 10 + width, 20 + height] for width, height in sides])
    assert level_of(boxes, 4).tolist() == [2, 1, 1, 0, 3, 2, 3, 1, 0, 0, 3, 2]
    assert level_of(boxes, 2).tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1]


BOXES = [
    torch.tensor([[3.0, 5.5, 43.2, 60.1], [20.7, 10.3, 175.4, 140.9], [0.0, 0.0, 64.0, 96.0]]),
    torch.tensor([[30.3, 2.2, 181.8, 190.9], [100.1, 40.4, 104.5, 47.7], [7.7, 7.7, 130.0, 120.3]]),
]


@pytest.mark.parametrize("resolution", [7, 14])
def test_pooled_features_are_means_of_interpolated_cells_of_the_right_level(resolution):
    torch.manual_seed(0)
    levels = [torch.randn(2, 1, 192 // stride, 192 // stride) for stride in STRIDES]
    pooled = pool(levels, STRIDES, by_image(BOXES), resolution)
    rows, used = iter(pooled[:, 0]), set()
    for image, boxes in enumerate(BOXES):
        for box in boxes.tolist():
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(math.log2(side / 224)) + 2, 0), 3)
            used.add(level)
            features = levels[level][image, 0].double().tolist()
            expected = torch.tensor(aligned(features, STRIDES[level], box, resolution))
            assert torch.allclose(next(rows), expected, atol=1e-4)
    assert used == {0, 1}


def test_each_level_gives_boxes_of_its_size():
    levels = [torch.full((1, 2, 1024 // each, 1024 // each), float(each)) for each in STRIDES]
    boxes = torch.tensor([[0.0, 0, side, side] for side in (500, 50, 250, 120, 60)])
    pooled = pool(levels, STRIDES, by_image([boxes]), 7)
    assert pooled.shape == (5, 2, 7, 7)
    assert pooled[:, 0, 3, 3].tolist() == [32, 4, 16, 8, 4]


def test_every_level_that_is_pooled_has_a_gradient_and_none_is_missed_without_boxes():
    levels = [
        torch.randn(1, 3, 512 // stride, 512 // stride, requires_grad=True) for stride in STRIDES
    ]
    boxes = torch.tensor([[0.0, 0, side, side] for side in (50, 120, 500)])
    pool(levels, STRIDES, by_image([boxes]), 7).sum().backward()
    assert [bool(each.grad.any()) for each in levels] == [True, True, False, True]
    nothing = pool(levels, STRIDES, torch.empty(0, 5), 7)
    assert nothing.shape == (0, 3, 7, 7)


def test_pooling_keeps_half_precision():
    levels = [torch.randn(1, 2, 192 // stride, 192 // stride) for stride in STRIDES]
    half = pool([each.bfloat16() for each in levels], STRIDES, by_image(BOXES[:1]), 7)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), pool(levels, STRIDES, by_image(BOXES[:1]), 7), atol=0.03)


def disc(side, x, y, radius):
    place = torch.arange(side) + 0.5
    return (place[None] - x).square() + (place[:, None] - y).square() < radius**2


@pytest.mark.parametrize("cells", [28, 5])
def test_mask_targets_are_cells_that_the_object_covers_by_half(cells):
    torch.manual_seed(0)
    # A disc, and one full of holes, where a cell's centre says little of the cell.
    masks = torch.stack([disc(48, 20, 22, 13), disc(48, 30.5, 17, 9) & (torch.rand(48, 48) > 0.4)])
    boxes = torch.tensor(
        [[7.0, 9, 33, 35], [21.5, 8, 39.5, 26], [5.3, 4.4, 30.1, 40.2], [18.2, 3.3, 47.9, 30.7]]
    )
    objects = torch.tensor([0, 1, 0, 1])
    targets = mask_targets(masks, objects, boxes, cells)
    assert targets.shape == (4, cells, cells) and targets.dtype == torch.float32
    compared = 0
    for found, index, box in zip(targets, objects.tolist(), boxes.tolist(), strict=True):
        covered = torch.tensor(aligned(masks[index].double().tolist(), 1, box, cells))
        sure = (covered - 0.5).abs() > 1e-5
        assert torch.equal(found[sure], (covered >= 0.5).float()[sure])
        compared += int(sure.sum())
    assert compared > 0.9 * targets.numel()


def test_a_cell_that_is_covered_by_exactly_half_belongs_to_the_object():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :, :3] = True  # the object ends within the second of four cells of 2 pixels
    box = torch.tensor([[0.0, 0, 8, 8]])
    target = mask_targets(mask, torch.tensor([0]), box, 4)
    assert target[0].tolist() == [[1, 1, 0, 0]] * 4


def test_a_mask_that_fills_its_box_is_drawn_to_the_edge():
    mask = torch.zeros(1, 40, 50, dtype=torch.bool)
    mask[0, 5:33, 10:38] = True
    assert mask_targets(mask, torch.tensor([0]), torch.tensor([[10.0, 5, 38, 33]]), 28).all()


def test_no_objects_have_no_targets_and_a_loss_of_zero_with_a_gradient():
    targets = mask_targets(
        torch.zeros(0, 8, 8, dtype=torch.bool),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, 4),
        28,
    )
    assert targets.shape == (0, 28, 28)
    layer = MaskHead(head("mask_rcnn").mask, channels=4, classes=3)
    loss = mask_loss(layer(torch.empty(0, 4, 14, 14)), torch.empty(0, dtype=torch.int64), targets)
    loss.backward()
    assert loss == 0
    assert all(each.grad is not None and not each.grad.any() for each in layer.parameters())


def test_the_mask_loss_is_of_the_objects_class_alone():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 2, 2, requires_grad=True)
    targets = torch.randint(2, (3, 2, 2)).float()
    labels = torch.tensor([2, 0, 3])
    expected = 0.0
    for region, label in enumerate(labels.tolist()):
        for logit, goal in zip(
            logits[region, label].flatten().tolist(), targets[region].flatten(), strict=True
        ):
            expected += math.log1p(math.exp(-logit if goal else logit)) / 12
    loss = mask_loss(logits, labels, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad.flatten(2).any(2).nonzero().tolist() == [[0, 2], [1, 0], [2, 3]]
    assert torch.equal(select_class(logits, labels)[1], logits[1, 0])
