"""Normalisation of uint8 pixels on the device, and clearing of padding."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import normalize, to_tensor

from smt.data.transforms.image import Normalise, clear_padding


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalisation_is_bit_identical_to_timms(memory_format):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = normalize(to_tensor(levels), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    batch = torch.from_numpy(np.stack([levels, levels])).permute(0, 3, 1, 2)
    normalised = Normalise()(batch, memory_format)
    assert normalised.dtype == torch.float32 and normalised.is_contiguous(
        memory_format=memory_format
    )
    assert torch.equal(normalised[0], expected) and torch.equal(normalised[1], expected)
    assert batch.dtype == torch.uint8 and batch[0, 0, 15, 15] == 255, "the input is not modified"


def test_gradients_are_possible_after_use_in_inference_mode():
    pixels = torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)
    with torch.inference_mode():
        normalise = Normalise()
        normalise(pixels)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(pixels) * weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_padding_is_cleared_to_the_mean_colour():
    black = torch.from_numpy(np.array(Image.new("RGB", (8, 6)))).permute(2, 0, 1)
    images = Normalise()(torch.stack([black, black, black]))
    before = images.clone()
    clear_padding(images, [(6, 8), (2, 8), (6, 5)])
    assert torch.equal(images[0], before[0])
    assert torch.equal(images[1, :, :2], before[1, :, :2]) and not images[1, :, 2:].any()
    assert torch.equal(images[2, :, :, :5], before[2, :, :, :5]) and not images[2, :, :, 5:].any()
