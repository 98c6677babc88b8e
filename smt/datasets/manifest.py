"""What a data set holds: its files read, checked against params, and summed up in a digest.

A manifest is a JSON file, and beside it one list of files a split, with a line a file:
`split/class/file<TAB>bytes<TAB>SHA-256`, and where the layout has them, one for each file of
annotations as well. The digest is the SHA-256 of the lists one after the other, so
`cat NAME.train.txt NAME.val.txt | sha256sum` prints it: a fingerprint stands for every byte of the
data. Training takes its images from the lists: walking a million files on a network
disk takes minutes, and no run sees other files than its fingerprint says.
"""

import json
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from smt.config import fingerprint
from smt.config.datasets import Dataset
from smt.config.experiments import Run
from smt.config.project import Project
from smt.config.types import Strict
from smt.datasets import scan
from smt.errors import DataError, UserError, suggest
from smt.runs import shared_folder
from smt.runs.paths import Layout

T = TypeVar("T", "Manifest", "ClassMapManifest")

CLASS_MAP = "class_map:"
"""What stands before the name of a class map where data sets and class maps are named together."""


class Split(Strict):
    """The images of `train` or `val`."""

    images: int
    total_bytes: int
    """Of images and annotations."""
    per_class: tuple[int, ...]
    """Images of each class, or that show it, in the order of the classes."""
    listed_in: str
    """Name of the file beside the manifest that lists them."""
    sha256: str
    """Of that file."""
    facts: dict[str, int] = {}
    """What else was counted; see `smt.datasets.validate`."""


class Manifest(Strict):
    """What was found in a data set."""

    dataset: str
    content: Literal["bytes"]
    """What the digest covers."""
    digest: str
    classes: tuple[str, ...]
    """Class i is the i-th: names of the class folders, sorted; of COCO's categories by their ids;
    of ADE20K's classes by their labels."""
    splits: dict[str, Split]
    folder: Path = Field(exclude=True)
    """Where the lists lie; not part of the file."""
    layout: scan.DatasetLayout = "imagenet"

    def list_file(self, split: str) -> Path:
        """Return the path of the list of a split's images."""
        return self.folder / self.splits[split].listed_in


class ClassMapManifest(Strict):
    """The rows of a class map."""

    kind: Literal["class map"] = "class map"
    source: str
    target: str
    digest: str
    rows: tuple[int, ...]
    """For each class of the target, the class of the source."""


def manifest_path(layout: Layout, key: str) -> Path:
    """Return the manifest's path; `key` is a data set's name or `class_map:NAME`."""
    return layout.manifest(key.replace(CLASS_MAP, "class_map_"))


def keys(project: Project) -> tuple[str, ...]:
    """Return the key of every data set and class map of the scale."""
    return (*project.datasets, *(f"{CLASS_MAP}{name}" for name in project.class_maps))


def keys_in_use(project: Project) -> tuple[str, ...]:
    """Return the keys of all that an experiment of the scale reads."""
    read = {key for run in project.runs for key in fingerprint.inputs(project, run)}
    return tuple(key for key in keys(project) if key in read)


def require_key(project: Project, key: str) -> None:
    """Raise a UserError with the nearest valid keys where the scale has no `key`."""
    if key not in keys(project):
        raise UserError(
            f"no data set or class map {key!r} in params/data.yaml; {suggest(key, keys(project))}"
        )


def make_command(project: Project, key: str) -> str | None:
    """Return the command that makes what `key` names, or None where the user brings it."""
    if key.startswith(CLASS_MAP):
        entry = project.class_maps[key.removeprefix(CLASS_MAP)]
        generators = [project.datasets[name].generator for name in (entry.source, entry.target)]
        is_generated = generators == ["digit_pairs", "digits"]
    else:
        is_generated = project.datasets[key].generator is not None
    return f"smt data make {key} --scale {project.scale_name}" if is_generated else None


def read(layout: Layout, dataset: str) -> Manifest:
    """Return the manifest of a data set as it was written.

    Raises:
        DataError: there is none, or it is not a manifest; the message says which command makes it.
    """
    return _load(layout, dataset, Manifest)


def rows(layout: Layout, name: str) -> tuple[int, ...]:
    """Return the rows of a class map as its manifest has them: a source class a target class.

    Raises:
        DataError: there is no manifest of it; the message says which command makes it.
    """
    return _load(layout, f"{CLASS_MAP}{name}", ClassMapManifest).rows


def read_current(project: Project, layout: Layout, dataset: str) -> Manifest:
    """Return the manifest of a data set, once it is of as many classes and images as params say.

    Raises:
        DataError: it is not, or see `read`.
    """
    manifest = read(layout, dataset)
    _require_current(manifest, project.datasets[dataset], layout)
    return manifest


def read_any(layout: Layout, key: str) -> Manifest | ClassMapManifest:
    """Return the manifest of a data set or class map; for errors see `read`."""
    return _load(layout, key, ClassMapManifest) if key.startswith(CLASS_MAP) else read(layout, key)


def digests(project: Project, layout: Layout, run: Run) -> dict[str, str]:
    """Return the digest of everything that the fingerprint of `run` needs, by key.

    Raises:
        DataError: a manifest is missing, or was made when params said something else.
    """
    values: dict[str, str] = {}
    for key in fingerprint.inputs(project, run):
        if key.startswith(CLASS_MAP):
            values[key] = _load(layout, key, ClassMapManifest).digest
        else:
            values[key] = read_current(project, layout, key).digest
    return values


def _require_current(manifest: Manifest, dataset: Dataset, layout: Layout) -> None:
    splits = {name: split.images for name, split in manifest.splits.items()}
    expected = scan.expected_images(dataset)
    if (len(manifest.classes), splits) != (dataset.classes, expected):
        raise DataError(
            f"{manifest_path(layout, manifest.dataset)} is of {len(manifest.classes)} classes and "
            f"{splits} images, params say {dataset.classes} and {expected}; "
            f"run: {manifest_command(layout, manifest.dataset)}"
        )


def manifest_command(layout: Layout, key: str) -> str:
    """Return the command that makes the manifest of a data set or class map."""
    return f"smt data manifest {key} --scale {layout.scale}"


def _load(layout: Layout, key: str, kind: type[T]) -> T:
    path = manifest_path(layout, key)
    remedy = f"run: {manifest_command(layout, key)}"
    try:
        content = json.loads(shared_folder.read_bytes(path))
        extra = {"folder": path.parent} if kind is Manifest else {}
        return kind.model_validate({**content, **extra})
    except FileNotFoundError:
        raise DataError(f"{key} has no manifest {path}; {remedy}") from None
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a manifest ({reason}); {remedy}") from None
