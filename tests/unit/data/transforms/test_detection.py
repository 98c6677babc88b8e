"""Transforms of detection keep images, boxes, masks and labels consistent."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torchvision.transforms.functional import pil_to_tensor

from smt.config.augment import (
    DetectionAugment,
    DetectionEvaluation,
    FixedRescale,
    Policy,
    RandomCrop,
    Rescale,
)
from smt.data.transforms.detection import DetectionEvalTransform, DetectionTrainTransform
from smt.data.transforms.image import TransformedImage, rescaled

NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def rescale(*short, long=10_000):
    return Rescale(short=short, long=long)


def train_transform(*policies, hflip=0.0):
    return DetectionTrainTransform(DetectionAugment(hflip=hflip, policies=policies))


def coordinate_image(height, width):
    """Return an image of coordinates: the red channel is the row, the green one the column."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))


def rectangles(boxes, height, width):
    """Return the masks (N, height, width) that fill boxes of whole pixels."""
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def bounds(mask):
    """Return x1 y1 x2 y2 of a mask's pixels."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def interpolate(pixels, size):
    """Return `pixels` (H, W) resized to `size` bilinearly, with aligned pixel centres."""
    old = np.pad(pixels.astype(float), 1, mode="edge")
    new = np.empty(size)
    for i, j in np.ndindex(size):
        y, x = (
            (k + 0.5) * old_side / new_side + 0.5
            for k, old_side, new_side in zip((i, j), pixels.shape, size, strict=True)
        )
        (top, v), (left, u) = divmod(y, 1), divmod(x, 1)
        a, b, c, d = old[int(top) : int(top) + 2, int(left) : int(left) + 2].ravel()
        new[i, j] = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
    return new


@pytest.mark.parametrize("size", [(30, 47), (13, 9), (8, 30), (37, 41), (20, 20)])
def test_resizing_is_bilinear_without_antialiasing(size):
    image = Image.fromarray(astronaut()).crop((200, 60, 220, 80))
    scaled = TransformedImage.from_pil(image).resize(size).pixels[0]
    for channel, pixels in enumerate(np.moveaxis(np.asarray(image), -1, 0)):
        expected = interpolate(pixels, size)
        assert np.abs(scaled[channel].numpy() - expected).max() <= 1


def test_downscaling_by_three_takes_every_third_pixel():
    image = Image.fromarray(astronaut()).crop((200, 60, 230, 90))
    shrunk = TransformedImage.from_pil(image).resize((10, 10)).pixels[0]
    assert np.array_equal(shrunk.permute(1, 2, 0).numpy(), np.asarray(image)[1::3, 1::3])


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 x 800 / 480 = 1066.67
        ((427, 640), 800, 1333, (800, 1199)),  # 640 x 800 / 427 = 1199.06
        ((640, 427), 800, 1333, (1199, 800)),
        ((300, 640), 800, 1333, (625, 1333)),  # 1333 / 640 is smaller than 800 / 300
        ((1200, 1600), 480, 1333, (480, 640)),
        ((5, 4000), 800, 1333, (2, 1333)),  # 5 x 1333 / 4000 = 1.67
        ((1, 4000), 800, 1333, (1, 1333)),
    ],
)
def test_an_image_is_rescaled_to_the_tighter_limit(size, short, long, expected):
    assert rescaled(size, short, long) == expected


def test_pixels_without_scaling_are_those_of_the_file():
    image = Image.fromarray(astronaut()).crop((0, 0, 150, 100))
    sample = train_transform(Policy(last=rescale(100)))(image, NO_BOXES, NO_LABELS)
    assert torch.equal(sample.image, pil_to_tensor(image)) and sample.size == (100, 150)
    assert sample.masks is None


def test_a_flipped_image_has_flipped_boxes_and_masks():
    boxes = np.array([[3, 5, 20, 9], [0, 0, 50, 40]], np.float32)
    transform = train_transform(Policy(last=rescale(40)), hflip=1.0)
    sample = transform(coordinate_image(40, 50), boxes, np.array([7, 4]), rectangles(boxes, 40, 50))
    assert sample.boxes.tolist() == [[30, 5, 47, 9], [0, 0, 50, 40]]
    assert sample.labels.tolist() == [7, 4]
    assert bounds(sample.masks[0]).tolist() == [30, 5, 47, 9]
    assert sample.image[1].eq(torch.arange(49, -1, -1)).all()


def test_half_of_the_images_are_flipped():
    transform = train_transform(Policy(last=rescale(8)), hflip=0.5)
    torch.manual_seed(0)
    samples = [transform(coordinate_image(8, 8), NO_BOXES, NO_LABELS) for _ in range(200)]
    assert 70 < sum(int(sample.image[1, 0, 0] == 7) for sample in samples) < 130


def test_boxes_are_scaled_by_the_rounded_size_of_the_image():
    boxes = np.array([[10, 20, 640, 480], [0, 0, 3, 3]], np.float32)
    transform = train_transform(Policy(last=rescale(800, long=1333)))
    sample = transform(Image.new("RGB", (640, 480)), boxes, np.array([0, 1]))
    scale_x, scale_y = 1067 / 640, 800 / 480
    expected = torch.tensor(
        [[10 * scale_x, 20 * scale_y, 1067, 800], [0, 0, 3 * scale_x, 3 * scale_y]]
    )
    assert torch.allclose(sample.boxes, expected)
    assert sample.boxes.dtype == torch.float32


def test_a_crop_clips_boxes_and_masks_and_drops_objects_outside():
    boxes = np.array([[0, 0, 9, 9], [20, 12, 45, 38], [31, 3, 33, 60], [60, 50, 70, 60]], "f4")
    masks, labels = rectangles(boxes, 64, 72), np.array([5, 6, 7, 8])
    # The second scaling has no effect: crops are 24 x 24.
    transform = train_transform(Policy(crop=RandomCrop(smallest=24, largest=24), last=rescale(24)))
    object_counts = set()
    for seed in range(100):
        torch.manual_seed(seed)
        sample = transform(coordinate_image(64, 72), boxes, labels, masks)
        top, left = sample.image[:2, 0, 0].tolist()
        assert sample.image[0].eq(torch.arange(top, top + 24)[:, None]).all()
        assert sample.image[1].eq(torch.arange(left, left + 24)).all()
        expected = [
            (label, [max(x1, left), max(y1, top), min(x2, left + 24), min(y2, top + 24)])
            for label, (x1, y1, x2, y2) in zip(labels, boxes.tolist(), strict=True)
        ]
        expected = [
            (label, (x1, y1, x2, y2)) for label, (x1, y1, x2, y2) in expected if x1 < x2 and y1 < y2
        ]
        assert sample.labels.tolist() == [label for label, _ in expected]
        shifted = sample.boxes + torch.tensor([left, top, left, top])
        assert shifted.tolist() == [list(box) for _, box in expected]
        assert len(sample.masks) == len(expected)
        for label, mask in zip(sample.labels, sample.masks, strict=True):
            full_mask = masks[label - 5]
            assert np.array_equal(mask.numpy(), full_mask[top : top + 24, left : left + 24])
        object_counts.add(len(expected))
    assert object_counts >= {0, 1, 2}


def test_crops_have_all_allowed_sizes_and_positions():
    transform = train_transform(Policy(crop=RandomCrop(smallest=4, largest=7), last=rescale(50)))
    corners = []
    torch.manual_seed(0)
    for _ in range(600):
        coordinates = transform(coordinate_image(6, 12), NO_BOXES, NO_LABELS).image[:2]
        corners.append((*coordinates[:, 0, 0].tolist(), *coordinates[:, -1, -1].tolist()))
    heights, widths = (
        {(corner[i], corner[i + 2] - corner[i] + 1) for corner in corners} for i in (0, 1)
    )
    assert heights == {(top, side) for side in (4, 5, 6) for top in range(7 - side)}
    assert widths == {(left, side) for side in (4, 5, 6, 7) for left in range(13 - side)}


def test_an_image_smaller_than_the_smallest_crop_is_kept_whole():
    transform = train_transform(Policy(crop=RandomCrop(smallest=40, largest=60), last=rescale(20)))
    sample = transform(coordinate_image(20, 30), NO_BOXES, NO_LABELS)
    assert sample.size == (20, 30) and sample.image[:2, -1, -1].tolist() == [19, 29]


def scene(generator):
    """Return an image of four coloured rectangles that do not touch, with boxes and masks."""
    pixels, boxes = np.zeros((90, 120, 3), np.uint8), np.empty((4, 4), np.float32)
    for index, box in enumerate(boxes):
        cell_y, cell_x = 45 * (index // 2), 60 * (index % 2)
        y1, x1 = cell_y + generator.integers(2, 12), cell_x + generator.integers(2, 20)
        y2, x2 = y1 + generator.integers(15, 30), x1 + generator.integers(15, 36)
        box[:] = x1, y1, x2, y2
        pixels[y1:y2, x1:x2] = 60 * (index + 1)
    return Image.fromarray(pixels), boxes, rectangles(boxes, 90, 120)


LARGE = tuple(range(60, 140, 8))
POLICIES = (
    Policy(last=rescale(*LARGE, long=170)),
    Policy(first=rescale(60, 75), crop=RandomCrop(smallest=48, largest=75), last=rescale(*LARGE)),
)


# Each scaling rounds the edge of a mask by less than a pixel; the second enlarges this error.
@pytest.mark.parametrize(("policy", "rounding"), [(POLICIES[0], 1), (POLICIES[1], 1 + 132 / 48)])
def test_image_box_mask_and_label_stay_consistent(policy, rounding):
    transform = train_transform(policy, hflip=0.5)
    generator, checked = np.random.default_rng(0), 0
    for seed in range(100):
        image, boxes, masks = scene(generator)
        torch.manual_seed(seed)
        sample = transform(image, boxes, np.arange(4), masks)
        grey = sample.image.float().mean(0)
        for box, label, mask in zip(sample.boxes, sample.labels, sample.masks, strict=True):
            if (box[2:] - box[:2]).min() < 12:
                continue  # too narrow at the edge: its mask may be empty
            assert (bounds(mask) - box).abs().max() < rounding
            (x1, y1), (x2, y2) = box[:2].round().int() + 4, box[2:].round().int() - 4
            inside = grey[y1:y2, x1:x2]
            assert (inside - 60 * (label + 1)).abs().max() < 2
            assert mask[y1:y2, x1:x2].all()
            checked += 1
    assert checked > 150


def test_policies_and_sizes_are_sampled_uniformly():
    first, second = Policy(last=rescale(10, 20)), Policy(last=rescale(30, 40, 50))
    transform, image = train_transform(first, second), coordinate_image(10, 10)
    torch.manual_seed(0)
    sides = [transform(image, NO_BOXES, NO_LABELS).size[0] for _ in range(600)]
    assert set(sides) == {10, 20, 30, 40, 50}
    for side, share in ((10, 1 / 4), (20, 1 / 4), (30, 1 / 6), (40, 1 / 6), (50, 1 / 6)):
        assert abs(sides.count(side) / 600 - share) < 0.06  # 3.4 deviations of a quarter


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_without_objects_has_empty_boxes_and_masks(policy):
    masks = np.zeros((0, 90, 120), bool)
    sample = train_transform(policy)(Image.new("RGB", (120, 90)), NO_BOXES, NO_LABELS, masks)
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)
    assert sample.masks.shape == (0, *sample.size) and sample.masks.dtype == torch.bool


def test_only_the_generator_of_torch_is_used():
    transform = train_transform(*POLICIES, hflip=0.5)
    image, boxes, masks = scene(np.random.default_rng(1))
    states = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(5)
    first = transform(image, boxes, np.arange(4), masks)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(5)
    second = transform(image, boxes, np.arange(4), masks)
    assert torch.equal(first.image, second.image) and torch.equal(first.boxes, second.boxes)
    assert torch.equal(first.masks, second.masks)


def test_inputs_are_not_modified():
    image, boxes, masks = scene(np.random.default_rng(2))
    before = np.asarray(image).copy(), boxes.copy(), masks.copy()
    for seed in range(10):
        torch.manual_seed(seed)
        sample = train_transform(*POLICIES, hflip=0.5)(image, boxes, np.arange(4), masks)
        sample.boxes.fill_(0)
        sample.masks.fill_(True)
        sample.image.fill_(0)
    assert all(map(np.array_equal, (np.asarray(image), boxes, masks), before))


def test_boxes_of_an_evaluation_image_are_restored_to_the_original_size():
    transform = DetectionEvalTransform(
        DetectionEvaluation(rescale=FixedRescale(short=(800,), long=1333))
    )
    sample = transform(Image.new("RGB", (640, 480)))
    assert sample.image.shape == (3, 800, 1067) and sample.size == (800, 1067)
    assert sample.original_size == (480, 640)
    restored = sample.restore(torch.tensor([[0.0, 0, 1067, 800], [533.5, 400, 1067, 600]]))
    assert torch.allclose(restored, torch.tensor([[0.0, 0, 640, 480], [320, 240, 640, 360]]))


def test_a_box_without_a_width_in_float32_is_dropped_with_its_label_and_mask():
    """Inside the image by less than float32 resolves; without a width losses would be NaN."""
    boxes = np.array([[39.9999999, 5, 44, 20], [2, 3, 12, 13], [2, 9, 12, 9]]).astype(np.float32)
    masks = rectangles(boxes, 30, 40)
    sample = train_transform(Policy(last=rescale(60)))(
        coordinate_image(30, 40), boxes, np.array([4, 5, 6]), masks
    )
    assert sample.boxes.tolist() == [[4, 6, 24, 26]]
    assert sample.labels.tolist() == [5] and len(sample.masks) == 1
