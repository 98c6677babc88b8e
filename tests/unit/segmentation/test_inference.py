"""Label maps of whole images: their size, the scales and mirror images that are averaged."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.data import astronaut
from torch import nn

from smt.config.augment import FixedRescale, SegmentationEvaluation
from smt.data.transforms.image import Normalise
from smt.data.transforms.segmentation import SegmentationEvalTransform
from smt.models.pyramid import Pyramid
from smt.segmentation.inference import predict, probabilities
from smt.segmentation.upernet import UPerNet
from tests.helpers.params import project_at

PAPER = project_at("paper")
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def evaluation(short, long=10_000):
    return SegmentationEvaluation(
        rescale=FixedRescale(short=(short,), long=long), factors=FACTORS, hflip=True
    )


def normalised(short, image, factor=1.0):
    """Return what a network sees of an image: (1, 3, H, W) float32."""
    transform = SegmentationEvalTransform(evaluation(short))
    return Normalise()(transform(Image.fromarray(image), factor)[None])


@pytest.fixture(scope="module")
def photograph():
    return astronaut()[100:171, 150:251]  # 71 x 101


@pytest.fixture(scope="module")
def network(photograph):
    """An untrained small UPerNet whose classifier is scaled to predict every class."""
    torch.manual_seed(0)
    model = PAPER.models["smt_tiny"].model_copy(
        update={"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
    )
    head = PAPER.heads["upernet"].model_copy(update={"channels": 16, "auxiliary_channels": 8})
    network = UPerNet(Pyramid(model, 0.0), head=head, classes=5).eval()
    last = network.decoder.classifier.conv
    with torch.no_grad():
        images = normalised(96, photograph)
        deviation, mean = torch.std_mean(network.logits(images), (0, 2, 3))
        last.weight /= deviation[:, None, None, None]
        last.bias -= mean / deviation
    return network


class ColourClassifier(nn.Module):
    """Classifies red, green and blue at a quarter of the resolution."""

    def logits(self, images):
        return 5 * F.avg_pool2d(images, 4)


class SizeDependent(nn.Module):
    """Predicts the same probabilities for every pixel, by the image's height alone."""

    def __init__(self, by_height):
        super().__init__()
        self.by_height = by_height

    def logits(self, images):
        logits = torch.tensor(self.by_height[images.shape[2]]).log()
        height, width = (side // 4 for side in images.shape[2:])
        return logits[None, :, None, None].expand(1, -1, height, width)


@pytest.mark.parametrize("size", [(64, 96), (97, 61), (40, 200)])
@pytest.mark.parametrize(("factors", "hflip"), [((1.0,), False), (FACTORS, True)])
def test_label_maps_have_the_original_size_and_the_true_classes(size, factors, hflip):
    truth = np.zeros(size, np.uint8)
    truth[:, 30:], truth[25:, 20:45] = 1, 2
    image = (np.eye(3)[truth] * 200).astype(np.uint8)
    labels = predict(ColourClassifier(), image, evaluation(80), factors=factors, hflip=hflip)
    assert labels.shape == size and labels.dtype == np.uint8
    # Pixels of logits are 3 to 8 of the image's; edges blur by about half of one.
    assert (labels == truth).mean() > 0.93
    inside = np.ones(size, bool)
    for edge in (np.diff(truth, axis=1, prepend=0) != 0, np.diff(truth, axis=0, prepend=0) != 0):
        for y, x in zip(*edge.nonzero(), strict=True):
            inside[max(0, y - 6) : y + 6, max(0, x - 6) : x + 6] = False
    assert inside.mean() > 0.4 and (labels == truth)[inside].all()


def expected_probabilities(network, image, factors, hflip, short):
    """Return (classes, H, W) as mmseg averages them, one view after the other."""
    views = []
    for factor in factors:
        view = normalised(short, image, factor)
        for mirrored in (False, True) if hflip else (False,):
            logits = network.logits(view.flip(3) if mirrored else view)
            for size in (view.shape[2:], image.shape[:2]):
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            softmax = logits.softmax(1)[0]
            views.append(softmax.flip(2) if mirrored else softmax)
    return torch.stack(views).mean(0)


@pytest.mark.parametrize(
    ("factors", "hflip"), [((1.0,), False), ((1.0,), True), ((0.5, 1.25), False), (FACTORS, True)]
)
def test_probabilities_of_all_views_are_averaged_at_the_size_of_the_original(
    network, photograph, factors, hflip
):
    labels = predict(network, photograph, evaluation(96), factors=factors, hflip=hflip)
    with torch.inference_mode():
        expected = expected_probabilities(network, photograph, factors, hflip, 96)
    best = expected.topk(2, 0)
    clear = (best.values[0] - best.values[1] > 1e-5).numpy()
    assert clear.mean() > 0.99 and len(np.unique(labels)) == 5
    assert np.array_equal(labels[clear], best.indices[0].numpy()[clear])


def test_more_views_change_the_label_map(network, photograph):
    single, mirrored, scaled = (
        predict(network, photograph, evaluation(96), factors=factors, hflip=hflip)
        for factors, hflip in (((1.0,), False), ((1.0,), True), ((1.0, 1.5), False))
    )
    assert not np.array_equal(single, mirrored) and not np.array_equal(single, scaled)


def test_with_mirror_images_a_mirrored_image_has_the_mirrored_label_map(network, photograph):
    labels, mirrored_labels = (
        predict(network, np.ascontiguousarray(image), evaluation(96), hflip=True)
        for image in (photograph, photograph[:, ::-1])
    )
    assert (labels[:, ::-1] == mirrored_labels).mean() > 0.999


def test_logits_are_enlarged_to_the_image_first_and_then_to_the_original(network, photograph):
    images = normalised(96, photograph)
    with torch.inference_mode():
        output = probabilities(network, images, (71, 101))
        expected = expected_probabilities(network, photograph, (1,), False, 96)
        at_once = F.interpolate(network.logits(images), size=(71, 101), mode="bilinear").softmax(1)
    assert torch.allclose(output[0], expected, atol=1e-6)
    assert not torch.allclose(output, at_once, atol=1e-3)
    assert torch.allclose(output.sum(1), torch.ones(1, 71, 101))


def test_probabilities_are_averaged_rather_than_votes_or_logits():
    # Two of three views are for class 0; the product is for class 2; the mean is for class 1.
    likely, other = [0.50, 0.45, 0.05], [0.0001, 0.45, 0.5499]
    model = SizeDependent({40: likely, 80: likely, 60: other})
    image = np.zeros((40, 40, 3), np.uint8)
    factors, rule = (1.0, 1.5, 2.0), evaluation(40)
    assert (predict(model, image, rule, factors=factors) == 1).all()
    assert (predict(model, image, rule, factors=(1.0, 2.0)) == 0).all()


def test_an_image_that_no_stride_divides_is_not_padded(network):
    images = []
    hook = network.backbone.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    image = np.full((50, 75, 3), 90, np.uint8)
    predict(network, image, evaluation(45), factors=(1.0, 0.75))
    hook.remove()
    assert [tuple(batch.shape) for batch in images] == [(1, 3, 45, 68), (1, 3, 33, 50)]
