"""What a data set holds: its files read, checked against params, and summed up in a digest.

A manifest is a JSON file, and beside it one list of files a split, with a line a file:
`split/class/file<TAB>bytes<TAB>SHA-256`, and where the layout has them, one for each file of
annotations as well. The digest is the SHA-256 of the lists one after the other, so
`cat NAME.train.txt NAME.val.txt | sha256sum` prints it: a fingerprint stands for every byte of the
data. Training takes its images from the lists: walking a million files on a network
disk takes minutes, and no run sees other files than its fingerprint says.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from pydantic import Field, ValidationError

from smt.config import fingerprint
from smt.config.datasets import Dataset
from smt.config.experiments import Run
from smt.config.project import Project
from smt.config.types import Strict
from smt.datasets import class_map, file_lists, scan
from smt.datasets.differences import Differences
from smt.datasets.file_lists import SplitDigest
from smt.datasets.hashing import DecodeCheck, FileHasher, HashCache, ProgressCallback
from smt.datasets.scan import SplitScan, is_packed
from smt.errors import DataError, UserError, suggest
from smt.runs import shared_folder
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing, write_json
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from smt.datasets.validate import DatasetSummary

T = TypeVar("T", "Manifest", "ClassMapManifest")

CLASS_MAP = "class_map:"
"""What stands before the name of a class map where data sets and class maps are named together."""

_THREADS = 16
"""Files that are looked at side by side, for a disk on the network answers late."""


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


def write(
    project: Project,
    layout: Layout,
    key: str,
    *,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> Manifest | ClassMapManifest:
    """Read a data set or class map, check it, and write its manifest and lists.

    `jobs` files are read at a time. A reading that was killed resumes.

    Raises:
        DataError: what is missing, incomplete or wrong; then nothing is written.
        UserError: the results folder cannot be written, or another process reads the data set.
    """
    require_key(project, key)
    path = manifest_path(layout, key)
    with explained(path, RESULTS_REMEDY):
        if key.startswith(CLASS_MAP):
            rows = read_class_map(project, layout, key)
            write_json(path, rows.model_dump(mode="json"))
            return rows
        with (
            HashCache(layout.hash_cache(key)) as cache,
            Differences(layout.differences(key)) as differences,
        ):
            callback = progress or ProgressCallback()
            root = layout.dataset_root(project.datasets[key])
            decode_check = validation_decode_check(project.datasets[key], root)
            hasher = FileHasher(
                root, cache, jobs=jobs, decode_check=decode_check, progress=callback
            )
            recorded = create(project, layout, key, hasher, differences, callback)
            cache.finish()
        return recorded


def validation_decode_check(dataset: Dataset, root: Path) -> DecodeCheck:
    """Return what decodes the images that evaluations need: one missing is found before training.

    Those of training may be many times as many; `smt data verify --decode` is for them.
    """
    if is_packed(dataset, root):
        # Modules of packs import this one, for the record of a pack holds a manifest.
        from smt.datasets.packs import verify

        return verify.decode_check(root, every_split=False)
    folder = root / scan.image_folder(dataset.layout, "val")

    def decode_check(path: Path, content: BinaryIO) -> None:
        if folder in path.parents:
            # Snakemake reads this module at every start, and needs no image library for it.
            from smt.datasets.decoding import require_decodable

            require_decodable(content)

    return decode_check


def create(
    project: Project,
    layout: Layout,
    key: str,
    hasher: FileHasher,
    differences: Differences,
    progress: ProgressCallback,
) -> Manifest:
    """Read a data set by `hasher`, write its manifest and lists, and return the manifest.

    Training images that `hasher` cannot decode are added to `differences`: whether training takes
    others in their place is for its recipe to say.

    Raises:
        DataError: the data set is not as params say, or files cannot be read, or validation images
            not be decoded: they are in `differences`.
    """
    dataset, path = project.datasets[key], manifest_path(layout, key)
    if is_packed(dataset, hasher.root):
        from smt.datasets.packs import verify

        return verify.create(key, dataset, path, hasher, differences, progress)
    make = make_command(project, key)
    scans = scan.scan(key, dataset, hasher.root, make)
    summary = _validate(key, dataset, hasher.root, scans, make)
    progress.expect(sum(sum(split_scan.files) for split_scan in scans.values()))
    listed_in = {split: f"{path.stem}.{split}.txt" for split in scans}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(replacing(path.with_name(name), single_writer=True))
            for split, name in listed_in.items()
        }
        try:
            digest, sums = file_lists.build(
                hasher, scans, lambda split, text: files[split].write(text), differences
            )
        except (file_lists.DatasetChanged, scan.InvalidDataset) as error:
            raise DataError(f"{key}: {error}; run this again") from None
        _require_readable(key, hasher.root, differences, scan.remedy_for(key, dataset, make))
    recorded = Manifest(
        dataset=key,
        layout=dataset.layout,
        content="bytes",
        digest=digest,
        classes=summary.classes,
        splits=_splits(scans, summary, sums, listed_in),
        folder=path.parent,
    )
    # What a layout has nothing to say about is left out.
    write_json(path, recorded.model_dump(mode="json", exclude_defaults=True))
    return recorded


def _validate(
    key: str, dataset: Dataset, root: Path, scans: dict[str, SplitScan], make: str | None
) -> "DatasetSummary":
    # Snakemake reads this module at every start, and needs no image library for it.
    from smt.datasets.validate import validate

    try:
        return validate(dataset, root, scans)
    except scan.InvalidDataset as error:
        raise DataError(f"{key}: {error}; {scan.remedy_for(key, dataset, make)}") from None


def _require_readable(key: str, root: Path, differences: Differences, remedy: str) -> None:
    if count := differences.counts["unreadable"]:
        first = next(
            difference for difference in differences.first if difference.kind == "unreadable"
        )
        raise DataError(
            f"{key}: {root / first.path} {first.what} ({count} such "
            f"file{'s' if count > 1 else ''}, all in {differences.path}); {remedy}"
        )


def _splits(
    scans: dict[str, SplitScan],
    summary: "DatasetSummary",
    sums: dict[str, SplitDigest],
    listed_in: dict[str, str],
) -> dict[str, Split]:
    return {
        split: Split(
            images=scans[split].images,
            total_bytes=digest.total_bytes,
            per_class=summary.splits[split].per_class,
            facts=summary.splits[split].facts,
            listed_in=listed_in[split],
            sha256=digest.sha256,
        )
        for split, digest in sums.items()
    }


def read_class_map(project: Project, layout: Layout, key: str) -> ClassMapManifest:
    """Return the manifest of a class map as it is now, without writing it.

    Raises:
        DataError: the class map is missing or wrong.
    """
    entry = project.class_maps[key.removeprefix(CLASS_MAP)]
    rows = class_map.read(
        layout.data_file(entry.path),
        source_classes=project.datasets[entry.source].classes,
        target_classes=project.datasets[entry.target].classes,
        remedy=make_command(project, key),
    )
    return ClassMapManifest(
        source=entry.source, target=entry.target, digest=class_map.digest(rows), rows=rows
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


def require_validation(project: Project, layout: Layout, key: str) -> None:
    """Refuse validation files that are not of the sizes that they had, before a run needs them.

    Training images may be many times as many: `smt data check` and `smt data verify` are for them.
    Of a pack all shards are looked at.

    Raises:
        DataError: naming the first such file and what to do.
    """
    recorded, root = read(layout, key), layout.dataset_root(project.datasets[key])
    if is_packed(project.datasets[key], root):
        from smt.datasets.packs import record

        record.require_whole(record.read_of(recorded, root))
        return
    if "val" not in recorded.splits:
        return
    sha256 = recorded.splits["val"].sha256
    with ThreadPoolExecutor(_THREADS) as pool:
        listed = list(file_lists.read_checked(recorded.list_file("val"), sha256, key))
        sizes = pool.map(_size, (root / line.path for line in listed))
        differing = [
            (line, size) for line, size in zip(listed, sizes, strict=True) if size != line.size
        ]
    if not differing:
        return
    line, size = differing[0]
    state = "is missing" if size is None else f"has {size} bytes"
    raise DataError(
        f"{root / line.path} {state}, {line.size} when its manifest was made "
        f"({len(differing)} such); "
        f"bring back what was there, or run {_manifest_command(layout, key)} for the data as they "
        "are, which makes of each run on them another one"
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _require_current(manifest: Manifest, dataset: Dataset, layout: Layout) -> None:
    splits = {name: split.images for name, split in manifest.splits.items()}
    expected = scan.expected_images(dataset)
    if (len(manifest.classes), splits) != (dataset.classes, expected):
        raise DataError(
            f"{manifest_path(layout, manifest.dataset)} is of {len(manifest.classes)} classes and "
            f"{splits} images, params say {dataset.classes} and {expected}; "
            f"run: {_manifest_command(layout, manifest.dataset)}"
        )


def _manifest_command(layout: Layout, key: str) -> str:
    return f"smt data manifest {key} --scale {layout.scale}"


def _load(layout: Layout, key: str, kind: type[T]) -> T:
    path = manifest_path(layout, key)
    remedy = f"run: {_manifest_command(layout, key)}"
    try:
        content = json.loads(shared_folder.read_bytes(path))
        extra = {"folder": path.parent} if kind is Manifest else {}
        return kind.model_validate({**content, **extra})
    except FileNotFoundError:
        raise DataError(f"{key} has no manifest {path}; {remedy}") from None
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a manifest ({reason}); {remedy}") from None
