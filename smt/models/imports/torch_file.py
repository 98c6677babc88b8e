"""Reading checkpoints of others, of torch.save or of safetensors, without running their code."""

import argparse
import re
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from smt.errors import UserError, listed
from smt.models.imports import file_kind

_NAMED = 4
"""Classes that an error names before it only counts the rest."""


class Content(NamedTuple):
    """What a file holds."""

    tree: Any
    """Tensors, numbers, text, and mappings and sequences of these."""
    metadata: dict[str, str]
    """Of a safetensors file; it holds nothing else beside its tensors."""
    is_safetensors: bool


class _Config:
    """Stands in for yacs.config.CfgNode, whose code is neither needed nor run: a plain mapping."""

    def __new__(cls) -> Any:
        return OrderedDict()


class _Dtype:
    """Stands in for numpy.dtype, as far as a single number needs it."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


_STRUCT = {"f8": "d", "f4": "f", "f2": "e", "b1": "?",
           "i8": "q", "i4": "i", "i2": "h", "i1": "b",
           "u8": "Q", "u4": "I", "u2": "H", "u1": "B"}  # fmt: skip


def _number(dtype: _Dtype, value: bytes) -> float | int | bool:
    """Stands in for NumPy's function that makes a number of these bytes."""
    number: float | int | bool
    (number,) = struct.unpack(dtype.order + _STRUCT[dtype.code], value)
    return number


def _path(*parts: str) -> str:
    """Stands in for a path of pathlib: its text."""
    return "/".join(parts).replace("//", "/")


_ALLOWED: list[Any] = [
    argparse.Namespace,
    (_Config, "yacs.config.CfgNode"),
    (_Dtype, "numpy.dtype"),
    *((_number, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
    *(
        (_path, f"{module}.{name}Path")
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "PurePosix", "PureWindows")
    ),
]
"""What is read beside tensors and plain values: as such values, by the code here alone."""


def read(path: Path) -> Content:
    """Return what a file holds; its content tells which format it has, not its name.

    No code of the file is run. Beside tensors and plain values it may hold argparse's namespaces,
    configurations of yacs, single numbers of NumPy and paths; anything else is refused.

    Raises:
        UserError: no such file, no checkpoint, a damaged one, or one with other objects.
    """
    try:
        what = file_kind.problem_of(path)
        if what is not None:
            raise UserError(f"checkpoint {path}: it {what}")
        if file_kind.is_safetensors(path):
            return _safetensors(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    return Content(_torch(path), {}, False)


def _safetensors(path: Path) -> Content:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return Content(safetensors.torch.load_file(path), metadata, True)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"checkpoint {path} is not a whole safetensors file ({error}): copy it again"
        ) from None


def _torch(path: Path) -> Any:
    try:
        with (
            path.open("rb") as file,  # of a path torch would look at the ending
            torch.serialization.safe_globals(_ALLOWED),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # damaged bytes may read as an odd pickle protocol
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnpicklingError as error:
        raise UserError(f"checkpoint {path} {_refusal(path, error)}") from None
    except Exception:  # on damaged bytes torch's reader fails in a dozen ways
        raise UserError(
            f"checkpoint {path} is damaged or not of torch.save: copy it again"
        ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    inside = path / "model.safetensors"
    what = inside if inside.is_file() else "a run's model.safetensors or a released checkpoint"
    return UserError(f"checkpoint {path} cannot be read ({error.strerror or error}); give {what}")


def _refusal(path: Path, error: UnpicklingError) -> str:
    unsafe = sorted(_unsafe(path, error))
    if not unsafe:
        return "is damaged or not of torch.save: copy it again"
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        return (
            f"holds a whole pickled model (objects of {listed(unsafe, _NAMED)}), which loading "
            "could run as code; where you trust it, save its tensors alone, in the code that wrote "
            "it: torch.save({'model': model.state_dict()}, 'OUT.pth')"
        )
    return (
        f"holds objects of {listed(unsafe, _NAMED)}, which loading could run as code; where you "
        "trust it, save its tensors alone: torch.save({'model': checkpoint['model']}, 'OUT.pth')"
    )


def _unsafe(path: Path, error: UnpicklingError) -> list[str]:
    """Return the classes and functions that a file wants; of torch's old format only the first."""
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_ALLOWED):
            return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # the old format, or so damaged that its list of classes cannot be read
        return re.findall(r"GLOBAL ([\w.]+) (?:was|whose)", str(error))[:1]
