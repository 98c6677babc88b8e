"""`smt profile`: parameters and MACs of all models, measured and published."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from smt.commands.common import load, scale_option
from smt.config.load import load_project
from smt.config.peers import peer_size_name
from smt.config.project import Project, System
from smt.config.published import ReportedValue
from smt.config.yaml import YamlFile
from smt.report.peers import timm_names
from smt.report.sizes import CONVENTIONS, PAPER, Macs, ModelSize, PartSize, SizesRecord
from smt.runs.atomic import explained, replacing, write_json
from smt.runs.paths import default_params

if TYPE_CHECKING:
    from smt.models.profile import Counts
    from smt.tasks.sizes import Sizes

_HEADER = """\
# Written by: smt profile --update
# MACs of a forward pass of one image, attention included, by scale, head and model, at the size
# that the recipe counts at: `smt plan` estimates costs from them. Not part of a fingerprint.

"""

PEER_RESOLUTION = 224
"""Resolution that classifiers of others are published at, in pixels."""

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
        write_json(path, SizesRecord(sizes).as_json())
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


def measure(project: Project) -> dict[str, ModelSize]:
    """Return, by model, its title, parameters, and MACs at each resolution it is trained at.

    The classifier is that of the data set that the model is evaluated on last.
    """
    sizes = {name: _classifier(project, name) for name in project.models}
    sizes |= {name: _system(project, system) for name, system in project.systems.items()}
    if project.scale_name != PAPER:
        return sizes
    return sizes | {
        peer_size_name(name): _peer(name) for name in timm_names(project.peer_tables.values())
    }


def _peer(name: str) -> ModelSize:
    """Return the size of a model of timm at 224, on the classes of ImageNet-1K."""
    from smt.models import profile

    counts, parameters = profile.count_timm(name, PEER_RESOLUTION)
    macs = {str(PEER_RESOLUTION): _macs(counts)}
    return ModelSize(title=f"{name} of timm", params=parameters, macs=macs)


def _classifier(project: Project, name: str) -> ModelSize:
    from smt.models import profile

    model, recipes = project.models[name], project.classifier_recipes(name)
    classes = project.datasets[recipes[-1].dataset].classes
    macs = {
        str(resolution): _macs(profile.count(model, resolution, num_classes=classes))
        for resolution in sorted({recipe.resolution for recipe in recipes})
    }
    parameters = profile.parameters(model, num_classes=classes)
    return ModelSize(title=model.title, params=parameters, macs=macs)


def _system(project: Project, system: System) -> ModelSize:
    """Return the size of a head on a model, and of each of its parts."""
    model, head = project.models[system.model], project.heads[system.head]
    sizes = _counts(project, system)
    parts = {
        name: PartSize(
            params=part.parameters,
            reported=part.counts.reported if part.counts is not None else 0,
        )
        for name, part in sizes.parts.items()
    }
    return ModelSize(
        title=f"{head.title}, {model.title}",
        params=sizes.parameters,
        macs={system.resolution: _macs(sizes.counts)},
        parts=parts,
    )


def _counts(project: Project, system: System) -> "Sizes":
    from smt.tasks.sizes import downstream_counts

    model, head = project.models[system.model], project.heads[system.head]
    return downstream_counts(model, head, system.classes, system.size)


def _macs(counts: "Counts") -> Macs:
    return Macs(
        conv_linear=counts.conv_linear,
        attention=counts.attention,
        reported=counts.reported,
        thop=counts.thop,
    )


def _table(project: Project, sizes: Mapping[str, ModelSize]) -> Table:
    compared = project.scale_name == PAPER
    beside = ("published", "difference") if compared else ()
    counts = [macs.attention for size in sizes.values() for macs in size.macs.values()]
    divisor, unit = (1e9, "G") if max(counts) >= 1e9 else (1e6, "M")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    conventions = (f"conv+linear {unit}", f"+ attention {unit}", f"as published {unit}")
    for title in ("params M", *beside, "at", *conventions, *beside):
        table.add_column(title, justify="right", no_wrap=True)
    for name, size in sizes.items():
        published = project.reported.sizes_of(name) if compared else {}
        for resolution, macs in size.macs.items():
            first = resolution == "224" or name in project.systems
            key = "gmacs" if first else f"gmacs_{resolution}"
            table.add_row(
                name,
                f"{size.params / 1e6:.6f}",
                *(_beside(size.params / 1e6, published.get("params_m")) if compared else ()),
                resolution,
                *(f"{getattr(macs, convention) / divisor:.4f}" for convention in CONVENTIONS),
                *(_beside(macs.reported / 1e9, published.get(key)) if compared else ()),
            )
    return table


def _beside(measured: float, published: ReportedValue | None) -> tuple[str, str]:
    if published is None:
        return "", ""
    return f"{published.value:g}", f"{measured - published.value:+.3f}"
