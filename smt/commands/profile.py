"""`smt profile`: what every model costs, beside what was published."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from smt.commands.common import load, scale_option
from smt.config.load import load_project
from smt.config.project import Project, System
from smt.config.published import ReportedValue
from smt.config.yaml import YamlFile
from smt.runs.atomic import explained, replacing, write_json
from smt.runs.paths import default_params

if TYPE_CHECKING:
    from smt.models.profile import Counts
    from smt.tasks.sizes import Sizes

COMPARED = "paper"
"""The scale at which published figures are of the same models."""

CONVENTIONS = ("conv_linear", "attention", "reported")
"""Ways to count MACs, as the table sets them out."""

_HEADER = """\
# Written by: smt profile --update
# MACs of a forward pass of one image, attention included, by scale, head and model, at the size
# that the recipe counts at: `smt plan` estimates costs from them. Not part of a fingerprint.

"""

WIDTH = 160
"""Columns that the table needs with every heading and figure in full."""


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Where to write [results].")
@click.option("--update", is_flag=True, help="Write MACs of heads, all scales, to params/ instead.")
@scale_option
def command(target: Path | None, update: bool, scale: str) -> None:
    """Count parameters and MACs of every model; print them and write them as JSON.

    MACs in three conventions: convolutions and linears; those and the products of attention; and
    as the published tables count (see `smt.models.profile`).
    """
    if update:
        _update(default_params())
        return
    project, layout = load(scale)
    sizes = measure(project)
    path = target or layout.sizes
    with explained(path, "give a file that can be written: smt profile --json FILE"):
        write_json(path, sizes)
    # Wider than the terminal it wraps there, which is better than figures cut short.
    Console(width=max(Console().width, WIDTH)).print(_table(project, sizes))
    click.echo(f"sizes of {len(sizes)} models: {path}")


def _update(params: Path) -> None:
    path = params / "sizes.yaml"
    macs = {
        scale: forward_macs(load_project(params, scale))
        for scale in YamlFile(params / "scales.yaml").data
    }
    with explained(path, "make it writable"), replacing(path) as file:
        file.write(f"{_HEADER}{yaml.safe_dump(macs, sort_keys=False)}".encode())
    click.echo(f"MACs of {sum(map(len, macs.values()))} heads on models: {path}")


def forward_macs(project: Project) -> dict[str, int]:
    """Return, by head and model, the MACs of an image, as params/sizes.yaml holds them."""
    return {
        name: _counts(project, system).counts.attention for name, system in project.systems.items()
    }


def measure(project: Project) -> dict[str, Any]:
    """Return, by model, its title, parameters, and MACs at each resolution it is trained at.

    The classifier is that of the data set that the model is evaluated on last.
    """
    from smt.models import profile

    sizes = {}
    for name, model in project.models.items():
        recipes = project.classifier_recipes(name)
        classes = project.datasets[recipes[-1].dataset].classes
        macs = {}
        for resolution in sorted({recipe.resolution for recipe in recipes}):
            counts = profile.count(model, resolution, num_classes=classes)
            macs[str(resolution)] = _conventions(counts)
        parameters = profile.parameters(model, num_classes=classes)
        sizes[name] = {"title": model.title, "params": parameters, "macs": macs}
    return sizes | {name: _system(project, system) for name, system in project.systems.items()}


def _system(project: Project, system: System) -> dict[str, Any]:
    """Return the same of a head on a model, and what each of its parts has of it."""
    model, head = project.models[system.model], project.heads[system.head]
    sizes = _counts(project, system)
    parts = {
        name: {
            "params": part.parameters,
            "reported": part.counts.reported if part.counts is not None else 0,
        }
        for name, part in sizes.parts.items()
    }
    return {
        "title": f"{head.title}, {model.title}",
        "params": sizes.parameters,
        "macs": {system.resolution: _conventions(sizes.counts)},
        "parts": parts,
    }


def _counts(project: Project, system: System) -> "Sizes":
    from smt.tasks.sizes import downstream_counts

    model, head = project.models[system.model], project.heads[system.head]
    return downstream_counts(model, head, system.classes, system.size)


def _conventions(counts: "Counts") -> dict[str, int]:
    return {
        "conv_linear": counts.conv_linear,
        "attention": counts.attention,
        "reported": counts.reported,
        "thop": counts.thop,
    }


def _table(project: Project, sizes: dict[str, Any]) -> Table:
    compared = project.scale_name == COMPARED
    beside = ("published", "difference") if compared else ()
    counts = [macs["attention"] for size in sizes.values() for macs in size["macs"].values()]
    divisor, unit = (1e9, "G") if max(counts) >= 1e9 else (1e6, "M")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    conventions = (f"conv+linear {unit}", f"+ attention {unit}", f"as published {unit}")
    for title in ("params M", *beside, "at", *conventions, *beside):
        table.add_column(title, justify="right", no_wrap=True)
    for name, size in sizes.items():
        reported = project.reported.systems if name in project.systems else project.reported.models
        published = reported.get(name, {}) if compared else {}
        for resolution, macs in size["macs"].items():
            first = resolution == "224" or name in project.systems
            key = "gmacs" if first else f"gmacs_{resolution}"
            table.add_row(
                name,
                f"{size['params'] / 1e6:.6f}",
                *(_beside(size["params"] / 1e6, published.get("params_m")) if compared else ()),
                resolution,
                *(f"{macs[each] / divisor:.4f}" for each in CONVENTIONS),
                *(_beside(macs["reported"] / 1e9, published.get(key)) if compared else ()),
            )
    return table


def _beside(measured: float, published: ReportedValue | None) -> tuple[str, str]:
    if published is None:
        return "", ""
    return f"{published.value:g}", f"{measured - published.value:+.3f}"
