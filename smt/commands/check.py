"""`smt check`: validates params/ and lists the experiments."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import click

from smt.cluster import cost
from smt.commands.common import load, scale_option
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.peers import timm_names
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError, UserError
from smt.runs import shared_folder
from smt.runs.paths import Layout

_FUNCTIONS = re.compile(r"^def (\w+)\(", re.MULTILINE)
"""Names of functions in Python code: each model of timm is one."""

HEADINGS = ("experiment", "model", "recipe", "data", "starts from", "seeds", "fingerprint")


@click.command()
@scale_option
def command(scale: str) -> None:
    """Validate params/ and print what each experiment trains.

    The fingerprint shown is that of the first seed; it takes the manifests of the data.
    """
    project, layout = load(scale)
    for name in project.order:
        _require_counted(project, name)
    _require_peers(project)
    click.echo(_aligned([HEADINGS, *(_row(project, layout, name) for name in project.order)]))
    click.echo(
        f"params are valid at {project.scale.title}: {len(project.order)} experiments, "
        f"{len(project.runs)} runs, {len(project.models)} models, {len(project.tables)} tables"
    )
    if project.scale.notice:
        click.echo(project.scale.notice)


def _require_counted(project: Project, experiment: str) -> None:
    """Refuse an experiment without MACs: first for what is wrong with it, if anything is."""
    try:
        cost.forward_macs(project, experiment)
    except UserError:
        from smt.tasks.sizes import require_trainable  # torch, which what was counted does not need

        require_trainable(project, experiment)
        raise


def _require_peers(project: Project) -> None:
    """Refuse peers that timm does not have.

    Its code shows a name at once; only one that is not there is worth the seconds to import it.
    """
    names = set(timm_names(project.peer_tables))
    timm = importlib.util.find_spec("timm")
    for folder in (timm.submodule_search_locations or ()) if timm else ():
        for path in Path(folder, "models").glob("*.py"):
            names -= set(_FUNCTIONS.findall(path.read_text(encoding="utf-8")))
    if names:
        from smt.tasks.sizes import require_peers

        require_peers(project)


def _row(project: Project, layout: Layout, name: str) -> tuple[str, ...]:
    experiment = project.experiments[name]
    return (
        name,
        experiment.model,
        experiment.recipe,
        project.dataset_of(name),
        experiment.start.experiment if experiment.start else "-",
        ",".join(str(seed) for seed in project.seeds(name)),
        _fingerprint(project, layout, Run(experiment=name, seed=project.seeds(name)[0])),
    )


def _fingerprint(project: Project, layout: Layout, run: Run) -> str:
    try:
        digests = manifest.digests(project, layout, run)
    except DataError:
        keys = fingerprint.inputs(project, run)
        paths = {key: manifest.manifest_path(layout, key) for key in keys}
        absent = [key for key, path in paths.items() if not shared_folder.exists(path)]
        return f"data missing: {', '.join(absent)}" if absent else "data changed"
    return fingerprint.fingerprint(project, run, digests)[:12]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
