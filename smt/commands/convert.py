"""`smt convert`: weights between the released naming and ours, without loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt import spec
from smt.commands.common import load
from smt.errors import UserError, suggest
from smt.files import explained, replacing

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Model of params/models.yaml.")
@click.option(
    "--to",
    "form",
    type=click.Choice(("ours", "released")),
    default="ours",
    show_default=True,
    help="ours: a released checkpoint to safetensors; released: the other way round.",
)
@click.option(
    "--class-map",
    type=click.Path(path_type=Path),
    help="File with the old class of each new one, a line each: cuts the classifier down.",
)
@click.option("--scale", default="paper", show_default=True, help="Scale that --model is of.")
def command(
    source: Path, target: Path, model: str, form: str, class_map: Path | None, scale: str
) -> None:
    """Convert the weights SOURCE to TARGET; nothing is written unless every tensor fits.

    SOURCE is a released checkpoint (.pth) or, with --to released, weights of ours (.safetensors).
    """
    project, _ = load(scale)
    if model not in project.models:
        valid = suggest(model, project.models)
        raise UserError(f"--model: no model {model!r} in params/models.yaml; {valid}")
    if class_map is not None and form == "released":
        raise UserError("--class-map: valid only with --to ours")
    convert = _export if form == "released" else _import
    with explained(target, "give a file that can be written"):
        tensors = convert(source, target, project.models[model], class_map)
    click.echo(f"{target}: {model}, {tensors} tensors of {source}")


def _import(source: Path, target: Path, model: spec.Model, class_map: Path | None) -> int:
    """Write a released checkpoint as weights of ours; return how many tensors it had."""
    from smt.models import released, weights

    found = released.read(source)
    state = released.from_released(found, _expected(model, found), source)
    if class_map is not None:
        state = weights.select_head_rows(state, _rows(class_map, _classes(state)))
    weights.save(state, target, {"converted_from": source.name})
    return len(found)


def _export(source: Path, target: Path, model: spec.Model, class_map: Path | None) -> int:
    """Write weights of ours as a released checkpoint; return how many tensors it has."""
    import torch

    from smt.models import released, weights

    state = weights.read(source)
    weights.check(weights.shapes(_expected(model, state)), weights.shapes(state), source)
    written = released.to_released(state)
    with replacing(target) as file:
        torch.save({"model": written}, file)
    return len(written)


def _expected(model: spec.Model, state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return names and shapes of `model` with as many classes as `state` has, or without any."""
    from smt.models import zoo

    return zoo.skeleton(model, num_classes=_classes(state)).state_dict()


def _classes(state: Mapping[str, "Tensor"]) -> int:
    return len(state["head.weight"]) if "head.weight" in state else 0


def _rows(path: Path, source_classes: int) -> tuple[int, ...]:
    """Return the rows of a class map file; it has as many lines as the new head has classes."""
    from smt.data import class_map

    try:
        lines = len(path.read_text().rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(
            f"--class-map {path} cannot be read ({reason}); give a text file with the old class "
            "number (from 0) of each new class, a line each"
        ) from None
    return class_map.read(path, source_classes=source_classes, target_classes=lines, remedy=None)
