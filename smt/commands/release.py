"""`smt release`: final weights, model cards and results, ready to be published."""

import re

import click

from smt.commands.common import load, scale_option
from smt.config.load import load_project
from smt.errors import UserError
from smt.report.sizes import PAPER
from smt.runs.paths import default_params

_IDENTIFIER = re.compile(r"^[a-z0-9][a-z0-9.+-]{0,59}$")


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option(
    "--seed",
    default="first",
    show_default=True,
    metavar="first|best|N",
    help="Which seed's weights; best is by top-1 on the validation set, and the card says so.",
)
@click.option(
    "--licence",
    default="unknown",
    show_default=True,
    metavar="ID",
    help="Of the weights, by Hugging Face's list; the code's MIT is not theirs.",
)
@click.option("--licence-name", metavar="NAME", help="With --licence other.")
@click.option("--licence-link", metavar="URL", help="With --licence other.")
@scale_option
def command(
    experiments: tuple[str, ...],
    seed: str,
    licence: str,
    licence_name: str | None,
    licence_link: str | None,
    scale: str,
) -> None:
    """Pack the final weights of EXPERIMENT (default: all) to be published.

    A folder a model with weights (their digest in the name), config.json for timm and a model card
    in Hugging Face's form; results as timm lists them; SHA256SUMS. The folder holds what the last
    call selected. Runs that are not done, or whose files are inconsistent with each other, are
    refused. Nothing is sent anywhere.
    """
    from smt.release.card import Licence
    from smt.release.pack import pack
    from smt.release.selection import select_models

    project, layout = load(scale)
    if not _IDENTIFIER.match(licence):
        raise UserError(
            f"--licence {licence}: valid: an identifier of "
            "https://huggingface.co/docs/hub/repositories-licenses: mit, cc-by-nc-4.0, other, ..."
        )
    details = [option for option in (licence_name, licence_link) if option]
    if len(details) != (2 if licence == "other" else 0):
        raise UserError(
            "--licence other takes --licence-name and --licence-link; no other licence does"
        )
    paper = load_project(default_params(), PAPER)
    releases = select_models(project, paper, layout, experiments, seed)
    paths = pack(releases, layout, Licence(licence, licence_name, licence_link))
    for release in releases:
        click.echo(f"{release.name}: {release.seed_choice}")
    if project.scale.notice:
        click.echo(project.scale.notice)
    if licence == "unknown":
        click.echo("licence of the weights: not decided; smt release --licence ID gives one")
    click.echo(f"{len(paths)} files in {layout.release}")
