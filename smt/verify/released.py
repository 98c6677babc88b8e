"""Evaluations of released weights: their numbers again from the predictions of every image."""

import csv
import math
from functools import partial
from pathlib import Path

from smt.config.project import Project
from smt.runs import released, shared_folder
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from smt.runs.released import ReleasedEvaluation
from smt.verify.ledger import Ledger

RELEASED = "released weights"

_DECIMALS = 6


def check(project: Project, layout: Layout, ledger: Ledger) -> None:
    """Compare each evaluation of released weights with the predictions beside it."""
    for experiment in project.evaluated_classifiers:
        path = layout.released(experiment)
        found = ledger.load(RELEASED, partial(released.read, layout, experiment))
        if found is not None:
            ledger.add_item(RELEASED, path)
            _check(path, found, ledger)


def _check(path: Path, found: ReleasedEvaluation, ledger: Ledger) -> None:
    predictions = path.with_name(found.predictions)
    if not shared_folder.exists(predictions):
        ledger.add_note(RELEASED, f"{predictions} is not here: {path} cannot be derived again")
        return
    digest = sha256(predictions)
    if not ledger.compare(
        RELEASED, f"{path}: predictions_sha256", found.predictions_sha256, digest, predictions
    ):
        return
    with predictions.open(newline="") as lines:
        rows = [
            (row["label"], row["best"].split(), float(row["loss"])) for row in csv.DictReader(lines)
        ]
    derived = {
        "top1": 100 * sum(label in best[:1] for label, best, _ in rows) / len(rows),
        "top5": 100 * sum(label in best[:5] for label, best, _ in rows) / len(rows),
    }
    ledger.compare(RELEASED, f"{path}: images", found.images, len(rows), predictions)
    for name, value in derived.items():
        ledger.compare(RELEASED, f"{path}: {name}", found.metrics.get(name), value, predictions)
    loss = sum(loss for *_, loss in rows) / len(rows)
    # Rounded: the record adds in another order.
    recorded = round(found.metrics.get("loss", math.nan), _DECIMALS)
    ledger.compare(RELEASED, f"{path}: loss", recorded, round(loss, _DECIMALS), predictions)
