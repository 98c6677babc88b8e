"""The `record` folder of a finished run: the copy of its work folder that DVC tracks."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from smt.config.experiments import Run
from smt.runs import journal, provenance, shared_folder
from smt.runs.atomic import replacing
from smt.runs.paths import Layout
from smt.runs.record import PROVENANCE, RunMetrics
from smt.versioning import stages

ARCHIVED_FILES = (journal.JOURNAL, journal.TIMES, PROVENANCE, provenance.LOG)
"""Files of a work folder that DVC tracks, beside `git-*.diff`. Checkpoints are left out."""

CURVE_METRICS = {
    "classify": ("loss", "top1", "top5"),
    "detect": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
    "segment": ("miou", "mean_accuracy", "pixel_accuracy"),
}
"""Metrics of the evaluation after each epoch that `curves.csv` has as columns, by task."""


def archive_run(layout: Layout, run: Run, metrics: RunMetrics) -> None:
    """Update the `record` folder of a finished run from its work folder.

    If there is no work folder, as after `dvc pull`, it is restored from the `record` folder.
    """
    work_dir, archive = layout.work_dir(run, metrics.fingerprint), layout.record(run)
    if not shared_folder.exists(work_dir):
        _copy(archive, work_dir, _archived_names(archive))
        return
    names = _archived_names(work_dir)
    _copy(work_dir, archive, names)
    for path in archive.iterdir():
        if path.name not in {*names, stages.CURVES}:
            path.unlink()
    _replace(archive / stages.CURVES, _curves(work_dir, metrics.task).encode())


def _archived_names(folder: Path) -> list[str]:
    paths = sorted(folder.iterdir())
    return [path.name for path in paths if path.name in ARCHIVED_FILES or path.suffix == ".diff"]


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        _replace(target / name, (source / name).read_bytes())


def _replace(path: Path, content: bytes) -> None:
    # Not written in place: the file may be a hard link into DVC's cache.
    if not path.exists() or path.read_bytes() != content:
        with replacing(path) as file:
            file.write(content)


def _curves(work_dir: Path, task: str) -> str:
    """Return the CSV of a run's curves, one row per epoch: loss, and metrics in percent."""
    names = CURVE_METRICS[task]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "step", "train_loss", *names))
    epoch, loss = 0, ""
    for line in journal.read(work_dir, 0):
        loss = str(line.metrics.get("train/loss", loss))
        if line.epoch > epoch:
            epoch = line.epoch
            values = (line.metrics.get(f"eval/{name}", "") for name in names)
            writer.writerow((epoch, line.step, loss, *values))
    return text.getvalue()
