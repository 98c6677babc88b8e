"""Decoding of image files to 8-bit RGB, as the readers of the papers do it."""

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
def test_exif_orientation_is_applied_on_request(tmp_path, orientation):
    path = tmp_path / "a.png"
    write(path, STORED[orientation], orientation)
    assert np.array_equal(decode(path, upright=True), PIXELS)
    assert np.array_equal(decode(path), STORED[orientation])  # as ImageFolder reads it
    assert upright_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_invalid_exif_orientation_is_ignored(tmp_path, orientation):
    write(tmp_path / "a.png", PIXELS, orientation)
    assert np.array_equal(decode(tmp_path / "a.png", upright=True), PIXELS)


def test_damaged_exif_is_ignored(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff")
    assert decode(tmp_path / "a.jpg", upright=True).size == (WIDTH, HEIGHT)
    assert upright_size(tmp_path / "a.jpg") == (HEIGHT, WIDTH)


def test_16_bit_images_are_scaled_to_8_bits(tmp_path):
    """The mean of a ramp over 65,536 values is that of one over 256; clipped, it would be 251."""
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    decoded = np.asarray(decode(tmp_path / "a.png"))
    assert np.array_equal(decoded, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))
    assert decoded.mean() == 127.5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_fixed_range_are_refused(tmp_path, dtype):
    path = tmp_path / "a.png"  # a TIFF file named PNG
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype)).save(path, "TIFF")
    with pytest.raises(DataError, match="which has no fixed range; save it with 8 or 16 bits"):
        decode(path)
    with path.open("rb") as content, pytest.raises(DataError, match="no fixed range"):
        require_decodable(content)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_are_converted_to_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert decode(path).mode == "RGB"
