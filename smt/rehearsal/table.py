"""Peaks of memory beside what a card has: as text for `smt plan`, and as a table of the DAG."""

import textwrap
from collections.abc import Sequence

from smt.cluster.plan import WIDTH, aligned
from smt.config.project import Project
from smt.rehearsal.memory import BESIDE_TENSORS, GIB, Fit, gib, room
from smt.report.grid import Cell, Column, Grid

NAME = "rehearsal"

HEADINGS = (
    "experiment", "images", "size", "recompute", "training", "prediction", "moved", "kernels",
    "fits",
)  # fmt: skip

NOTE = (
    f"Peaks are of tensors alone, by rehearsal on a fake GPU; {BESIDE_TENSORS // GIB} GiB of the "
    "card are left for CUDA and kernels (assumed). A detector's batch is the largest that can "
    "come: a landscape and a portrait, padded to hold both. Moved: GiB that the kernels of a "
    "training step read and write."
)


def text(project: Project, fits: Sequence[Fit]) -> str:
    """Return a line an experiment, then what would help those that do not fit."""
    card = project.cluster.kind
    rows: list[tuple[str, ...]] = [HEADINGS]
    rows += [(fit.rehearsal.experiment, *_figures(fit), _verdict(fit)) for fit in fits]
    title = f"memory on {card.title}: {card.memory_gb:g} GB, of which {gib(room(card))} for tensors"
    refused = [_refusal(fit) for fit in fits if not fit.fits]
    return "\n\n".join([title, aligned(rows), textwrap.fill(NOTE, WIDTH), *refused]) + "\n"


def _figures(fit: Fit) -> tuple[str, ...]:
    done = fit.rehearsal
    return (
        str(done.images),
        " x ".join(map(str, done.size)),
        "yes" if done.recompute else "no",
        f"{done.training_bytes / GIB:.2f}",
        f"{done.prediction_bytes / GIB:.2f}",
        f"{done.traffic_bytes / GIB:.1f}",
        f"{done.kernels:,}",
    )


def _verdict(fit: Fit) -> str:
    return "FAILED" if fit.rehearsal.fault else "yes" if fit.fits else "NO"


def _refusal(fit: Fit) -> str:
    lines = [f"{fit.rehearsal.experiment} does not fit: {fit.fault}"]
    return "\n".join([*lines, *(f"  {remedy}" for remedy in fit.remedies)])


def grid(project: Project, fits: Sequence[Fit]) -> Grid:
    """Return the same as a table."""
    card = project.cluster.kind
    refused = [fit for fit in fits if not fit.fits]
    return Grid(
        name=NAME,
        title="Memory of every experiment, by rehearsal",
        caption=f"{len(fits)} rehearsed for {card.title} ({card.memory_gb:g} GB, "
        f"{gib(room(card))} for tensors); {len(refused)} do not fit.",
        notice=project.scale.notice,
        columns=(
            Column("Experiment"),
            Column("Images", numeric=True),
            Column("Size"),
            Column("Recompute"),
            Column("Training, GiB", numeric=True),
            Column("Prediction, GiB", numeric=True),
            Column("Moved in a step, GiB", numeric=True),
            Column("Kernels of a step", numeric=True),
            Column("Fits"),
        ),
        rows=tuple(_row(fit) for fit in fits),
        notes=(NOTE, *(_sentence(fit) for fit in refused)),
        records=tuple(_record(fit) for fit in fits),
    )


def _row(fit: Fit) -> tuple[Cell, ...]:
    kind = "reproduced" if fit.fits else "failed"
    cells = (fit.rehearsal.experiment, *_figures(fit))
    return (*(Cell.of(each) for each in cells), Cell.of(_verdict(fit), kind=kind))


def _sentence(fit: Fit) -> str:
    remedies = "; or ".join(fit.remedies)
    return f"{fit.rehearsal.experiment}: {fit.fault}{f'. {remedies}' if remedies else ''}."


def _record(fit: Fit) -> dict[str, str]:
    keys = (
        "experiment", "precision", "images", "recompute", "training_bytes", "prediction_bytes",
        "traffic_bytes", "kernels", "casts", "prediction_traffic_bytes", "prediction_kernels",
        "room_bytes", "fits",
    )  # fmt: skip
    values = fit.as_json()
    height, width = fit.rehearsal.size
    return {
        **{key: str(values[key]) for key in keys},
        "height": str(height),
        "width": str(width),
        "fault": fit.fault,
    }
