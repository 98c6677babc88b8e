"""`smt look`: the paper's pictures, from weights of ours or released ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smt.commands.classifier import SIDE, Classifier, classifier_options, load_classifier
from smt.errors import UserError
from smt.report.pictures import PicturesRecord
from smt.runs import record
from smt.runs.atomic import explained, replacing, require_writable, sha256
from smt.runs.paths import PICTURES_RECORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from smt.pictures.inputs import Inputs
    from smt.pictures.receptive_field import ReceptiveField

FORMATS = ("png", "webp", "pdf", "svg")


@click.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[IMAGE]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("look"),
    show_default=True,
    help="Folder to write to.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="png", show_default=True)
@click.option(
    "--stage",
    type=int,
    help="Stage whose heads of MHMC are shown [default: the first that has them].",
)
@click.option(
    "--class", "label", type=int, help="Class of the class activation [default: the predicted one]."
)
@click.option(
    "--size",
    type=SIDE,
    help="Pixels of the images' sides [default: the recipe's].",
)
@classifier_options
def command(
    weights: Path,
    images: tuple[Path, ...],
    output: Path,
    form: str,
    stage: int | None,
    label: int | None,
    size: int | None,
    model: str | None,
    scale: str | None,
    state: str | None,
) -> None:
    """Show what a classifier computes: modulators, heads of MHMC, receptive fields, evidence.

    WEIGHTS is a run's model.safetensors or a released checkpoint. Without an IMAGE, pictures are of
    images of the data set that the run was trained on. The first four images have a row each; the
    receptive field is averaged over all of them.
    """
    from smt.pictures import inputs as sources
    from smt.pictures.plots import SHARES
    from smt.pictures.receptive_field import stage_fields

    remedy = "give a folder that can be written: -o FOLDER"
    require_writable(output / PICTURES_RECORD, remedy)
    classifier = load_classifier(weights, model, scale, state)
    recipe = classifier.recipe(size)
    if images:
        inputs = sources.from_files(images, recipe)
    elif classifier.run is None:
        raise UserError(
            f"{weights} names no run of this project: give images, smt look WEIGHTS IMAGE..."
        )
    else:
        inputs = sources.from_data(classifier.project, classifier.layout, recipe)
    fields = stage_fields(classifier.network, inputs.normalised)
    figures = dict(_figures(classifier, inputs, fields, stage, label))
    with explained(output, remedy):
        names = []
        for name, figure in figures.items():
            names.append(f"{name}.{form}")
            _save(figure, output / names[-1])
            click.echo(str(output / names[-1]))
        record.write(
            output / PICTURES_RECORD,
            PicturesRecord(
                weights_sha256=sha256(weights),
                files=names,
                images=len(inputs.names),
                resolution=recipe.resolution,
            ),
        )
    for number, field in enumerate(fields, start=1):
        shares = (f"{share:.0%} within {field.radius(share):g}" for share in SHARES)
        click.echo(f"stage {number}: of the gradient {', '.join(shares)} pixels of the centre")


def _figures(
    classifier: Classifier,
    inputs: "Inputs",
    fields: "Sequence[ReceptiveField]",
    stage: int | None,
    label: int | None,
) -> "Iterator[tuple[str, Figure]]":
    """Yield name and figure of each picture that these weights have."""
    from smt.pictures import maps, plots
    from smt.pictures.class_activation import class_activation
    from smt.pictures.inputs import SHOWN

    network, images = classifier.network, inputs.normalised
    shown = images[:SHOWN]
    stages = maps.last_sam(network)
    if stage is not None:
        maps.require_stage(network, stage)
    if stages:
        stage = stage or min(stages)
        yield "modulators", plots.modulator_figure(
            _title(classifier, "modulator of each stage's last SAM block"),
            inputs, maps.modulators(network, shown),
        )  # fmt: skip
        yield "mhmc_heads", plots.heads_figure(
            _title(classifier, f"heads of MHMC in the last SAM block of stage {stage}"),
            inputs, maps.head_outputs(network, shown, stage),
        )  # fmt: skip
    else:
        click.echo(f"{network.spec.title} has no scale-aware modulation: no modulators, no heads")
    what = "one image" if len(images) == 1 else f"mean of {len(images)} images"
    yield (
        "receptive_field",
        plots.receptive_field_figure(
            _title(classifier, f"effective receptive field of each stage, {what}"), fields
        ),
    )
    if network.num_classes == 0:
        click.echo("these weights have no classifier: no class activation")
        return
    found = class_activation(network, shown, label)
    yield (
        "class_activation",
        plots.activation_figure(
            _title(classifier, f"class activation (Grad-CAM) of stage {found.stage}"), inputs, found
        ),
    )


def _title(classifier: Classifier, what: str) -> str:
    """Return the title of a picture, with the notice of a scale that has one."""
    notice = classifier.project.scale.notice
    title = f"{classifier.title}: {what}"
    return f"{title}\n{notice}" if notice and classifier.run else title


def _save(figure: "Figure", path: Path) -> None:
    """Write a figure without dates and versions: the same weights give the same bytes."""
    from smt.report.plot_style import style

    dates = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
    form = path.suffix.removeprefix(".")
    options: dict[str, Any] = {"format": form, "dpi": 140}
    if form in dates:
        options["metadata"] = {dates[form]: None}
    else:
        options["pil_kwargs"] = {"quality": 85}  # webp: a fifth of a JPEG of the same sharpness
    with style(path.stem), replacing(path) as file:
        figure.savefig(file, **options)
