"""Masks pasted into their image, against bilinear interpolation in float64."""

import math

import pytest
import torch

from smt.detection import paste as module
from smt.detection.paste import paste


def interpolate(mask, box, row, column):
    """Return the value at the centre of a pixel in float64, with zeros around the mask."""
    cells = len(mask)
    x1, y1, x2, y2 = (float(side) for side in box)
    # In cells: 0 is the centre of the first, cells - 1 that of the last.
    u = (column + 0.5 - x1) / (x2 - x1) * cells - 0.5
    v = (row + 0.5 - y1) / (y2 - y1) * cells - 0.5
    value = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < cells and 0 <= j < cells:
                value += (1 - abs(v - i)) * (1 - abs(u - j)) * float(mask[i, j])
    return value


def assert_equals_interpolation(masks, boxes, size, threshold):
    pasted = paste(masks, boxes, size, threshold)
    assert pasted.shape == (len(masks), *size) and pasted.dtype == torch.bool
    checked = 0
    for mask, box, pixels in zip(masks.double(), boxes.double(), pasted.tolist(), strict=True):
        for row in range(size[0]):
            for column in range(size[1]):
                value = interpolate(mask, box, row, column)
                if abs(value - threshold) > 1e-5:  # float32 may fall to either side
                    assert pixels[row][column] == (value > threshold), (row, column, value)
                    checked += 1
    return checked


BOXES = torch.tensor(
    [
        [3.0, 2.0, 17.0, 16.0],
        [0.3, 1.7, 9.1, 22.9],  # at fractions of a pixel
        [5.2, 5.4, 5.9, 5.8],  # within one pixel
        [10.1, 3.3, 10.4, 20.0],  # narrower than a pixel
        [-6.5, -4.25, 12.75, 9.5],  # across the edges
        [-100.0, -80.0, 140.0, 120.0],  # larger than the image
        [0.0, 0.0, 29.0, 23.0],
        [35.0, 2.0, 40.0, 9.0],  # outside the image
    ]
)


@pytest.mark.parametrize("threshold", [0.5, 0.1])
@pytest.mark.parametrize("cells", [28, 5, 1])
def test_pasted_masks_equal_bilinear_interpolation(cells, threshold):
    torch.manual_seed(cells)
    masks = torch.rand(len(BOXES), cells, cells)
    checked = assert_equals_interpolation(masks, BOXES, (23, 29), threshold)
    assert checked > 0.99 * len(BOXES) * 23 * 29


def test_a_mask_of_ones_fills_the_pixels_with_centres_in_its_box():
    pasted = paste(torch.ones(1, 4, 4), torch.tensor([[2.4, 1.0, 6.6, 4.4]]), (6, 8), 0.5)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:4, 2:7] = True  # centres 1.5 to 3.5 and 2.5 to 6.5
    assert torch.equal(pasted[0], expected)


def test_a_pasted_mask_is_not_transposed():
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 1] = 1  # top right
    pasted = paste(mask, torch.tensor([[0.0, 0.0, 8.0, 4.0]]), (4, 8), 0.5)
    rows, columns = pasted[0].nonzero().unbind(1)
    assert rows.float().mean() < 1.5 and columns.float().mean() > 4


@pytest.mark.parametrize("samples", [1, 3 * 23 * 29, 10**9])
def test_sampling_the_whole_image_equals_sampling_near_boxes(monkeypatch, samples):
    masks = torch.rand(len(BOXES), 7, 7)
    expected = [paste(masks, BOXES, (23, 29), threshold) for threshold in (0.5, 0.02)]
    monkeypatch.setattr(module, "_reached", module._whole)  # as on a GPU
    monkeypatch.setattr(module, "SAMPLES", samples)
    for threshold, pasted in zip((0.5, 0.02), expected, strict=True):
        assert torch.equal(paste(masks, BOXES, (23, 29), threshold), pasted)


def test_chunks_cover_all_masks_within_the_memory_limit():
    masks, boxes, size = torch.rand(100, 28, 28), torch.zeros(100, 4), (800, 1333)
    chunks = [chunk[0] for chunk in module._whole(masks, boxes, size)]
    covered = [index for chunk in chunks for index in range(*chunk.indices(100))]
    assert covered == list(range(100))
    assert len(chunks) > 1
    assert all(len(masks[chunk]) * 800 * 1333 <= module.SAMPLES for chunk in chunks)
    assert len(list(module._whole(masks[:2], boxes[:2], (10**4, 10**4)))) == 2  # one at a time


@pytest.mark.parametrize("threshold", [0.5, 0.01])
@pytest.mark.parametrize("chunks", ["_reached", "_whole"])
def test_a_box_without_an_area_has_no_pixels(monkeypatch, chunks, threshold):
    monkeypatch.setattr(module, "_reached", getattr(module, chunks))
    flat = torch.tensor([[3.5, 1, 3.5, 6], [1, 2.5, 7, 2.5], [4, 4, 4, 4], [0, 0, 0, 9]])
    assert not paste(torch.ones(4, 28, 28), flat.float(), (8, 9), threshold).any()


def test_sampling_coordinates_are_clamped():
    first, last = torch.tensor([3.5, 3.5, 0.0]), torch.tensor([3.5, 3.5 + 1e-6, 9.0])
    coordinates = module._places(slice(0, 9), first, last)
    assert coordinates.abs().amax(1).tolist() == [3, 3, pytest.approx(8 / 9)]
    assert coordinates[0].abs().tolist() == [3] * 9


def test_no_masks_and_bfloat16_masks_are_pasted():
    assert paste(torch.rand(0, 28, 28), torch.zeros(0, 4), (5, 6), 0.5).shape == (0, 5, 6)
    masks, boxes = torch.rand(3, 28, 28).bfloat16(), BOXES[:3]
    assert torch.equal(
        paste(masks, boxes, (23, 29), 0.5), paste(masks.float(), boxes, (23, 29), 0.5)
    )
