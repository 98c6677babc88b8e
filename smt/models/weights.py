"""Weights on disk: safetensors, written whole or not at all, loaded whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from smt.errors import UserError, listed
from smt.models.imports import file_kind
from smt.runs.atomic import Permit, replacing, sha256

HEAD = ("head.weight", "head.bias")
"""The tensors of an SMT's classifier, one row a class."""


class OtherModel(UserError):
    """Weights whose names or shapes are not those of a model."""

    def __init__(self, source: Path, differences: str) -> None:
        super().__init__(
            f"weights {source} are not of this model: {differences}; nothing was loaded, check the "
            "model's name, its scale and its number of classes"
        )
        self.differences = differences


def save(
    state: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, Any],
    permit: Permit | None = None,
) -> str:
    """Write `state` and `metadata` to `path` as safetensors and return the file's SHA-256.

    `metadata` is of values that JSON has. The same content gives the same bytes. The file appears
    whole or not at all, and not if `permit` raises (see `atomic.publish`).
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One entry: safetensors writes several in an order that differs from one process to another.
    header = {"smt": json.dumps(metadata, sort_keys=True)}
    with replacing(path, permit=permit) as file:
        file.write(safetensors.torch.save(tensors, metadata=header))
    return sha256(path)


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: no such file, or not a whole safetensors file.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be read ({error.strerror or error})") from None
    except safetensors.SafetensorError as error:
        what = file_kind.problem_of(path)
        if what is not None:
            raise UserError(f"weights {path}: it {what}") from None
        raise UserError(
            f"weights {path} are not a whole safetensors file ({error}); a released .pth file is "
            f"brought to this form by: smt convert {path} OUT.safetensors --model NAME"
        ) from None


def metadata(path: Path) -> dict[str, Any]:
    """Return what `save` was given as metadata; nothing where another program wrote the file.

    Raises:
        safetensors.SafetensorError: not a whole safetensors file.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        return parsed(file.metadata() or {})


def parsed(header: Mapping[str, str]) -> dict[str, Any]:
    """Return what `save` was given as metadata, from all that a header says beside tensors."""
    try:
        description = json.loads(header.get("smt", "{}"))
    except ValueError:  # somebody else's entry of that name
        return {}
    return description if isinstance(description, dict) else {}


def load(model: nn.Module, path: Path) -> None:
    """Load the weights of `path` into `model`: every tensor, or none.

    Raises:
        UserError: the file cannot be read, or names the tensors that are missing, extra or of
            another shape.
    """
    load_state(model, read(path), path)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load `state`, which came from `source`, into `model`: every tensor, or none.

    Raises:
        UserError: names the tensors that are missing, extra or of another shape.
    """
    check(shapes(model.state_dict()), shapes(state), source)
    model.load_state_dict(state)


def select_head_rows(
    state: Mapping[str, Tensor], rows: Sequence[int], head: Sequence[str] = HEAD
) -> dict[str, Tensor]:
    """Return `state` with a classifier of len(rows) classes: class i is the old class rows[i].

    `head` names the classifier's tensors.

    Raises:
        UserError: `state` has no classifier, or not all of the rows.
    """
    for name in head:
        if name not in state:
            raise UserError(f"weights without {name}: there is no classifier to take classes from")
    classes = len(state[head[0]])
    wrong = [row for row in rows if not 0 <= row < classes]
    if wrong:
        raise UserError(f"class map: row {wrong[0]} of a classifier of {classes} classes")
    index = torch.tensor(rows)
    return {name: value[index] if name in head else value for name, value in state.items()}


def classes(state: Mapping[str, Tensor]) -> int:
    """Return the rows of a classifier; 0 where there is none, or a tensor that is no matrix."""
    head = state.get(HEAD[0])
    return len(head) if head is not None and head.dim() == 2 else 0


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of `state`."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check(
    expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]], source: Path
) -> None:
    """Check that names and shapes of a file are those of a model.

    Raises:
        OtherModel: names what is missing, extra or of another shape (the first of each kind).
    """
    wrong = [
        f"{name} is {_shape(actual[name])}, not {_shape(shape)}"
        for name, shape in expected.items()
        if name in actual and actual[name] != shape
    ]
    problems = [
        f"{kind} {listed(names, 2)}"
        for kind, names in (
            ("missing", [name for name in expected if name not in actual]),
            ("extra", [name for name in actual if name not in expected]),
            ("wrong shape:", wrong),
        )
        if names
    ]
    if problems:
        raise OtherModel(source, "; ".join(problems))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
