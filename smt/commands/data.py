"""`smt data`: make demo data, check data sets, write their manifests."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import click

from smt.commands import pack
from smt.commands.common import load, scale_option, warn_if_not_interruptible
from smt.config.project import Project
from smt.datasets import manifest, manifest_writer, scan
from smt.datasets import verify as verification
from smt.datasets.decoding import require_decodable
from smt.datasets.demo import digits
from smt.datasets.manifest import CLASS_MAP, ClassMapManifest, Manifest, Split
from smt.datasets.packs import record
from smt.datasets.packs import verify as packs
from smt.datasets.progress import ProgressBar
from smt.datasets.scan import SplitScan, expected_images
from smt.datasets.verify import VerifyResult
from smt.errors import EXIT_DATA, DataError
from smt.runs import shared_folder
from smt.runs.paths import Layout


@click.group()
def command() -> None:
    """Make demo data; check a data set and write its manifest; pack it in shards.

    KEY is the name of a data set in params/data.yaml, or class_map:NAME.
    """


command.add_command(pack.command, "pack")


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
        made, what = digits.make_class_map(path), f"{path}"
    else:
        dataset = project.datasets[key]
        root = layout.dataset_root(dataset)
        # A pack is of a data set that was made before.
        made = not scan.is_packed(dataset, root) and digits.make(key, dataset, root)
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
        f"{' with '.join(f'{root}/{place}' for place in scan.places_of(dataset.layout, split))} "
        f"({count} images)"
        for split, count in expected_images(dataset).items()
    )
    classes = "class folders each" if dataset.layout == "imagenet" else "classes"
    return (
        f"{key} is not made here: bring {dataset.title} as {splits}, {dataset.classes} {classes}, "
        f"or set datasets.{key}.root in params/data.yaml; {then}"
    )


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Files that are read at a time.  [default: twice the CPUs, 4 to 16]",
)


@command.command("manifest")
@click.argument("key")
@jobs_option
@scale_option
def write_manifest(key: str, jobs: int | None, scale: str) -> None:
    """Read KEY and write down what it holds, for fingerprints and training.

    What was written before is replaced. A reading that was killed resumes.
    """
    project, layout = load(scale)
    warn_if_not_interruptible()
    with ProgressBar(key) as progress:
        written = manifest_writer.write(project, layout, key, jobs=jobs, progress=progress)
    click.echo(f"{key}: {_summary(written)}: {manifest.manifest_path(layout, key)}")
    if isinstance(written, Manifest):
        _warn_of_what_is_left_out(written)


@command.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--decode", is_flag=True, help="Decode images of training, too.")
@jobs_option
@scale_option
def verify(keys: tuple[str, ...], decode: bool, jobs: int | None, scale: str) -> None:
    """Read every byte of each KEY, or of all, and compare with its manifest.

    Names each file that is changed, missing, new or unreadable, and numbers that are not the
    published ones, and exits with 3 if there are any. A first time writes the manifest. Killed, or
    with something wrong, it resumes: what has the size and times that it had is not
    read again.
    """
    project, layout = load(scale)
    warn_if_not_interruptible()

    def check_key(key: str) -> str:
        if key.startswith(CLASS_MAP):
            if not shared_folder.exists(manifest.manifest_path(layout, key)):
                manifest_writer.write(project, layout, key)
            return _check_map(project, layout, key)
        with ProgressBar(key) as progress:
            decode_check = _decode if decode else None
            result = verification.verify(
                project, layout, key, jobs=jobs, decode_check=decode_check, progress=progress
            )  # fmt: skip
        how = f"every byte as its manifest says; {_read(result)}"
        if result.created:
            how = f"written down in {manifest.manifest_path(layout, key)}; {_read(result)}"
        return _verdict(project, layout, key, result, how)

    _each(project, layout, keys, check_key)


def _decode(path: Path, content: BinaryIO) -> None:
    """Decode a file if it is an image, as training does; COCO's annotations are none."""
    if scan.is_image(path.name):
        require_decodable(content)


@command.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@scale_option
def check(keys: tuple[str, ...], scale: str) -> None:
    """Say of each KEY, or of all, by names and sizes whether it is whole; exit with 3 if not."""
    project, layout = load(scale)

    def check_key(key: str) -> str:
        if key.startswith(CLASS_MAP):
            return _check_map(project, layout, key)
        dataset = project.datasets[key]
        if shared_folder.exists(manifest.manifest_path(layout, key)):
            result = verification.check(project, layout, key)
            return _verdict(project, layout, key, result, "names and sizes as its manifest says")
        root, make = layout.dataset_root(dataset), manifest.make_command(project, key)
        if scan.is_packed(dataset, root):
            splits = packs.require_as_params_say(record.read(root), key, dataset).manifest.splits
            return f"{key}: {_numbers(splits, dataset.classes)}, packed; no manifest yet"
        scans = scan.scan(key, dataset, root, make)
        return f"{key}: {_numbers(scans, dataset.classes)}; no manifest yet"

    _each(project, layout, keys, check_key)


def _needed_or_there(project: Project, layout: Layout) -> tuple[str, ...]:
    """Return the keys of what experiments read, and of data sets that are there all the same."""
    needed, datasets = manifest.keys_in_use(project), project.datasets
    there = {name for name in datasets if layout.dataset_root(datasets[name]).exists()}
    return tuple(key for key in manifest.keys(project) if key in needed or key in there)


def _each(
    project: Project, layout: Layout, keys: tuple[str, ...], check_key: Callable[[str], str]
) -> None:
    """Print a line for each data set, with what is wrong; exit with 3 if anything is."""
    for key in keys:
        manifest.require_key(project, key)
    failed = False
    for key in keys or _needed_or_there(project, layout):
        try:
            click.echo(f"ok     {check_key(key)}")
        except DataError as error:
            click.echo(f"wrong  {error}")
            failed = True
    if failed:
        sys.exit(EXIT_DATA)


def _check_map(project: Project, layout: Layout, key: str) -> str:
    result = manifest_writer.read_class_map(project, layout, key)
    path = manifest.manifest_path(layout, key)
    if not shared_folder.exists(path):
        return f"{key}: {_summary(result)}; no manifest yet"
    if manifest.read_any(layout, key).digest != result.digest:
        raise DataError(
            f"{key}: no longer what {path} says; "
            f"run: smt data manifest {key} --scale {project.scale_name}"
        )
    return f"{key}: {_summary(result)}; as its manifest says"


def _verdict(project: Project, layout: Layout, key: str, result: VerifyResult, how: str) -> str:
    """Return the line of a data set that is whole, or raise a DataError that names what is not."""
    if result.is_whole:
        return f"{key}: {_summary(result.manifest)}; {how}"
    lines = [f"       {count}" for count in result.count_mismatches]
    lines += [f"       {each}" for each in result.differences.first]
    if len(result.differences) > len(result.differences.first):
        more = len(result.differences) - len(result.differences.first)
        lines.append(f"       and {more} more, all in {result.differences.path}")
    raise DataError("\n".join([f"{key}: {_complaint(project, layout, key, result)}", *lines]))


def _complaint(project: Project, layout: Layout, key: str, result: VerifyResult) -> str:
    """Return what is wrong with a data set, and what to do about it."""
    if not result.differences:
        return (
            "not of the published size; bring what is missing, or set the counts of datasets."
            f"{key} in params, with their source"
        )
    count = len(result.differences)
    files = f"{count} file{'s' if count > 1 else ''} ({result.differences.summary()})"
    if result.differences.counts.keys() <= {"undecodable"}:
        return f"{files}; training stops at one, or with unreadable_images: skip takes another"
    return (
        f"{files} not as in {manifest.manifest_path(layout, key)}; bring them back, or, to train "
        f"on what is there: smt data manifest {key} --scale {project.scale_name}"
    )


def _read(result: VerifyResult) -> str:
    cached = result.stats.cached
    return f"{result.stats.read} files read" + (f", {cached} by a reading before" if cached else "")


def _summary(written: Manifest | ClassMapManifest) -> str:
    if isinstance(written, ClassMapManifest):
        text = f"{len(written.rows)} rows from {written.source} to {written.target}"
    else:
        text = f"{_numbers(written.splits, len(written.classes))}{_facts(written)}"
    return f"{text}, digest {written.digest[:12]}"


def _facts(written: Manifest) -> str:
    """Return what else was counted, over all splits, as in ` (9 objects, 1 crowds)`."""
    counts: Counter[str] = Counter()
    for split in written.splits.values():
        counts.update(split.facts)
    named = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return f" ({', '.join(named)})" if named else ""


_LARGE = 0.1
"""Part of a split's annotations from which on those that are left out are warned of."""


def _warn_of_what_is_left_out(written: Manifest) -> None:
    """Say on stderr where much of a split is not trained on, and why."""
    for name, split in written.splits.items():
        facts = split.facts
        total = sum(facts.get(each, 0) for each in ("objects", *_LEFT_OUT))
        for reason, what in (_LEFT_OUT | _NOT_FOR_MASKS).items():
            if facts.get(reason, 0) > _LARGE * total:
                click.echo(
                    f"smt: warning: {written.dataset}: {facts[reason]} of {total} annotations of "
                    f"{name} {what}",
                    err=True,
                )


_LEFT_OUT = {
    "crowds": "are crowds (iscrowd: 1), and not trained on",
    "ignored": "say ignore, and are not trained on",
    "without_area": "have no area inside their image, and are not trained on: is every bbox "
    "[x, y, width, height] in pixels?",
}
"""What is said of annotations that are not trained on, by the name of their count."""

_NOT_FOR_MASKS = {
    "without_mask": "have no mask: heads that predict masks need one, heads of boxes alone do not",
}
"""The same of objects, which some heads are trained on."""


def _numbers(splits: Mapping[str, Split | SplitScan], classes: int) -> str:
    images = " and ".join(f"{each.images} {split}" for split, each in splits.items())
    size = sum(each.total_bytes for each in splits.values())
    return f"{images} images in {classes} classes, {size / 1e6:.1f} MB"
