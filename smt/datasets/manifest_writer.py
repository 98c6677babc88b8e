"""Makes manifests: reads a data set or class map, checks it, and writes what it holds."""

from contextlib import ExitStack
from pathlib import Path

from smt.config.datasets import Dataset
from smt.config.project import Project
from smt.datasets import class_map, file_lists, scan, validation_files
from smt.datasets.differences import Differences
from smt.datasets.file_lists import SplitDigest
from smt.datasets.hashing import FileHasher, HashCache, ProgressCallback
from smt.datasets.manifest import (
    CLASS_MAP,
    ClassMapManifest,
    Manifest,
    Split,
    make_command,
    manifest_path,
    require_key,
)
from smt.datasets.packs import verify as packs
from smt.datasets.scan import SplitScan, is_packed
from smt.datasets.validate import DatasetSummary, validate
from smt.errors import DataError
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing, write_json
from smt.runs.paths import Layout


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
            decode_check = validation_files.decode_check(project.datasets[key], root)
            hasher = FileHasher(
                root, cache, jobs=jobs, decode_check=decode_check, progress=callback
            )
            recorded = create(project, layout, key, hasher, differences, callback)
            cache.finish()
        return recorded


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
        return packs.create(key, dataset, path, hasher, differences, progress)
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
) -> DatasetSummary:
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
    summary: DatasetSummary,
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
