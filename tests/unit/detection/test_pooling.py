"""RoIAlign of boxes on the levels of a pyramid, mask targets and the mask loss."""

import math

import pytest
import torch

from smt.detection.mask_loss import mask_loss, mask_targets, select_class
from smt.detection.pooling import by_image, level_of, pool
from smt.detection.roi_heads import MaskHead
from tests.helpers.dense_scenes import head

STRIDES = (4, 8, 16, 32)


def interpolate(features, y, x):
    """Return features (H, W) bilinearly; centres of cells are integers; 0 far outside."""
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


def roi_align_by_loop(features, stride, box, resolution):
    """Return RoIAlign of a box: bins are means of samples, one per cell of the level."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)  # cell i has its centre at i + 0.5
    bin_height, bin_width = (y2 - y1) / resolution, (x2 - x1) / resolution
    rows, columns = math.ceil(bin_height), math.ceil(bin_width)
    return [
        [
            sum(
                interpolate(
                    features,
                    y1 + (i + (row + 0.5) / rows) * bin_height,
                    x1 + (j + (column + 0.5) / columns) * bin_width,
                )
                for row in range(rows)
                for column in range(columns)
            )
            / (rows * columns)
            for j in range(resolution)
        ]
        for i in range(resolution)
    ]


def test_boxes_of_images_are_concatenated_with_the_image_index():
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.empty(0, 4), torch.tensor([[5.0, 6, 7, 8]])]
    assert by_image(boxes).tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8]]


def test_boxes_of_each_octave_are_assigned_to_their_level():
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
def test_pooled_features_equal_roi_align_by_a_loop(resolution):
    torch.manual_seed(0)
    levels = [torch.randn(2, 1, 192 // stride, 192 // stride) for stride in STRIDES]
    pooled = pool(levels, STRIDES, by_image(BOXES), resolution)
    regions, levels_used = iter(pooled[:, 0]), set()
    for image, boxes in enumerate(BOXES):
        for box in boxes.tolist():
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(math.log2(side / 224)) + 2, 0), 3)
            levels_used.add(level)
            features = levels[level][image, 0].double().tolist()
            expected = torch.tensor(roi_align_by_loop(features, STRIDES[level], box, resolution))
            assert torch.allclose(next(regions), expected, atol=1e-4)
    assert levels_used == {0, 1}


def test_boxes_are_pooled_from_the_level_of_their_size():
    levels = [
        torch.full((1, 2, 1024 // stride, 1024 // stride), float(stride)) for stride in STRIDES
    ]
    boxes = torch.tensor([[0.0, 0, side, side] for side in (500, 50, 250, 120, 60)])
    pooled = pool(levels, STRIDES, by_image([boxes]), 7)
    assert pooled.shape == (5, 2, 7, 7)
    assert pooled[:, 0, 3, 3].tolist() == [32, 4, 16, 8, 4]


def test_only_pooled_levels_have_a_gradient():
    levels = [
        torch.randn(1, 3, 512 // stride, 512 // stride, requires_grad=True) for stride in STRIDES
    ]
    boxes = torch.tensor([[0.0, 0, side, side] for side in (50, 120, 500)])
    pool(levels, STRIDES, by_image([boxes]), 7).sum().backward()
    assert [bool(level.grad.any()) for level in levels] == [True, True, False, True]
    no_regions = pool(levels, STRIDES, torch.empty(0, 5), 7)
    assert no_regions.shape == (0, 3, 7, 7)


def test_pooling_keeps_bfloat16():
    levels = [torch.randn(1, 2, 192 // stride, 192 // stride) for stride in STRIDES]
    half = pool([level.bfloat16() for level in levels], STRIDES, by_image(BOXES[:1]), 7)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), pool(levels, STRIDES, by_image(BOXES[:1]), 7), atol=0.03)


def disc(side, x, y, radius):
    coordinates = torch.arange(side) + 0.5
    return (coordinates[None] - x).square() + (coordinates[:, None] - y).square() < radius**2


@pytest.mark.parametrize("cells", [28, 5])
def test_mask_targets_are_cells_covered_by_half(cells):
    torch.manual_seed(0)
    # A disc, and one with holes, where the centre of a cell may differ from its coverage.
    masks = torch.stack([disc(48, 20, 22, 13), disc(48, 30.5, 17, 9) & (torch.rand(48, 48) > 0.4)])
    boxes = torch.tensor(
        [[7.0, 9, 33, 35], [21.5, 8, 39.5, 26], [5.3, 4.4, 30.1, 40.2], [18.2, 3.3, 47.9, 30.7]]
    )
    objects = torch.tensor([0, 1, 0, 1])
    targets = mask_targets(masks, objects, boxes, cells)
    assert targets.shape == (4, cells, cells) and targets.dtype == torch.float32
    compared = 0
    for actual, index, box in zip(targets, objects.tolist(), boxes.tolist(), strict=True):
        covered = torch.tensor(roi_align_by_loop(masks[index].double().tolist(), 1, box, cells))
        unambiguous = (covered - 0.5).abs() > 1e-5
        assert torch.equal(actual[unambiguous], (covered >= 0.5).float()[unambiguous])
        compared += int(unambiguous.sum())
    assert compared > 0.9 * targets.numel()


def test_a_cell_covered_by_exactly_half_is_positive():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :, :3] = True  # the object ends within the second of four cells of 2 pixels
    box = torch.tensor([[0.0, 0, 8, 8]])
    target = mask_targets(mask, torch.tensor([0]), box, 4)
    assert target[0].tolist() == [[1, 1, 0, 0]] * 4


def test_the_target_of_a_mask_that_fills_its_box_is_all_ones():
    mask = torch.zeros(1, 40, 50, dtype=torch.bool)
    mask[0, 5:33, 10:38] = True
    assert mask_targets(mask, torch.tensor([0]), torch.tensor([[10.0, 5, 38, 33]]), 28).all()


def test_without_objects_the_mask_loss_is_zero_with_a_gradient():
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
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters()
    )


def test_the_mask_loss_is_that_of_the_object_class_only():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 2, 2, requires_grad=True)
    targets = torch.randint(2, (3, 2, 2)).float()
    labels = torch.tensor([2, 0, 3])
    expected = 0.0
    for region, label in enumerate(labels.tolist()):
        for logit, is_object in zip(
            logits[region, label].flatten().tolist(), targets[region].flatten(), strict=True
        ):
            expected += math.log1p(math.exp(-logit if is_object else logit)) / 12
    loss = mask_loss(logits, labels, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad.flatten(2).any(2).nonzero().tolist() == [[0, 2], [1, 0], [2, 3]]
    assert torch.equal(select_class(logits, labels)[1], logits[1, 0])
