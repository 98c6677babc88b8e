"""`smt export`: a classifier for torch.export or ONNX, checked against the network."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.commands.classifier import SIDE, classifier_options, load_classifier
from smt.commands.common import announce
from smt.errors import UserError
from smt.runs.atomic import explained, replacing, require_writable

if TYPE_CHECKING:
    from smt.export.check import Comparison

SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx"}


@click.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(tuple(SUFFIXES)), required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write."
)
@click.option(
    "--size",
    type=SIDE,
    help="Pixels of the sides that it is made for [default: the recipe's].",
)
@classifier_options
def command(
    weights: Path,
    form: str,
    output: Path,
    size: int | None,
    model: str | None,
    scale: str | None,
    state: str | None,
) -> None:
    """Write the classifier WEIGHTS as a program for other software, and check what it computes.

    WEIGHTS is a run's model.safetensors or a released checkpoint. The program takes images
    (B, 3, H, W) in float32, normalised, to logits (B, classes); its batch is free, and so is the
    size of its images as far as the check says. It is compared with the network on random images of
    several sizes, and written only if it agrees.
    """
    from smt.export import check, programs

    if output.suffix != SUFFIXES[form]:
        raise UserError(f"{output}: a file of {form} ends in {SUFFIXES[form]}")
    remedy = "give a file that can be written: -o FILE"
    require_writable(output, remedy)
    if form == "onnx":
        programs.require_onnx()
    classifier = load_classifier(weights, model, scale, state)
    network, side = classifier.network, classifier.recipe(size).resolution
    announce(f"exporting {classifier.title} at {side} x {side}; SMT-T takes about a minute")
    program = programs.export(network, side)
    content, run = programs.WRITERS[form](program)
    found = check.compare(network, run, check.sizes(side))
    _require_agreement(found, form)
    with explained(output, remedy), replacing(output) as file:
        file.write(content)
    _report(output, f"{classifier.title}, {form}", found)


def _require_agreement(found: "list[Comparison]", form: str) -> None:
    """Raise an error if the program computes something else at any size that it takes, or none."""
    from smt.export.check import TOLERANCE

    for comparison in found:
        if comparison.difference is not None and not comparison.agrees:
            raise UserError(
                f"export as {form}: on images {comparison} a logit differs from the network's by "
                f"{comparison.difference:.1e} of the largest, more than {TOLERANCE:g}; nothing was "
                "written"
            )
    if not any(comparison.agrees for comparison in found):
        raise UserError(
            f"export as {form}: the program takes none of the sizes tried ({found[0]}: "
            f"{found[0].reason}); nothing was written"
        )


def _report(output: Path, what: str, found: "list[Comparison]") -> None:
    """Print how near the program is, and which sizes were tried."""
    from smt.export.check import TOLERANCE

    worst = max(it.difference for it in found if it.difference is not None)
    click.echo(
        f"{output}: {what}; logits of random images differ from the network's by at most "
        f"{worst:.1e} of the largest logit (tolerance {TOLERANCE:g})"
    )
    taken = "; ".join(str(it) for it in found if it.agrees)
    click.echo(f"checked with batch × height × width: {taken}")
    for comparison in found:
        if comparison.difference is None:
            click.echo(f"not taken: {comparison} ({comparison.reason})")
