"""Data sets to read, room for what trainings write, and MLflow where runs will be sent."""

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

from smt.cluster import states
from smt.cluster.doctor.check_result import CheckResult, CheckResults, error, ok, warning
from smt.config import macs
from smt.config.experiments import Experiment, Run
from smt.config.models import Model, TimmModel
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import first_line
from smt.runs.paths import Layout
from smt.tracking import client

_CHECKPOINTS = 3
"""That a run keeps: the last two, and the best."""
_STATE = 3
"""Values of a checkpoint a weight: itself, and two moments of AdamW."""
_VALUE_BYTES = 4

_RUN_FILES = 20
"""Files and folders; a run at scale smoke has 14 to 18."""

_COMFORT = 1.5
"""Room in which other things of a project have a place, too."""


def data(project: Project, layout: Layout, missing: Sequence[str]) -> CheckResults:
    """The data sets of the scale are there. `missing` has a phrase for each that is not."""
    for phrase in missing:
        yield error(
            "data",
            f"not found: {phrase}",
            "give the folder that holds them as SMT_DATA, or their places in params/data.yaml",
        )
    if missing:
        return
    keys = manifest.keys_in_use(project)
    uncounted = [key for key in keys if not manifest.manifest_path(layout, key).exists()]
    if uncounted:
        yield ok("data", f"to be made where missing, and counted: {', '.join(uncounted)}")
    else:
        yield ok("data", f"counted: {', '.join(keys)}")


def disk(project: Project, layout: Layout) -> CheckResults:
    """There is room for checkpoints and weights of every run that is to do, and for their files."""
    to_do = [run for run, each in states.read(project, layout).items() if not each.is_done]
    folder = _nearest(layout.results.resolve())
    if not os.access(folder, os.W_OK):
        yield error("disk", f"{folder} cannot be written", "give a folder that can: SMT_RESULTS")
        return
    runs = f"in {folder}, where {len(to_do)} runs take"
    needed = sum(run_bytes(project, run) for run in to_do)
    yield _room(
        shutil.disk_usage(folder).free,
        needed,
        "disk",
        f"{_gb(shutil.disk_usage(folder).free)} free {runs} about {_gb(needed)} "
        f"({_CHECKPOINTS} checkpoints and the weights of each)",
    )
    inodes = _free_inodes(folder)
    if inodes is not None:
        files = _RUN_FILES * len(to_do)
        text = f"{inodes} free {runs} {files} at least ({_RUN_FILES} files and folders each)"
        yield _room(inodes, files, "inodes", text)


def data_disk(layout: Layout) -> CheckResults:
    """What is free where data lie: data sets that are made, and packs, are written there."""
    folder = _nearest(layout.data.resolve())
    free, inodes = shutil.disk_usage(folder).free, _free_inodes(folder)
    files = "" if inodes is None else f", {inodes} inodes"
    text = f"{_gb(free)}{files} free in {folder}"
    if free and inodes != 0:
        yield ok("data disk", text)
    else:
        yield warning(
            "data disk", text, "make room, if data are to be made or packed, or set SMT_DATA"
        )


def _room(free: int, needed: int, subject: str, text: str) -> CheckResult:
    remedy = "make room, or give another folder: SMT_RESULTS"
    if free < needed:
        return error(subject, text, remedy)
    return warning(subject, text, remedy) if free < _COMFORT * needed else ok(subject, text)


def _free_inodes(folder: Path) -> int | None:
    """Return how many files and folders can be made; None where there is no limit (btrfs)."""
    status = os.statvfs(folder)
    return status.f_favail if status.f_files else None


def run_bytes(project: Project, run: Run) -> int:
    """Return about how many bytes a run's checkpoints and weights take, once it is done."""
    experiment = project.experiments[run.experiment]
    classes = project.datasets[project.dataset_of(run.experiment)].classes
    model = project.models[experiment.model]
    backbone = weights(model, classes) if isinstance(model, Model) else _counted(project, run)
    values = max(backbone, _published(project, experiment))
    return values * _VALUE_BYTES * (_CHECKPOINTS * _STATE + 1)


def _counted(project: Project, run: Run) -> int:
    """Return the parameters of a model of timm at the size that a run was counted at; 0 if never.

    A head's trunk counts as the classifier that it starts from.
    """
    name = next(iter(project.ancestors(run.experiment)), run.experiment)
    model = project.models[project.experiments[name].model]
    assert isinstance(model, TimmModel)
    size = project.timm_size(model, project.recipe_of(name))
    return size.params if size is not None else 0


def _published(project: Project, experiment: Experiment) -> int:
    """Return the published parameters of a head and its model; 0 where they say nothing of it."""
    if experiment.head is None or project.scale.notice is not None:
        return 0
    sizes = project.reported.systems.get(experiment.system, {})
    return round(1e6 * sizes["params_m"].value) if "params_m" in sizes else 0


def weights(model: Model, num_classes: int) -> int:
    """Return about how many weights a model has: those of convolutions and linear layers."""
    # At one pixel a layer does as many MACs as it has weights; only attention has none.
    layers: Iterable[macs.Macs] = (
        macs.stem(model, 1, 1),
        *(macs.patch_embedding(*model.widths[i : i + 2]) for i in range(3)),
        *(each for stage in range(4) for each in _blocks(model, stage)),
    )
    return sum(layer.convolution + layer.linear for layer in layers) + (
        model.widths[-1] * num_classes
    )


def _blocks(model: Model, stage: int) -> Iterable[macs.Macs]:
    channels = model.widths[stage]
    for mixer in model.block_mixers(stage):
        yield macs.sam(model, channels) if mixer == "sam" else macs.msa(channels, 1)
        yield macs.mlp(channels, int(channels * model.mlp_ratios[stage]))


def _nearest(path: Path) -> Path:
    """Return the folder, or the one above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


_TIMEOUT = 10.0
"""Seconds."""
_START_MLFLOW = (
    "start it, or set MLFLOW_TRACKING_URI to one that runs; trainings go on without it, and "
    "`smt sync` sends what they wrote"
)


def mlflow(uri: str) -> CheckResults:
    """MLflow at `uri` answers, or its database can be made."""
    if client.is_http(uri):
        yield _server(uri)
    elif uri.startswith("sqlite:///"):
        yield _file(Path(uri.removeprefix("sqlite:///")))
    else:
        yield _database(uri)


def _server(uri: str) -> CheckResult:
    address = client.web_url(uri)
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_TIMEOUT) as answer:
            answer.read()
    except urllib.error.HTTPError as problem:
        return error("mlflow", f"{address}/health: HTTP status {problem.code}", _START_MLFLOW)
    except (OSError, ValueError) as problem:
        cause = getattr(problem, "reason", problem)
        return error(
            "mlflow", f"{address} does not answer: {first_line(_exception(cause))}", _START_MLFLOW
        )
    return ok("mlflow", f"{address} answers")


def _exception(cause: object) -> Exception:
    return cause if isinstance(cause, Exception) else OSError(str(cause))


def _file(path: Path) -> CheckResult:
    folder = next(each for each in path.parents if each.is_dir())
    if not os.access(path if path.exists() else folder, os.W_OK):
        return error(
            "mlflow",
            f"{path}: no permission to write",
            "set MLFLOW_TRACKING_URI, or SMT_RESULTS to a folder that can be written",
        )
    return ok("mlflow", f"{path}" if path.exists() else f"{path} will be made")


def _database(uri: str) -> CheckResult:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(uri, connect_args={"connect_timeout": int(_TIMEOUT)}).connect().close()
    except (SQLAlchemyError, ImportError, OSError) as problem:
        said = client.redact_password(first_line(problem))
        return error(
            "mlflow", f"{client.redact_password(uri)} does not answer: {said}", _START_MLFLOW
        )
    return ok("mlflow", f"{client.redact_password(uri)} answers")
