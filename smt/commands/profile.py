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
from smt.config.load import TIMM_SIZES, load_project
from smt.config.models import TimmModel
from smt.config.peers import peer_size_name, timm_peers
from smt.config.project import Project, System
from smt.config.published import ReportedValue
from smt.config.yaml import YamlFile
from smt.report.sizes import CONVENTIONS, PAPER, Macs, ModelSize, PartSize, SizesRecord
from smt.runs.atomic import explained, replacing, require_writable, write_json
from smt.runs.paths import default_params

if TYPE_CHECKING:
    from smt.models.profile import Counts
    from smt.tasks.sizes import Sizes

_HEADER = """\
# Written by: smt profile --update
# MACs of a forward pass of one image, attention included, by scale, head and model, at the size
# that the recipe counts at: `smt plan` estimates costs from them. Not part of a fingerprint.
# Under timm: MACs and parameters of classifiers of timm, by arguments, resolution and classes.

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
    path = target or layout.sizes
    remedy = "give a file that can be written: smt profile --json FILE"
    require_writable(path, remedy)
    sizes = measure(project)
    with explained(path, remedy):
        write_json(path, SizesRecord(sizes).as_json())
    # Wider than the terminal it wraps there, which is better than figures cut short.
    Console(width=max(Console().width, WIDTH)).print(_table(project, sizes))
    click.echo(f"sizes of {len(sizes)} models: {path}")


def _update(params: Path) -> None:
    path = params / "sizes.yaml"
    projects = [load_project(params, scale) for scale in YamlFile(params / "scales.yaml").data]
    macs = {project.scale_name: forward_macs(project) for project in projects}
    of_timm = {name: size for project in projects for name, size in timm_sizes(project).items()}
    content = {**macs, TIMM_SIZES: of_timm} if of_timm else macs
    with explained(path, "make it writable"), replacing(path) as file:
        file.write(f"{_HEADER}{yaml.safe_dump(content, sort_keys=False)}".encode())
    click.echo(
        f"MACs of {sum(map(len, macs.values()))} heads on models and of {len(of_timm)} models of "
        f"timm: {path}"
    )


def forward_macs(project: Project) -> dict[str, int]:
    """Return, by head and model, the MACs of an image, as params/sizes.yaml holds them."""
    _require_trainable(project)
    return {
        project.counted_as(system): _counts(project, system).counts.attention
        for system in project.systems.values()
    }


def timm_sizes(project: Project) -> dict[str, dict[str, int | bool]]:
    """Return the sizes of classifiers of timm, as params/sizes.yaml holds them."""
    from smt.models import profile, timm_network

    sizes: dict[str, dict[str, int | bool]] = {}
    for name in project.order:
        model, recipe = project.models[project.experiments[name].model], project.recipe_of(name)
        if not isinstance(model, TimmModel) or project.experiments[name].head is not None:
            continue
        resolution, classes = recipe.resolution, project.datasets[recipe.dataset].classes
        sizes[model.sized_text(resolution, classes)] = {
            "macs": profile.count(model, resolution, num_classes=classes).attention,
            "params": profile.parameters(model, num_classes=classes, resolution=resolution),
            "drop_path": timm_network.has_drop_path(model),
        }
    return sizes


def _require_trainable(project: Project) -> None:
    """Refuse models of timm that cannot be trained as experiments say, before any is counted."""
    from smt.tasks.sizes import require_peers, require_trainable

    require_peers(project)
    for name in project.order:
        require_trainable(project, name)


def measure(project: Project) -> dict[str, ModelSize]:
    """Return, by model, its title, parameters, and MACs at each resolution it is trained at.

    The classifier is that of the data set that the model is evaluated on last.
    """
    _require_trainable(project)
    peers = _peers(project) if project.scale_name == PAPER else {}  # first: timm may refuse one
    sizes = {name: _classifier(project, name) for name in project.models}
    sizes |= {name: _system(project, system) for name, system in project.systems.items()}
    return sizes | peers


def _peers(project: Project) -> dict[str, ModelSize]:
    """Return the sizes of models of timm at 224, on the classes of ImageNet-1K."""
    from smt.models import profile
    from smt.tasks.sizes import explained_peer

    sizes: dict[str, ModelSize] = {}
    for table, key, name in timm_peers(project.peer_tables):
        if peer_size_name(name) in sizes:
            continue
        with explained_peer(table, key):
            counts, parameters = profile.count_timm(name, PEER_RESOLUTION)
        macs = {str(PEER_RESOLUTION): _macs(counts)}
        title = f"{name} of timm"
        sizes[peer_size_name(name)] = ModelSize(title=title, params=parameters, macs=macs)
    return sizes


def _classifier(project: Project, name: str) -> ModelSize:
    from smt.models import profile

    model, recipes = project.models[name], project.classifier_recipes(name)
    classes = project.datasets[recipes[-1].dataset].classes
    macs = {
        str(resolution): _macs(profile.count(model, resolution, num_classes=classes))
        for resolution in sorted({recipe.resolution for recipe in recipes})
    }
    last = recipes[-1].resolution
    parameters = profile.parameters(model, num_classes=classes, resolution=last)
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
    start = next(name for name, entry in project.experiments.items() if entry.system == system.name)
    resolution = project.trunk_resolution(start)
    return downstream_counts(model, head, system.classes, system.size, resolution)


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
