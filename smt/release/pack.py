"""Writes the folder of a release: the same runs give the same bytes."""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from smt.config.load import load_project
from smt.config.models import Model
from smt.errors import UserError
from smt.release import card
from smt.release.card import Licence
from smt.release.selection import ModelRelease
from smt.report.sizes import PAPER
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing, sha256
from smt.runs.paths import Layout, bundled_params
from smt.verify import tensors

CHECKSUMS = "SHA256SUMS"
COLUMNS = (
    "model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct",
    "interpolation",
)  # fmt: skip
"""Columns of timm's results/results-imagenet.csv."""

INTERPOLATION = "bicubic"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels: the normalization in training and evaluation."""


def pack(releases: Sequence[ModelRelease], layout: Layout, licence: Licence) -> list[Path]:
    """Write the release in place of an earlier one, and return its files.

    Raises:
        UserError: the folder has files that no release wrote, or it cannot be written.
    """
    folder = layout.release
    _require_no_other_files(folder)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with explained(folder, RESULTS_REMEDY):
        try:
            for release in releases:
                _write_model(release, layout, new / release.name, licence)
            for dataset in dict.fromkeys(release.recipe.dataset for release in releases):
                rows = [
                    _row(release, layout)
                    for release in releases
                    if release.recipe.dataset == dataset and "top1" in release.final.metrics
                ]
                if rows:
                    _write(new / f"results-{dataset}.csv", _csv(rows))
            _write(new / CHECKSUMS, _checksums(new))
            if folder.exists():
                shutil.rmtree(folder)
            new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return _files(folder)


def _require_no_other_files(folder: Path) -> None:
    """Raise an error if the folder has files that no release wrote: it is to be replaced."""
    checksums = folder / CHECKSUMS
    lines = checksums.read_text().splitlines() if checksums.exists() else []
    names = {line.partition("  ")[2] for line in lines} | {CHECKSUMS}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if name not in names:
            raise UserError(
                f"{path}: smt release did not write it, and would replace its folder; move it away"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _write_model(release: ModelRelease, layout: Layout, folder: Path, licence: Licence) -> None:
    """Write weights, config and card of a model."""
    temporary = folder / "weights"
    with replacing(temporary) as file:
        tensors.copy(layout.weights(release.run), _metadata(release, licence), file)
    name = f"{release.name}-{sha256(temporary)[:8]}.safetensors"
    temporary.replace(folder / name)
    is_registered = is_registered_in_timm(release)
    _write(folder / "config.json", json.dumps(_config(release, is_registered), indent=2) + "\n")
    _write(folder / "README.md", card.text(release, name, licence, is_registered))


def is_registered_in_timm(release: ModelRelease) -> bool:
    """Return whether timm builds this model from its name: `zoo` registers the paper's models."""
    model = _paper_models().get(release.architecture)
    return model is not None and _spec(model) == _spec(release.model)


@cache
def _paper_models() -> dict[str, Model]:
    return load_project(bundled_params(), PAPER).smt_models


def _spec(model: Model) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude={"title"})


def _metadata(release: ModelRelease, licence: Licence) -> dict[str, str]:
    metadata = {
        "model": {"title": release.model.title, **_spec(release.model)},
        "architecture": release.architecture,
        "num_classes": release.dataset.classes,
        "experiment": release.run.experiment,
        "seed": release.run.seed,
        "scale": release.project.scale_name,
        "notice": release.project.scale.notice,
        "fingerprint": release.final.fingerprint,
        "exported_sha256": release.final.weights_sha256,
        "commit": release.provenance.git.commit,
        "metrics": release.final.metrics,
        **licence.fields,
    }
    return {"format": "pt", "smt": json.dumps(metadata, sort_keys=True)}


def _config(release: ModelRelease, is_registered: bool) -> dict[str, Any]:
    """Return the config.json that timm reads: architecture and preprocessing of images."""
    side = release.recipe.resolution
    config: dict[str, Any] = {
        "architecture": release.architecture,
        "num_classes": release.dataset.classes,
        "num_features": release.model.widths[-1],
        "pretrained_cfg": {
            "tag": release.run.experiment,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "crop_pct": release.recipe.evaluation.crop_ratio,
            "crop_mode": "squash" if release.recipe.evaluation.resize == "squash" else "center",
            "interpolation": INTERPOLATION,
            "mean": list(MEAN),
            "std": list(STD),
            "first_conv": "stages.0.embed.conv",
            "classifier": "head",
        },
    }
    if not is_registered:
        config["model_args"] = {"model": {"title": release.model.title, **_spec(release.model)}}
    return config


def _csv(rows: Sequence[dict[str, str]]) -> str:
    """Return results in the format of timm's, the best top-1 first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (-float(row["top1"]), row["model"])))
    return text.getvalue()


def _row(release: ModelRelease, layout: Layout) -> dict[str, str]:
    top1, top5 = (release.final.metrics[name] for name in ("top1", "top5"))
    count = tensors.parameters(tensors.read(layout.weights(release.run)))
    return {
        "model": release.name,
        "img_size": str(release.recipe.resolution),
        "top1": f"{top1:.3f}",
        "top1_err": f"{100 - top1:.3f}",
        "top5": f"{top5:.3f}",
        "top5_err": f"{100 - top5:.3f}",
        "param_count": f"{count / 1e6:,.2f}",
        "crop_pct": f"{release.recipe.evaluation.crop_ratio:.3f}",
        "interpolation": INTERPOLATION,
    }


def _checksums(folder: Path) -> str:
    """Return the digests of all files, in the format that `sha256sum -c` reads."""
    return "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in _files(folder))
