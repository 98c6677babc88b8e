"""Transforms of segmentation keep images and label maps aligned; mmseg's photometric distortion."""

import colorsys
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import normalize, pil_to_tensor, to_tensor

from smt.config.augment import (
    FixedRescale,
    Photometric,
    SegmentationAugment,
    SegmentationEvaluation,
)
from smt.data.transforms.image import Normalise, clear_padding
from smt.data.transforms.photometric import distort, to_hsv, to_rgb
from smt.data.transforms.segmentation import SegmentationEvalTransform, SegmentationTrainTransform

NOTHING = Photometric(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0)
MMSEG = Photometric(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18)


def train_transform(short, crop, **changes):
    augment = {
        "rescale": FixedRescale(short=(short,), long=4 * short), "factor": (1, 1), "crop": crop,
        "largest_class": 1, "hflip": 0, "photometric": None,
    }  # fmt: skip
    return SegmentationTrainTransform(SegmentationAugment(**{**augment, **changes}))


def coordinate_image(height, width):
    """Return an image of coordinates (red: row, green: column) and its label map."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    return Image.fromarray(image), ((7 * rows + 3 * columns) % 150).astype(np.uint8)


def same(one, other):
    return one.size == other.size and all(map(torch.equal, one[:2], other[:2]))


def test_each_pixel_of_a_crop_keeps_its_label():
    image, labels = coordinate_image(60, 90)
    transform, crops = train_transform(60, 32, hflip=0.5), set()
    for seed in range(300):
        torch.manual_seed(seed)
        pixels, classes, size = transform(image, labels)
        assert pixels.shape == (3, 32, 32) and classes.shape == size == (32, 32)
        assert pixels.dtype == classes.dtype == torch.uint8
        rows, columns, _ = pixels.long()
        assert np.array_equal(classes.numpy(), labels[rows, columns])
        step = int(columns[0, 1] - columns[0, 0])
        assert abs(step) == 1 and columns[0, -1] == columns[0, 0] + 31 * step
        crops.add((step, int(rows[0, 0]), int(columns[0].min())))
    assert {step for step, _, _ in crops} == {1, -1}
    assert {row for _, row, _ in crops} == set(range(29))
    assert {column for _, _, column in crops} >= {0, 58}


def test_label_maps_are_resized_by_nearest_neighbour():
    half = np.zeros((40, 80), np.uint8)
    half[:, 40:] = 255
    image = Image.fromarray(half).convert("RGB")
    pixels, classes, _ = train_transform(100, 200)(image, half // 255 * 9)
    assert set(classes.flatten().tolist()) == {0, 9, 255}  # 255: padding
    agree = (pixels[0] > 127) == (classes == 9)
    assert agree[:100].float().mean() > 0.99


def test_scale_factors_are_sampled_uniformly():
    image, labels = coordinate_image(40, 60)
    transform = train_transform(40, 130, factor=(0.5, 2))
    torch.manual_seed(0)
    valid = [(transform(image, labels)[1] != 255) for _ in range(600)]
    heights = np.array([int(mask[:, 0].sum()) for mask in valid])
    widths = np.array([int(mask[0].sum()) for mask in valid])
    assert heights.min() == 20 and heights.max() == 79  # int(40 x factor)
    assert (np.abs(widths - 1.5 * heights) <= 0.5).all()
    # Uniform on 20 to 80: each third has 200 of 600, give or take 4 deviations of 11.5.
    assert (np.abs(np.histogram(heights, (20, 40, 60, 81))[0] - 200) < 46).all()


def test_a_small_image_is_padded_at_right_and_bottom_after_normalisation():
    image, labels = coordinate_image(20, 30)
    sample = train_transform(20, 32)(image, labels)
    classes, (pixels,) = (
        sample.labels,
        clear_padding(Normalise()(sample.image[None]), [sample.size]),
    )
    inside = normalize(to_tensor(image), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert torch.equal(pixels[:, :20, :30], inside)
    assert np.array_equal(classes[:20, :30].numpy(), labels)
    assert not pixels[:, 20:].any() and not pixels[:, :, 30:].any()
    assert (classes[20:] == 255).all() and (classes[:, 30:] == 255).all()


def first_and_accepted_crop(labels, side, largest):
    """Return the corners of the first sampled crop and of the one that mmseg's rule takes."""

    def corner():
        return [int(torch.randint(0, length - side + 1, ())) for length in labels.shape]

    torch.rand(())  # the factor of the scale
    first = top, left = corner()
    for _ in range(10):
        part = labels[top : top + side, left : left + side]
        counts = Counter(part[part != 255].tolist())
        if len(counts) > 1 and max(counts.values()) / counts.total() < largest:
            break
        top, left = corner()
    return first, [top, left]


def rare_labels(kind):
    """Return a label map (64, 80) in which few crops, or none, satisfy the rule."""
    labels = np.zeros((64, 80), np.uint8)
    if kind == "corner":
        labels[:20, :20] = 3
    elif kind == "few labels":
        labels[:], labels[30:, 30], labels[34:, 50] = 255, 4, 9
    return labels


@pytest.mark.parametrize("kind", ["corner", "few labels", "one class"])
def test_a_crop_of_mostly_one_class_is_resampled_up_to_ten_times(kind):
    labels, resampled = rare_labels(kind), 0
    image, _ = coordinate_image(64, 80)
    transform = train_transform(64, 24, largest_class=0.75)
    for seed in range(150):
        torch.manual_seed(seed)
        first, expected = first_and_accepted_crop(labels, 24, 0.75)
        torch.manual_seed(seed)
        pixels, classes, _ = transform(image, labels)
        assert pixels[:2, 0, 0].tolist() == expected
        top, left = expected
        assert np.array_equal(classes.numpy(), labels[top : top + 24, left : left + 24])
        resampled += first != expected
    assert resampled > 50


def test_the_first_crop_is_taken_if_one_class_may_fill_it():
    image, _ = coordinate_image(64, 80)
    torch.manual_seed(3)
    expected, _ = first_and_accepted_crop(rare_labels("one class"), 24, 1)
    torch.manual_seed(3)
    pixels, *_ = train_transform(64, 24)(image, rare_labels("one class"))
    assert pixels[:2, 0, 0].tolist() == expected


def test_a_label_map_may_be_an_image_and_inputs_are_not_modified():
    image, labels = coordinate_image(60, 90)
    originals = np.asarray(image).copy(), labels.copy()
    transform = train_transform(60, 32, photometric=MMSEG, factor=(0.5, 2), hflip=0.5)
    for seed in range(10):
        torch.manual_seed(seed)
        first = transform(image, labels)
        torch.manual_seed(seed)
        second = transform(image, Image.fromarray(labels))
        assert same(first, second)
        first.image.fill_(0), first.labels.fill_(0)
    assert np.array_equal(np.asarray(image), originals[0]) and np.array_equal(labels, originals[1])


def test_only_the_generator_of_torch_is_used():
    image, labels = Image.fromarray(astronaut()), np.zeros((512, 512), np.uint8)
    transform = train_transform(
        64, 48, photometric=MMSEG, factor=(0.5, 2), hflip=0.5, largest_class=0.5
    )
    states = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(1)
    first = transform(image, labels)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(1)
    assert same(first, transform(image, labels))


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [  # as OpenCV's documentation defines them: hue / 2, 255 x saturation, value
        ((255, 0, 0), (0, 255, 255)),
        ((255, 255, 0), (30, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 128, 128), (90, 255, 128)),
        ((0, 0, 255), (120, 255, 255)),
        ((255, 0, 255), (150, 255, 255)),
        ((255, 0, 17), (178, 255, 255)),
        ((77, 77, 77), (0, 0, 77)),
        ((0, 0, 0), (0, 0, 0)),
        ((200, 100, 50), (10, 191, 200)),  # 60 x 50 / 150 = 20 degrees; 255 x 150 / 200 = 191.25
    ],
)
def test_hsv_of_single_colours(rgb, hsv):
    pixel = np.uint8(rgb).reshape(3, 1, 1)
    assert tuple(int(part.item()) for part in to_hsv(pixel)) == hsv
    if rgb != (255, 0, 17):  # whose hue is rounded
        assert np.abs(to_rgb(*to_hsv(pixel)).ravel().astype(int) - rgb).max() <= 1


def test_hsv_conversions_agree_with_colorsys():
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (3, 50, 60), np.uint8)
    hue, saturation, value = to_hsv(rgb)
    exact = np.array([colorsys.rgb_to_hsv(*colour) for colour in rgb.reshape(3, -1).T / 255])
    hue_error = np.abs(hue.ravel() - 180 * exact[:, 0])
    # Rounded once, after a product with a quotient of 12 bits: 5 x 255 x 0.5 / 4096 at most.
    assert np.minimum(hue_error, 180 - hue_error).max() < 0.5 + 0.16
    assert np.abs(saturation.ravel() - 255 * exact[:, 1]).max() < 0.5 + 0.04
    assert np.array_equal(value.ravel(), (255 * exact[:, 2]).round())
    assert hue.min() >= 0 and hue.max() == 179

    parts = generator.integers(0, [[180], [256], [256]], (3, 3000))
    expected = [colorsys.hsv_to_rgb(*colour) for colour in (parts / [[180], [255], [255]]).T]
    error = to_rgb(*parts[:, None])[:, 0].T - 255 * np.array(expected)
    assert np.abs(error).max() < 0.501


def colours():
    """Return (3, 1, 4) uint8: three colours and a grey."""
    return np.uint8([[200, 100, 50], [30, 90, 60], [10, 20, 250], [70, 70, 70]]).T[:, None]


def distort_with_seeds(rule, seeds=400, rgb=None):
    """Return colours distorted by `rule` with each seed: list of (3, 1, N) int64."""
    outcomes = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        outcomes.append(distort(colours() if rgb is None else rgb, rule).astype(int))
    return outcomes


def test_brightness_shifts_all_channels_equally_in_half_of_the_images():
    grey = np.full((3, 1, 2), 100, np.uint8)
    grey[..., 1] = 20
    outcomes = distort_with_seeds(NOTHING.model_copy(update={"brightness": 32}), rgb=grey)
    shifts = np.array([outcome[0, 0, 0] - 100 for outcome in outcomes])
    dark = np.array([outcome[0, 0, 1] for outcome in outcomes])
    assert np.array_equal(dark, np.maximum(20 + shifts, 0))
    assert shifts.min() in (-32, -31) and shifts.max() == 31  # rounded down
    assert 160 < (shifts != 0).sum() < 240
    assert abs(shifts.mean()) < 4


def test_contrast_multiplies_all_channels():
    outcomes = distort_with_seeds(
        NOTHING.model_copy(update={"contrast": (0.5, 1.5)}), rgb=colours()[..., 3:]
    )
    greys = np.array([outcome.ravel() for outcome in outcomes])
    assert (greys == greys[:, :1]).all()
    assert greys.min() == 35 and greys.max() == 104  # 70 x 0.5 and below 70 x 1.5
    assert 160 < (greys[:, 0] != 70).sum() < 240


def test_saturation_keeps_hue_and_value():
    rule = NOTHING.model_copy(update={"saturation": (0.5, 1.5)})
    hue, saturation, value = (part.ravel() for part in to_hsv(colours()))
    factors = []
    for outcome in distort_with_seeds(rule):
        new_hue, new_saturation, new_value = (part.ravel() for part in to_hsv(outcome))
        assert np.abs(new_hue[:3] - hue[:3]).max() <= 2 and np.abs(new_value - value).max() == 0
        factors.append(new_saturation[1] / saturation[1])
        expected = np.minimum(255, saturation * factors[-1])
        assert np.abs(new_saturation - expected).max() < 6
    assert min(factors) < 0.53 and max(factors) > 1.45
    assert 160 < (np.abs(np.array(factors) - 1) > 0.02).sum() < 240


def test_hue_shifts_by_steps_of_two_degrees_and_wraps_around():
    red = np.uint8([255, 0, 0]).reshape(3, 1, 1)
    rule = NOTHING.model_copy(update={"hue": 18})
    shifts = Counter(
        int(to_hsv(outcome)[0].item()) for outcome in distort_with_seeds(rule, 1500, red)
    )
    assert set(shifts) == {shift % 180 for shift in range(-18, 18)}
    assert 650 < shifts.pop(0) < 890  # half of the images, and a 36th of the others
    assert max(shifts.values()) < 45  # 750 / 36 = 21 each


def test_contrast_comes_before_saturation_as_often_as_after():
    rule = Photometric(brightness=0, contrast=(1.5, 1.5), saturation=(0.5, 0.5), hue=0)
    # Blue of (200, 100, 50). Contrast alone: 75. Saturation alone, 191 to 95: 200 (1 - 95 / 255) =
    # 125. Contrast, (255, 150, 75), then saturation, 180 to 90: 255 (1 - 90 / 255) = 165. The other
    # order: 125 x 1.5 = 187. The conversions of a hue shift of 0 may round each by one.
    blue = [value[2, 0, 0] for value in distort_with_seeds(rule, 800)]
    counts = [sum(abs(value - level) <= 2 for value in blue) for level in (50, 75, 125, 165, 187)]
    assert sum(counts) == 800
    for count, expected in zip(counts, (200, 200, 200, 100, 100), strict=True):
        assert abs(count - expected) < 50


def test_parts_of_a_distortion_are_sampled_independently():
    outcomes = Counter(tuple(outcome[:, 0, 2]) for outcome in distort_with_seeds(MMSEG, 200))
    assert outcomes.most_common(1)[0][1] < 30  # no distortion at all: a sixteenth of the images
    assert all(
        (outcome >= 0).all() and (outcome <= 255).all() for outcome in distort_with_seeds(MMSEG, 20)
    )


@pytest.mark.parametrize(
    ("factor", "expected"),
    # Limits int(50 f) and int(120 f); the image is 40 x 120.
    [(1, (40, 120)), (0.5, (20, 60)), (0.75, (30, 90)), (1.75, (70, 210)), (0.9, (36, 108))],
)
def test_an_evaluation_image_is_rescaled_by_the_factor(factor, expected):
    evaluation = SegmentationEvaluation(
        rescale=FixedRescale(short=(50,), long=120), factors=(factor,), hflip=True
    )
    image = Image.fromarray(astronaut()).crop((0, 0, 120, 40))
    pixels = SegmentationEvalTransform(evaluation)(image, factor)
    assert pixels.shape == (3, *expected)
    if factor == 1:
        assert torch.equal(pixels, pil_to_tensor(image))
