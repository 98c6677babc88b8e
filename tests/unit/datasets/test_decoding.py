"""Files of every kind as RGB of eight bits, the way the papers' readers see them."""

import numpy as np
import pytest
from PIL import Image

from smt.datasets.decoding import decode, require_decodable, upright_size
from smt.errors import DataError

HEIGHT, WIDTH = 6, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
STORED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS),
    7: np.rot90(PIXELS.transpose(1, 0, 2), 2),
    8: np.rot90(PIXELS, 3),
}
"""How an image is stored for each orientation of EXIF 2.3, figure 5, to be shown as PIXELS."""


def write(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_each_orientation_is_turned_upright_where_that_is_asked_for(tmp_path, orientation):
    path = tmp_path / "a.png"
    write(path, STORED[orientation], orientation)
    assert np.array_equal(decode(path, upright=True), PIXELS)
    assert np.array_equal(decode(path), STORED[orientation])  # as ImageFolder reads it
    assert upright_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_passed_over(tmp_path, orientation):
    write(tmp_path / "a.png", PIXELS, orientation)
    assert np.array_equal(decode(tmp_path / "a.png", upright=True), PIXELS)


def test_damaged_exif_is_passed_over(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff")
    assert decode(tmp_path / "a.jpg", upright=True).size == (WIDTH, HEIGHT)
    assert upright_size(tmp_path / "a.jpg") == (HEIGHT, WIDTH)


def test_sixteen_bits_are_brought_to_eight(tmp_path):
    """A ramp over all 65,536 values has the mean of one over 256; clipped, it would be 251."""
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = np.asarray(decode(tmp_path / "a.png"))
    assert np.array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))
    assert found.mean() == 127.5


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_fixed_range_are_refused(tmp_path, kind):
    path = tmp_path / "a.png"  # the name is taken for what it says, the content is
    Image.fromarray(np.zeros((HEIGHT, WIDTH), kind)).save(path, "TIFF")
    with pytest.raises(DataError, match="which has no fixed range; save it with 8 or 16 bits"):
        decode(path)
    with path.open("rb") as content, pytest.raises(DataError, match="no fixed range"):
        require_decodable(content)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_are_converted(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert decode(path).mode == "RGB"
