"""A segmenter's images and label maps stay together; distortion is that of mmseg, on 8 bits."""

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


def numbered(height, width):
    """Return an image that says where each pixel is (red: row, green: column), and its labels."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    return Image.fromarray(image), ((7 * rows + 3 * columns) % 150).astype(np.uint8)


def same(one, other):
    return one.size == other.size and all(map(torch.equal, one[:2], other[:2]))


def test_each_pixel_of_a_crop_keeps_its_label():
    image, labels = numbered(60, 90)
    transform, places = train_transform(60, 32, hflip=0.5), set()
    for seed in range(300):
        torch.manual_seed(seed)
        pixels, classes, size = transform(image, labels)
        assert pixels.shape == (3, 32, 32) and classes.shape == size == (32, 32)
        assert pixels.dtype == classes.dtype == torch.uint8
        rows, columns, _ = pixels.long()
        assert np.array_equal(classes.numpy(), labels[rows, columns])
        step = int(columns[0, 1] - columns[0, 0])
        assert abs(step) == 1 and columns[0, -1] == columns[0, 0] + 31 * step
        places.add((step, int(rows[0, 0]), int(columns[0].min())))
    assert {step for step, _, _ in places} == {1, -1}
    assert {row for _, row, _ in places} == set(range(29))
    assert {column for _, _, column in places} >= {0, 58}


def test_labels_are_scaled_with_their_image_without_being_mixed():
    half = np.zeros((40, 80), np.uint8)
    half[:, 40:] = 255
    image = Image.fromarray(half).convert("RGB")
    pixels, classes, _ = train_transform(100, 200)(image, half // 255 * 9)
    assert set(classes.flatten().tolist()) == {0, 9, 255}  # 255: beyond the image
    agree = (pixels[0] > 127) == (classes == 9)
    assert agree[:100].float().mean() > 0.99


def test_the_factor_of_the_scale_is_drawn_uniformly():
    image, labels = numbered(40, 60)
    transform = train_transform(40, 130, factor=(0.5, 2))
    torch.manual_seed(0)
    sizes = [(transform(image, labels)[1] != 255) for _ in range(600)]
    heights = np.array([int(each[:, 0].sum()) for each in sizes])
    widths = np.array([int(each[0].sum()) for each in sizes])
    assert heights.min() == 20 and heights.max() == 79  # int(40 x factor)
    assert (np.abs(widths - 1.5 * heights) <= 0.5).all()
    # Uniform on 20 to 80: each third has 200 of 600, give or take 4 deviations of 11.5.
    assert (np.abs(np.histogram(heights, (20, 40, 60, 81))[0] - 200) < 46).all()


def test_a_small_image_is_padded_at_right_and_bottom_after_normalisation():
    image, labels = numbered(20, 30)
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


def first_and_chosen(labels, side, largest):
    """Return the corners of the first crop that is drawn and of that which mmseg's rule takes."""

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


def spotted(kind):
    """Return labels (64, 80) in which few crops, or none, satisfy the rule."""
    labels = np.zeros((64, 80), np.uint8)
    if kind == "corner":
        labels[:20, :20] = 3
    elif kind == "few labels":
        labels[:], labels[30:, 30], labels[34:, 50] = 255, 4, 9
    return labels


@pytest.mark.parametrize("kind", ["corner", "few labels", "one class"])
def test_a_crop_of_mostly_one_class_is_drawn_again_ten_times(kind):
    labels, again = spotted(kind), 0
    image, _ = numbered(64, 80)
    transform = train_transform(64, 24, largest_class=0.75)
    for seed in range(150):
        torch.manual_seed(seed)
        first, expected = first_and_chosen(labels, 24, 0.75)
        torch.manual_seed(seed)
        pixels, classes, _ = transform(image, labels)
        assert pixels[:2, 0, 0].tolist() == expected
        top, left = expected
        assert np.array_equal(classes.numpy(), labels[top : top + 24, left : left + 24])
        again += first != expected
    assert again > 50


def test_where_a_class_may_fill_a_crop_the_first_is_taken():
    image, _ = numbered(64, 80)
    torch.manual_seed(3)
    expected, _ = first_and_chosen(spotted("one class"), 24, 1)
    torch.manual_seed(3)
    pixels, *_ = train_transform(64, 24)(image, spotted("one class"))
    assert pixels[:2, 0, 0].tolist() == expected


def test_a_label_map_may_be_an_image_and_nothing_given_is_changed():
    image, labels = numbered(60, 90)
    kept = np.asarray(image).copy(), labels.copy()
    transform = train_transform(60, 32, photometric=MMSEG, factor=(0.5, 2), hflip=0.5)
    for seed in range(10):
        torch.manual_seed(seed)
        once = transform(image, labels)
        torch.manual_seed(seed)
        again = transform(image, Image.fromarray(labels))
        assert same(once, again)
        once.image.fill_(0), once.labels.fill_(0)
    assert np.array_equal(np.asarray(image), kept[0]) and np.array_equal(labels, kept[1])


def test_torchs_generator_decides_alone_and_the_others_are_left_as_they_were():
    image, labels = Image.fromarray(astronaut()), np.zeros((512, 512), np.uint8)
    transform = train_transform(
        64, 48, photometric=MMSEG, factor=(0.5, 2), hflip=0.5, largest_class=0.5
    )
    states = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(1)
    once = transform(image, labels)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(1)
    assert same(once, transform(image, labels))


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
def test_hue_saturation_and_value_of_known_colours(rgb, hsv):
    pixel = np.uint8(rgb).reshape(3, 1, 1)
    assert tuple(int(part.item()) for part in to_hsv(pixel)) == hsv
    if rgb != (255, 0, 17):  # whose hue is rounded
        assert np.abs(to_rgb(*to_hsv(pixel)).ravel().astype(int) - rgb).max() <= 1


def test_both_ways_agree_with_the_definition_of_hsv():
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (3, 50, 60), np.uint8)
    hue, saturation, value = to_hsv(rgb)
    exact = np.array([colorsys.rgb_to_hsv(*each) for each in rgb.reshape(3, -1).T / 255])
    turn = np.abs(hue.ravel() - 180 * exact[:, 0])
    # Rounded once, after a product with a quotient of 12 bits: 5 x 255 x 0.5 / 4096 at most.
    assert np.minimum(turn, 180 - turn).max() < 0.5 + 0.16
    assert np.abs(saturation.ravel() - 255 * exact[:, 1]).max() < 0.5 + 0.04
    assert np.array_equal(value.ravel(), (255 * exact[:, 2]).round())
    assert hue.min() >= 0 and hue.max() == 179

    parts = generator.integers(0, [[180], [256], [256]], (3, 3000))
    back = [colorsys.hsv_to_rgb(*each) for each in (parts / [[180], [255], [255]]).T]
    error = to_rgb(*parts[:, None])[:, 0].T - 255 * np.array(back)
    assert np.abs(error).max() < 0.501


def colours():
    """Return (3, 1, 4) uint8: three colours and a grey."""
    return np.uint8([[200, 100, 50], [30, 90, 60], [10, 20, 250], [70, 70, 70]]).T[:, None]


def distorted(rule, seeds=400, rgb=None):
    """Return what `rule` makes of some colours, once a seed: list of (3, 1, N) int64."""
    outcomes = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        outcomes.append(distort(colours() if rgb is None else rgb, rule).astype(int))
    return outcomes


def test_brightness_shifts_all_channels_by_one_number_in_half_of_the_images():
    grey = np.full((3, 1, 2), 100, np.uint8)
    grey[..., 1] = 20
    outcomes = distorted(NOTHING.model_copy(update={"brightness": 32}), rgb=grey)
    shifts = np.array([each[0, 0, 0] - 100 for each in outcomes])
    dark = np.array([each[0, 0, 1] for each in outcomes])
    assert np.array_equal(dark, np.maximum(20 + shifts, 0))
    assert shifts.min() in (-32, -31) and shifts.max() == 31  # rounded down
    assert 160 < (shifts != 0).sum() < 240
    assert abs(shifts.mean()) < 4


def test_contrast_multiplies_all_channels():
    outcomes = distorted(
        NOTHING.model_copy(update={"contrast": (0.5, 1.5)}), rgb=colours()[..., 3:]
    )
    greys = np.array([each.ravel() for each in outcomes])
    assert (greys == greys[:, :1]).all()
    assert greys.min() == 35 and greys.max() == 104  # 70 x 0.5 and below 70 x 1.5
    assert 160 < (greys[:, 0] != 70).sum() < 240


def test_saturation_keeps_hue_and_value():
    rule = NOTHING.model_copy(update={"saturation": (0.5, 1.5)})
    hue, saturation, value = (part.ravel() for part in to_hsv(colours()))
    factors = []
    for outcome in distorted(rule):
        new_hue, new_saturation, new_value = (part.ravel() for part in to_hsv(outcome))
        assert np.abs(new_hue[:3] - hue[:3]).max() <= 2 and np.abs(new_value - value).max() == 0
        factors.append(new_saturation[1] / saturation[1])
        expected = np.minimum(255, saturation * factors[-1])
        assert np.abs(new_saturation - expected).max() < 6
    assert min(factors) < 0.53 and max(factors) > 1.45
    assert 160 < (np.abs(np.array(factors) - 1) > 0.02).sum() < 240


def test_hue_turns_by_whole_steps_of_two_degrees_and_past_red():
    red = np.uint8([255, 0, 0]).reshape(3, 1, 1)
    rule = NOTHING.model_copy(update={"hue": 18})
    turns = Counter(int(to_hsv(each)[0].item()) for each in distorted(rule, 1500, red))
    assert set(turns) == {turn % 180 for turn in range(-18, 18)}
    assert 650 < turns.pop(0) < 890  # half of the images, and a 36th of the others
    assert max(turns.values()) < 45  # 750 / 36 = 21 each


def test_contrast_comes_before_saturation_as_often_as_after():
    rule = Photometric(brightness=0, contrast=(1.5, 1.5), saturation=(0.5, 0.5), hue=0)
    # Blue of (200, 100, 50). Contrast alone: 75. Saturation alone, 191 to 95: 200 (1 - 95 / 255) =
    # 125. Contrast, (255, 150, 75), then saturation, 180 to 90: 255 (1 - 90 / 255) = 165. The other
    # order: 125 x 1.5 = 187. Hue, turned by nothing, may round each by one.
    blue = [each[2, 0, 0] for each in distorted(rule, 800)]
    counts = [sum(abs(each - level) <= 2 for each in blue) for level in (50, 75, 125, 165, 187)]
    assert sum(counts) == 800
    for count, expected in zip(counts, (200, 200, 200, 100, 100), strict=True):
        assert abs(count - expected) < 50


def test_parts_of_a_distortion_are_drawn_apart_from_each_other():
    outcomes = Counter(tuple(each[:, 0, 2]) for each in distorted(MMSEG, 200))
    assert outcomes.most_common(1)[0][1] < 30  # nothing at all: a sixteenth of the images
    assert all((each >= 0).all() and (each <= 255).all() for each in distorted(MMSEG, 20))


@pytest.mark.parametrize(
    ("factor", "expected"),
    # Limits int(50 f) and int(120 f); the image is 40 x 120.
    [(1, (40, 120)), (0.5, (20, 60)), (0.75, (30, 90)), (1.75, (70, 210)), (0.9, (36, 108))],
)
def test_an_evaluated_image_is_as_large_as_the_limits_at_the_factor(factor, expected):
    evaluation = SegmentationEvaluation(
        rescale=FixedRescale(short=(50,), long=120), factors=(factor,), hflip=True
    )
    image = Image.fromarray(astronaut()).crop((0, 0, 120, 40))
    seen = SegmentationEvalTransform(evaluation)(image, factor)
    assert seen.shape == (3, *expected)
    if factor == 1:
        assert torch.equal(seen, pil_to_tensor(image))
