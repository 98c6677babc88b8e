"""The folder of a release: the same runs give the same bytes."""

import csv
import hashlib
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
from smt.release.choose import Item
from smt.report.sizes import PAPER
from smt.runs.atomic import explained, replacing, sha256
from smt.runs.paths import Layout, bundled_params
from smt.verify import tensors

SUMS = "SHA256SUMS"
COLUMNS = (
    "model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct",
    "interpolation",
)  # fmt: skip
"""Of timm's results/results-imagenet.csv."""

INTERPOLATION = "bicubic"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, with which every model here is trained and evaluated."""

REMEDY = "give a results folder that can be written: smt --results DIR, or SMT_RESULTS"


def pack(items: Sequence[Item], layout: Layout, licence: Licence) -> list[Path]:
    """Write the release anew in place of what an earlier call left, and return its files.

    Raises:
        UserError: the folder holds files that are not of a release, or cannot be written.
    """
    folder = layout.release
    _require_own(folder)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with explained(folder, REMEDY):
        try:
            for item in items:
                _model(item, layout, new / item.name, licence)
            for dataset in dict.fromkeys(item.recipe.dataset for item in items):
                own = [item for item in items if item.recipe.dataset == dataset]
                measured = [item for item in own if "top1" in item.final.metrics]
                if measured:
                    _write(new / f"results-{dataset}.csv", _csv(measured, layout))
            _write(new / SUMS, _sums(new))
            if folder.exists():
                shutil.rmtree(folder)
            new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return _files(folder)


def _require_own(folder: Path) -> None:
    """Refuse to replace a folder with files that no release wrote."""
    if not folder.exists():
        return
    sums = folder / SUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    listed = {line.partition("  ")[2] for line in lines} | {SUMS}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if name not in listed:
            raise UserError(
                f"{path}: smt release did not write it, and would replace its folder; move it away"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def _model(item: Item, layout: Layout, folder: Path, licence: Licence) -> None:
    """Write weights, config and card of one model."""
    source, draft = layout.weights(item.run), folder / "weights"
    with replacing(draft) as file:
        tensors.copy(source, _metadata(item, licence), file)
    name = f"{item.name}-{sha256(draft)[:8]}.safetensors"
    draft.replace(folder / name)
    known = is_known_to_timm(item)
    _write(folder / "config.json", json.dumps(_config(item, known), indent=2) + "\n")
    _write(folder / "README.md", card.text(item, name, licence, known))


def is_known_to_timm(item: Item) -> bool:
    """Return whether timm's model of this name has this spec: those of the paper's scale have."""
    registered = _registered().get(item.architecture)
    return registered is not None and _spec(registered) == _spec(item.model)


@cache
def _registered() -> dict[str, Model]:
    return load_project(bundled_params(), PAPER).models


def _spec(model: Model) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude={"title"})


def _metadata(item: Item, licence: Licence) -> dict[str, str]:
    said = {
        "model": {"title": item.model.title, **_spec(item.model)},
        "architecture": item.architecture,
        "num_classes": item.dataset.classes,
        "experiment": item.run.experiment,
        "seed": item.run.seed,
        "scale": item.project.scale_name,
        "notice": item.project.scale.notice,
        "fingerprint": item.final.fingerprint,
        "exported_sha256": item.final.weights_sha256,
        "commit": item.provenance.git.commit,
        "metrics": item.final.metrics,
        **licence.fields,
    }
    return {"format": "pt", "smt": json.dumps(said, sort_keys=True)}


def _config(item: Item, known_to_timm: bool) -> dict[str, Any]:
    """Return what timm reads beside the weights: architecture and how images are prepared."""
    side = item.recipe.resolution
    config: dict[str, Any] = {
        "architecture": item.architecture,
        "num_classes": item.dataset.classes,
        "num_features": item.model.widths[-1],
        "pretrained_cfg": {
            "tag": item.run.experiment,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "crop_pct": item.recipe.evaluation.crop_ratio,
            "crop_mode": "squash" if item.recipe.evaluation.resize == "squash" else "center",
            "interpolation": INTERPOLATION,
            "mean": list(MEAN),
            "std": list(STD),
            "first_conv": "stages.0.embed.conv",
            "classifier": "head",
        },
    }
    if not known_to_timm:
        config["model_args"] = {"model": {"title": item.model.title, **_spec(item.model)}}
    return config


def _csv(items: Sequence[Item], layout: Layout) -> str:
    """Return results as timm lists them, the best first."""
    rows = [_row(item, layout) for item in items]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (-float(row["top1"]), row["model"])))
    return text.getvalue()


def _row(item: Item, layout: Layout) -> dict[str, str]:
    top1, top5 = (item.final.metrics[name] for name in ("top1", "top5"))
    count = tensors.parameters(tensors.read(layout.weights(item.run)))
    return {
        "model": item.name,
        "img_size": str(item.recipe.resolution),
        "top1": f"{top1:.3f}",
        "top1_err": f"{100 - top1:.3f}",
        "top5": f"{top5:.3f}",
        "top5_err": f"{100 - top5:.3f}",
        "param_count": f"{count / 1e6:,.2f}",
        "crop_pct": f"{item.recipe.evaluation.crop_ratio:.3f}",
        "interpolation": INTERPOLATION,
    }


def _sums(folder: Path) -> str:
    """Return digests in the form that `sha256sum -c` reads."""
    lines = []
    for path in _files(folder):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines)
