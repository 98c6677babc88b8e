"""Image files as RGB of eight bits a channel, by the rules of the readers that papers used.

A detector or segmenter sees an image the way a camera's EXIF orientation says it is to be shown, as
OpenCV reads it for mmdet and mmseg: boxes and label maps are of that. A classifier sees it as it is
stored, as torchvision's ImageFolder reads it.
"""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from smt.datasets.scan import InvalidDataset
from smt.errors import DataError, first_line

_ORIENTATION = 0x0112
"""EXIF's tag."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each orientation upright; from 5 on, width and height change places."""


class EncodedImage(Protocol):
    """An image file that lies in another file; its `str` says where."""

    def read(self) -> bytes:
        """Return its bytes, or raise a DataError with the reason, in a phrase."""


def decode(image: Path | EncodedImage, *, upright: bool = False) -> Image.Image:
    """Return an image file as RGB, as it is stored or `upright`, as EXIF says it is to be shown.

    Of 16 bits a channel the upper eight are taken, as libpng does for OpenCV.

    Raises:
        DataError: the file is missing or no image that can be decoded, or its values have no fixed
            range.
    """
    try:
        return _decode(image if isinstance(image, Path) else BytesIO(image.read()), upright)
    except MemoryError:
        raise
    except Exception as error:
        # Decoders of damaged files raise nearly anything: OSError, SyntaxError, ValueError, ...
        raise DataError(f"cannot read image {image} ({_reason(error)})") from None


def require_decodable(content: BinaryIO) -> None:
    """Raise a DataError with the reason, in a phrase, where `decode` would not return an image."""
    try:
        _decode(content, upright=False)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"cannot be decoded ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """Return what a decoder says, without the path that the message around it has."""
    if isinstance(error, UnidentifiedImageError):
        return "no known format of images"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _decode(file: Path | BinaryIO, upright: bool) -> Image.Image:
    with Image.open(file) as image:
        transpose = _UPRIGHT.get(_orientation(image)) if upright else None
        image.load()
        rgb = _rgb(image)
        return rgb if transpose is None else rgb.transpose(transpose)


def upright_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an image as it is to be shown; its pixels are not read.

    Raises:
        InvalidDataset: it is no image.
    """
    try:
        with Image.open(path) as image:
            is_rotated = _orientation(image) >= 5
            return (image.width, image.height) if is_rotated else (image.height, image.width)
    except Exception as error:
        raise InvalidDataset(f"{path} is no image ({_reason(error)})") from None


def _orientation(image: Image.Image) -> int:
    """Return what EXIF says before the pixels of a file; 1, as it is, where it says nothing."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(_ORIENTATION)
    except Exception:  # of damaged EXIF, too, readers raise nearly anything
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its values are of mode {image.mode}, which has no fixed range; save it with 8 or 16 "
            "bits a channel"
        )
    # convert() would copy what is RGB already: 5 % of the time of a photograph.
    return image if image.mode == "RGB" else image.convert("RGB")
