"""Measured sizes: multiply-accumulates by formula, parameters from the weights that were trained.

With a function that counts them anew, which takes torch, every figure is compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

from smt.config import macs
from smt.config.project import Project, System
from smt.runs.atomic import read_json
from smt.runs.paths import Layout
from smt.verify import tensors
from smt.verify.ledger import NOTHING, Ledger

SIZES = "sizes"

Measure = Callable[[Project], Mapping[str, Any]]


def check(project: Project, layout: Layout, ledger: Ledger, measure: Measure | None = None) -> None:
    """Compare the sizes of one scale."""
    path = layout.sizes
    said = _read(layout, ledger)
    if said is None:
        return
    ledger.look(SIZES, path)
    if measure is not None:
        ledger.expect_all(SIZES, path, said, measure(project), "counting them again")
        return
    for name, entry in said.items():
        if name in project.systems and isinstance(entry, dict):
            _system_parameters(project, layout, project.systems[name], entry, ledger)
        elif name not in project.models:
            ledger.find(SIZES, f"{path}: {name}", "no such model in params/models.yaml")
        elif isinstance(entry, dict):
            _macs(project, layout, name, entry, ledger)
            _parameters(project, layout, name, entry, ledger)


def _read(layout: Layout, ledger: Ledger) -> dict[str, Any] | None:
    path, remedy = layout.sizes, f"remove it and run: smt profile --scale {layout.scale}"
    try:
        said = read_json(path)
    except (OSError, ValueError) as error:
        ledger.find(SIZES, path, f"cannot be read ({error}); {remedy}")
        return None
    if said is None:
        ledger.note(SIZES, f"not measured at scale {layout.scale} yet")
        return None
    if not isinstance(said, dict):
        ledger.find(SIZES, path, f"holds no mapping of models to sizes; {remedy}")
        return None
    return said


def _macs(
    project: Project, layout: Layout, name: str, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    classes = _classes(project, name)
    for resolution, counts in entry.get("macs", {}).items():
        count = macs.forward(project.models[name], int(resolution), num_classes=classes)
        follows = {
            "conv_linear": count.convolution + count.linear,
            "attention": count.total,
        }
        for convention, value in follows.items():
            where = f"{layout.sizes}: {name}.macs.{resolution}.{convention}"
            ledger.expect(SIZES, where, counts.get(convention, NOTHING), value, "the formula")


def _parameters(
    project: Project, layout: Layout, name: str, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    """Compare with the weights of a run of this model, on as many classes; buffers do not count."""
    for run in project.runs:
        experiment = project.experiments[run.experiment]
        path = layout.weights(run)
        if experiment.model != name or experiment.head is not None or not path.exists():
            continue
        if project.datasets[project.dataset_of(run.experiment)].classes != _classes(project, name):
            continue
        try:
            count = parameters(tensors.read(path))
        except (OSError, ValueError):
            continue  # a finding of its own
        ledger.expect(SIZES, f"{layout.sizes}: {name}.params", entry.get("params"), count, path)
        return


def _system_parameters(
    project: Project, layout: Layout, system: System, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    """Compare with the weights of a run of this head on this model, and with the sum of its parts.

    Its MACs are not worked out by formula: `smt verify --evaluate` counts them again.
    """
    where, said = f"{layout.sizes}: {system.name}", entry.get("params")
    parts = sum(part["params"] for part in entry.get("parts", {}).values())
    ledger.expect(SIZES, f"{where}.params", said, parts, "the sum of its parts")
    for run in project.runs:
        experiment, path = project.experiments[run.experiment], layout.weights(run)
        if experiment.system != system.name or not path.exists():
            continue
        try:
            count = parameters(tensors.read(path))
        except (OSError, ValueError):
            continue  # a finding of its own
        ledger.expect(SIZES, f"{where}.params", said, count, path)
        return


def parameters(header: tensors.Header) -> int:
    """Return the trained values of a file of weights: without BatchNorm's statistics."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(
        tensor.values for name, tensor in header.tensors.items() if not name.endswith(buffers)
    )


def _classes(project: Project, name: str) -> int:
    """Return the classes that `smt profile` counts a model with: those it is evaluated on last."""
    return project.datasets[project.classifier_recipes(name)[-1].dataset].classes
