"""`smt convert`: weights between the released naming and ours, without loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smt.commands.common import load
from smt.config.models import Model
from smt.errors import UserError, listed, suggest
from smt.runs.atomic import explained, replacing, require_writable

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = {"ours": (".safetensors",), "released": (".pth", ".pt", ".bin", ".ckpt")}
"""What TARGET may end in, so that nobody takes it for a file of the other form."""


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
    "--state",
    metavar="KEY",
    help="Which weights of a file that holds several: model, model_ema, ... "
    "[default: model, as the release evaluates them].",
)
@click.option(
    "--prefix",
    help="Take the names that begin so, such as backbone., and no others. Not needed for a prefix "
    "that every name has.",
)
@click.option(
    "--class-map",
    type=click.Path(path_type=Path),
    help="File with the old class of each new one, a line each: cuts the classifier down.",
)
@click.option("--scale", default="paper", show_default=True, help="Scale that --model is of.")
def command(
    source: Path,
    target: Path,
    model: str,
    form: str,
    state: str | None,
    prefix: str | None,
    class_map: Path | None,
    scale: str,
) -> None:
    """Convert the weights SOURCE to TARGET; nothing is written unless every tensor fits.

    SOURCE is a released checkpoint (.pth), or one of others that holds an SMT in the released
    naming; with --to released it is weights of ours (.safetensors). What it knows beside its
    weights (epoch, accuracy, learning rate, configuration) goes with them: smt checkpoint shows it.
    """
    project, _ = load(scale)
    if model not in project.smt_models:
        valid = suggest(model, project.smt_models)
        raise UserError(f"--model: no model {model!r} in params/models.yaml; {valid}")
    for option, value in (("--class-map", class_map), ("--state", state), ("--prefix", prefix)):
        if value is not None and form == "released":
            raise UserError(f"{option}: valid only with --to ours")
    _check_target(source, target, form)
    remedy = "give a file that can be written"
    require_writable(target, remedy)
    with explained(target, remedy):
        if form == "released":
            tensors = _export(source, target, project.smt_models[model])
        else:
            tensors = _import(source, target, project.smt_models[model], state, prefix, class_map)
    click.echo(f"{target}: {model}, {tensors} tensors of {source}")


def _check_target(source: Path, target: Path, form: str) -> None:
    if target.suffix not in _SUFFIXES[form]:
        raise UserError(
            f"{target}: weights in this form end in {' or '.join(_SUFFIXES[form])}; with --to ours "
            "safetensors are written, with --to released a file of torch.save"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target} is SOURCE itself: give another file to write to")


def _import(
    source: Path,
    target: Path,
    model: Model,
    key: str | None,
    prefix: str | None,
    class_map: Path | None,
) -> int:
    """Write a foreign checkpoint as weights in our naming; return its tensors' count."""
    from smt.models import released, weights

    checkpoint = released.read(source, key, prefix)
    for note in checkpoint.notes:
        click.echo(f"{source}: {note}")
    expected = _expected(model, checkpoint.classes)
    if released.is_ours(checkpoint.state):
        click.echo(f"{source}: its names are this project's own already")
    state = released.to_ours(checkpoint.state, expected, source)
    metadata: dict[str, Any] = {"converted_from": source.name}
    if checkpoint.key:
        metadata["state"] = checkpoint.key
    if class_map is not None:
        state = weights.select_head_rows(state, _rows(class_map, checkpoint.classes))
        metadata["class_map"] = class_map.name
    facts = checkpoint.facts.to_json()
    if facts:
        metadata["source"] = facts
    # Copies: a file may hold one tensor under two names, which safetensors does not.
    weights.save({name: tensor.clone() for name, tensor in state.items()}, target, metadata)
    if facts:
        names = [*checkpoint.facts.recorded, *(part for part in facts if part != "recorded")]
        click.echo(f"{target}: also has of {source.name}: {listed(names)}")
    return len(checkpoint.state)


def _export(source: Path, target: Path, model: Model) -> int:
    """Write weights in our naming as a released checkpoint; return its tensors' count."""
    import torch

    from smt.models import released, weights

    state = weights.read(source)
    if state and not released.is_ours(state):
        raise UserError(
            f"{source} has no tensor in this project's naming: --to released takes weights of "
            "ours; a released checkpoint is brought in by --to ours"
        )
    released.check(state, _expected(model, weights.classes(state)), source)
    written = released.to_released(state)
    with replacing(target) as file:
        torch.save({"model": written, **_source_metadata(source)}, file)
    return len(written)


def _source_metadata(source: Path) -> dict[str, Any]:
    """Return the metadata of the released file that weights were converted from, by its keys.

    Nothing, where its head was cut down: then these are not the weights that its accuracy is of.
    """
    from smt.models import released, weights

    metadata = weights.metadata(source)
    if "class_map" in metadata:
        return {}
    facts = released.stored_metadata(metadata)
    values = {**facts.recorded, **({"config": facts.config} if facts.config else {})}
    return {key: value for key, value in values.items() if key != "model"}


def _expected(model: Model, classes: int) -> Mapping[str, "Tensor"]:
    """Return names, shapes and kinds of `model` with so many classes; with 0 without a head."""
    from smt.models import zoo

    return zoo.skeleton(model, num_classes=classes).state_dict()


def _rows(path: Path, source_classes: int) -> tuple[int, ...]:
    """Return the rows of a class map file; it has as many lines as the new head has classes."""
    from smt.datasets import class_map
    from smt.datasets.text_file import text_lines

    advice = "give a text file with the old class number (from 0) of each new class, a line each"
    lines = len(text_lines(path, "--class-map", advice))
    return class_map.read(path, source_classes=source_classes, target_classes=lines, remedy=None)
