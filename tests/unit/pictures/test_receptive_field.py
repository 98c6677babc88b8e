"""Effective receptive fields: with kernels whose reach is known, they are exactly that."""

import pytest
import torch

from smt.models import zoo
from smt.models.blocks import MHMC
from smt.models.layers import image, pixels
from smt.pictures.receptive_field import receptive_field, stage_fields
from tests.helpers.params import project_at

DEMO = project_at("demo").models
HEADS = 6


def one_hot_mhmc(corner):
    """Return an MHMC of which every kernel is 1 at a corner, and 0 elsewhere."""
    mhmc = MHMC(2 * HEADS, HEADS)
    for convolution in mhmc.convolutions():
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
        convolution.weight.data[:, 0, corner, corner] = 1
    return mhmc


@pytest.mark.parametrize("corner", [0, -1])
def test_with_one_hot_kernels_head_i_has_radius_one_plus_i(corner):
    mhmc = one_hot_mhmc(corner)
    features = torch.randn(3, 2 * HEADS, 31, 31)
    for head in range(HEADS):
        channels = slice(2 * head, 2 * head + 2)
        field = receptive_field(lambda x, own=channels: image(mhmc(pixels(x)))[:, own], features)
        assert field.radius(1) == 1 + head
        (place,) = field.gradient.nonzero().tolist()
        step = 1 + head if corner else -1 - head
        assert place == [15 + step, 15 + step]


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_the_field_of_a_full_kernel_has_its_radius(kernel):
    convolution = torch.nn.Conv2d(3, 4, kernel, padding=kernel // 2)
    torch.nn.init.ones_(convolution.weight)
    field = receptive_field(convolution, torch.randn(2, 3, 21, 21))
    assert field.radius(1) == kernel // 2
    assert (field.gradient > 0).sum() == kernel**2


def test_a_share_of_the_gradient_is_within_the_smallest_square_that_has_it():
    convolution = torch.nn.Conv2d(1, 1, 5, padding=2)
    torch.nn.init.zeros_(convolution.weight)
    convolution.weight.data[0, 0, 2, 2] = 6
    convolution.weight.data[0, 0, 1, 2] = 3
    convolution.weight.data[0, 0, 0, 0] = -1
    field = receptive_field(convolution, torch.randn(1, 1, 11, 11))
    assert [field.radius(share) for share in (0.5, 0.6, 0.7, 0.9, 0.95, 1)] == [0, 0, 1, 1, 2, 2]


def test_a_position_of_a_strided_output_lies_between_pixels():
    pooling = torch.nn.AvgPool2d(4)
    field = receptive_field(pooling, torch.randn(1, 3, 32, 32))
    assert field.centre == (17.5, 17.5) and field.radius(1) == 1.5
    assert (field.gradient > 0).sum() == 16


def test_stages_see_more_and_more_and_the_mean_is_over_images():
    torch.manual_seed(0)
    network = zoo.build(DEMO["smt_tiny"], num_classes=10).eval()
    images = torch.randn(2, 3, 128, 128)
    both = stage_fields(network, images)
    assert len(both) == 4
    radii = [field.radius(0.95) for field in both]
    assert radii == sorted(radii) and radii[0] < 40
    # The stem, a block of MHMC (9 x 9) and of the MLP (3 x 3) reach no further than this.
    assert both[0].radius(1) <= 4 * (4 + 1) + 4
    one, other = (stage_fields(network, image) for image in images.split(1))
    for mean, first, second in zip(both, one, other, strict=True):
        torch.testing.assert_close(mean.gradient, (first.gradient + second.gradient) / 2)
    assert not any(parameter.grad is not None for parameter in network.parameters())
