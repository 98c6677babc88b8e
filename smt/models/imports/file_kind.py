"""What a file is by its content: what is called a checkpoint may be a web page or an archive."""

import re
import zipfile
from pathlib import Path

from smt.errors import listed

_BEGINNING = 512
"""Bytes that tell what a file is."""

_LONGEST_HEADER = 100 * 2**20
"""Bytes, as the safetensors format limits them."""

_ZIP = b"PK\x03\x04"

_AGAIN = "copy or download it again"

_IMAGE = "an image, not a checkpoint: give the file of weights, before any images"

_SIGNATURES = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ\x00": "an xz archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes them: save it with PyTorch",
    b"\x93NUMPY": "an array of NumPy: save tensors under their names with torch.save",
    **dict.fromkeys(
        (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*"), _IMAGE
    ),
}


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as one of safetensors: a length, then JSON.

    Raises:
        OSError: it cannot be read.
    """
    head = _head(path)
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def is_torch(path: Path) -> bool:
    """Return whether a file begins as one of torch.save, in its present or in its old format.

    Raises:
        OSError: it cannot be read.
    """
    return _head(path).startswith((_ZIP, b"\x80")) and problem_of(path) is None


def problem_of(path: Path) -> str | None:
    """Return what a file is that holds no checkpoint, and what to do, to follow the word "it".

    None where it may be of torch.save or of safetensors; it may still be damaged.

    Raises:
        OSError: it cannot be read.
    """
    head = _head(path)
    if not head:
        return f"is empty: {_AGAIN}"
    if is_safetensors(path):
        return None
    for start, what in _SIGNATURES.items():
        if head.startswith(start):
            return f"is {what}"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head.startswith(_ZIP):
        return _of_zip(path)
    text = _text(head)
    return None if text is None else _of_text(text)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGINNING)


def _text(head: bytes) -> str | None:
    """Return the beginning of a text file, or None where it is not text."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a character cut in two at the end is no matter
            return None
        text = head[: error.start].decode("utf-8-sig")
    return text if all(item.isprintable() or item.isspace() for item in text) else None


def _of_text(text: str) -> str:
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"is a Git LFS pointer to a file{of}, not that file: fetch it with git lfs pull"
    if re.match(r"\s*<(!doctype html|html)|.{0,256}<html", text, re.IGNORECASE | re.DOTALL):
        return (
            "is a web page (HTML), such as a server sends where a login or another address is "
            "needed: download the file itself"
        )
    first = (text.strip().splitlines() or [""])[0][:60]
    return f"is a text file that begins {first!a}, not a checkpoint: {_AGAIN}"


def _of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile:
        return f"is cut off or damaged, at {path.stat().st_size:,} bytes: {_AGAIN}"
    except Exception:  # damaged so that zipfile fails in another way: torch's reader may say more
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a program of TorchScript (torch.jit.save), which loading would run; where you "
            "trust it: torch.save({'model': torch.jit.load('IN').state_dict()}, 'OUT.pth')"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"is a zip archive, not of torch.save: unpack it first; it holds {listed(names, 3)}"
