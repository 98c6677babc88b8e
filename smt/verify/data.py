"""Manifests of data sets and class maps: digests and counts from their lists of images."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from smt.datasets import class_map, manifest, scan
from smt.datasets.manifest import ClassMapManifest, Manifest
from smt.errors import DataError
from smt.runs import shared_folder
from smt.runs.paths import Layout
from smt.verify.ledger import Ledger

DATA = "data"


def check(layout: Layout, keys: Iterable[str], ledger: Ledger) -> None:
    """Compare each manifest with its lists. Images are not read: `smt data check` does that."""
    for key in keys:
        path = manifest.manifest_path(layout, key)
        if not shared_folder.exists(path):
            ledger.add_note(DATA, f"{key} has no manifest yet")
            continue
        try:
            data_manifest = manifest.read_any(layout, key)
        except DataError as error:
            ledger.add_mismatch(DATA, path, str(error))
            continue
        ledger.add_item(DATA, path)
        if isinstance(data_manifest, ClassMapManifest):
            digest = class_map.digest(data_manifest.rows)
            ledger.compare(DATA, f"{path}: digest", data_manifest.digest, digest, "its rows")
        else:
            _lists(layout, key, data_manifest, ledger)


def _lists(layout: Layout, key: str, data_manifest: Manifest, ledger: Ledger) -> None:
    path, whole = manifest.manifest_path(layout, key), hashlib.sha256()
    for name, split in data_manifest.splits.items():
        list_file = data_manifest.list_file(name)
        try:
            content = list_file.read_bytes()
        except OSError as error:
            ledger.add_mismatch(
                DATA, list_file, f"cannot be read ({error.strerror}), but {path} is of it"
            )
            return
        whole.update(content)
        digest = hashlib.sha256(content).hexdigest()
        if not ledger.compare(DATA, f"{list_file}: SHA-256", digest, split.sha256, path):
            continue
        lines = [line.split("\t") for line in content.decode().splitlines()]
        images = f"{scan.image_folder(data_manifest.layout, name)}/"
        expected: dict[str, Any] = {
            "images": sum(line[0].startswith(images) for line in lines),
            "total_bytes": sum(int(line[1]) for line in lines),
        }
        if data_manifest.layout == "imagenet":
            # What the images of other data sets show stands in their annotations.
            classes = Counter(line[0].split("/")[1] for line in lines)
            expected["per_class"] = [classes[label] for label in data_manifest.classes]
        recorded = split.model_dump(mode="json", include=set(expected))
        for part, value in expected.items():
            ledger.compare(DATA, f"{path}: splits.{name}.{part}", recorded[part], value, list_file)
    ledger.compare(
        DATA, f"{path}: digest", data_manifest.digest, whole.hexdigest(), "its lists of images"
    )
