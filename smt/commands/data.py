"""`smt data`: make demo data, check data sets, write their manifests."""

import sys

import click

from smt.commands.common import load, scale_option
from smt.data import demo, manifest
from smt.data.manifest import CLASS_MAP, ClassMapManifest, Manifest
from smt.data.scan import expected_images
from smt.errors import EXIT_DATA, DataError
from smt.layout import Layout
from smt.spec import Project


@click.group()
def command() -> None:
    """Make demo data; check a data set and write its manifest.

    KEY is the name of a data set in params/data.yaml, or class_map:NAME.
    """


@command.command()
@click.argument("key")
@scale_option
def make(key: str, scale: str) -> None:
    """Make the demo data set or class map KEY, unless it is there already."""
    project, layout = load(scale)
    manifest.require_key(project, key)
    if manifest.make_command(project, key) is None:
        raise DataError(_what_to_bring(project, layout, key))
    if key.startswith(CLASS_MAP):
        path = layout.data_file(project.class_maps[key.removeprefix(CLASS_MAP)].path)
        made, what = demo.make_class_map(path), f"{path}"
    else:
        dataset = project.datasets[key]
        root = layout.dataset_root(dataset)
        made = demo.make(key, dataset, root)
        images = " and ".join(f"{n} {split}" for split, n in expected_images(dataset).items())
        what = f"{root}, {images} images in {dataset.classes} classes"
    click.echo(f"{key}: {'made' if made else 'is there already:'} {what}")


def _what_to_bring(project: Project, layout: Layout, key: str) -> str:
    then = f"then run: smt data manifest {key} --scale {project.scale_name}"
    if key.startswith(CLASS_MAP):
        entry = project.class_maps[key.removeprefix(CLASS_MAP)]
        return (
            f"{key} is not made here: bring {layout.data_file(entry.path)}, a text file of "
            f"{project.datasets[entry.target].classes} lines, line i the {entry.source} class "
            f"(from 0, sorted by folder name) of {entry.target} class i; {then}"
        )
    dataset = project.datasets[key]
    root = layout.dataset_root(dataset)
    splits = " and ".join(
        f"{root}/{split}/CLASS/IMAGE ({count} images)"
        for split, count in expected_images(dataset).items()
    )
    return (
        f"{key} is not made here: bring {dataset.title} as {splits}, {dataset.classes} class "
        f"folders each, or set datasets.{key}.root in params/data.yaml; {then}"
    )


@command.command("manifest")
@click.argument("key")
@scale_option
def write_manifest(key: str, scale: str) -> None:
    """Check KEY and write down what it holds, for fingerprints and training."""
    project, layout = load(scale)
    found = manifest.write(project, layout, key)
    click.echo(f"{key}: {_summary(found)}: {manifest.digest_file(layout, key)}")


@command.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@scale_option
def check(keys: tuple[str, ...], scale: str) -> None:
    """Say of each KEY, or of all, whether it is whole; exit with 3 if one is not."""
    project, layout = load(scale)
    for key in keys:
        manifest.require_key(project, key)
    wrong = False
    for key in keys or manifest.keys(project):
        try:
            click.echo(f"ok     {_check(project, layout, key)}")
        except DataError as error:
            click.echo(f"wrong  {error}")
            wrong = True
    if wrong:
        sys.exit(EXIT_DATA)


def _check(project: Project, layout: Layout, key: str) -> str:
    """Return what is found of `key`; a DataError where it is not whole, or no longer the same."""
    found = manifest.inspect(project, layout, key)
    path = manifest.digest_file(layout, key)
    if not path.exists():
        return f"{key}: {_summary(found)}; no manifest yet"
    written = manifest.read_any(layout, key)
    if written.digest != found.digest:
        raise DataError(
            f"{key}: no longer what {path} says; "
            f"run: smt data manifest {key} --scale {project.scale_name}"
        )
    return f"{key}: {_summary(found)}; as its manifest says"


def _summary(found: Manifest | ClassMapManifest) -> str:
    if isinstance(found, ClassMapManifest):
        text = f"{len(found.rows)} rows from {found.source} to {found.target}"
    else:
        images = " and ".join(f"{each.images} {split}" for split, each in found.splits.items())
        size = sum(each.total_bytes for each in found.splits.values())
        text = f"{images} images in {len(found.classes)} classes, {size / 1e6:.1f} MB"
    return f"{text}, digest {found.digest[:12]}"
