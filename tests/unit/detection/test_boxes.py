"""Offsets of boxes from their references."""

import pytest
import torch

from smt.detection.boxes import clip, decode, encode

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
REFERENCE = torch.tensor([[10.0, 20.0, 26.0, 52.0]])
"""16 wide and 32 high, around (18, 36)."""


def test_offsets_by_hand():
    """Shifted by 1/4 of the width and 1/8 of the height, twice as wide and half as high."""
    box = torch.tensor([[6.0, 32.0, 38.0, 48.0]])
    expected = torch.tensor([[0.25, 0.125, 0.693147, -0.693147]]) / torch.tensor(DEVIATIONS)
    torch.testing.assert_close(encode(box, REFERENCE, DEVIATIONS), expected)


def test_decoding_inverts_encoding():
    corners = torch.rand(100, 2, 2).mul(100).sort(dim=1).values
    boxes = corners.flatten(1) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    references = REFERENCE.expand(100, 4)
    offsets = encode(boxes, references, DEVIATIONS)
    torch.testing.assert_close(decode(offsets, references, DEVIATIONS), boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("offset", "ratio"), [(1e6, 62.5), (-1e6, 1 / 62.5)])
def test_a_side_grows_and_shrinks_by_62_5_times_at_most(side, offset, ratio):
    offsets = torch.zeros(1, 4)
    offsets[0, 2 + side] = offset
    box = decode(offsets, REFERENCE, DEVIATIONS)[0]
    sides, references = (it[2:] - it[:2] for it in (box, REFERENCE[0]))
    torch.testing.assert_close(sides[side] / references[side], torch.tensor(ratio), rtol=1e-4,
                               atol=0)  # fmt: skip
    torch.testing.assert_close(sides[1 - side], references[1 - side])


def test_boxes_are_cut_to_the_image():
    boxes = torch.tensor([[-5.0, -5.0, 300.0, 300.0], [10.0, 20.0, 30.0, 40.0]])
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [10.0, 20.0, 30.0, 40.0]])
    assert torch.equal(clip(boxes, (100, 200)), expected)
