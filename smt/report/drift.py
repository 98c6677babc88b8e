"""The drift table: where the paper, the release and this project are inconsistent."""

import re

from smt.config.project import Project
from smt.errors import UserError, suggest
from smt.report.grid import Cell, Column, Grid
from smt.report.sizes import PAPER, Sizes

NAME = "drift"

_PLACE = re.compile(r"\{([a-z0-9_]+(?:\.[a-z0-9_]+)?)\.([a-z0-9_]+)\}")
_GMACS = {f"gmacs_{name}": name for name in ("conv_linear", "attention", "reported")}
METRICS = ("params_m", *_GMACS)
"""What `ours` may name of a model or system: {smt_small.params_m}, {mask_rcnn.smt_small.params_m}
and the like."""


def drift_grid(project: Project, sizes: Sizes) -> Grid:
    """Return the drift table, with the sizes that discrepancies name filled in.

    Discrepancies are about the paper's own models, so the sizes are those of its scale.

    Raises:
        UserError: a discrepancy names a model or a size that does not exist.
    """
    texts = [
        _fill(project, discrepancy.ours, sizes, index)
        for index, discrepancy in enumerate(project.discrepancies)
    ]
    rows = [
        (discrepancy.subject, discrepancy.kind, discrepancy.paper, discrepancy.release, text)
        for discrepancy, text in zip(project.discrepancies, texts, strict=True)
    ]
    keys = ("subject", "kind", "paper", "release", "ours")
    notice = project.scale.notice
    return Grid(
        name=NAME,
        title="Drift",
        caption="Where the paper, the authors' release and this project do not agree.",
        notice=notice,
        columns=(
            Column("Subject", prose=True),
            Column("Kind"),
            *(Column(title, prose=True) for title in ("Paper", "Release", "Here")),
        ),
        rows=tuple(tuple(Cell.of(text) for text in row) for row in rows),
        notes=(
            "Sizes in the last column are measured on the paper's own models by "
            f"smt profile --scale {PAPER}; MACs of classifiers at 224.",
        ),
        records=tuple(
            {"table": NAME, **dict(zip(keys, row, strict=True)), "notice": notice or ""}
            for row in rows
        ),
    )


def _fill(project: Project, text: str, sizes: Sizes, index: int) -> str:
    """Return `text` with measured sizes in place of {model.metric}; the reason where none is."""
    valid = (*project.models, *project.systems)

    def value(match: re.Match[str]) -> str:
        model, metric = match.groups()
        where = f"params/drift.yaml: discrepancies.{index}.ours: {match.group()}"
        if model not in valid:
            kind = "system" if "." in model else "model"
            raise UserError(f"{where}: no {kind} {model!r}; {suggest(model, valid)}")
        if metric not in METRICS:
            raise UserError(f"{where}: no size {metric!r}; valid: {', '.join(METRICS)}")
        count = _measured(sizes, model, metric)
        return f"({sizes.reason})" if count is None else f"{count:.3f}"

    return _PLACE.sub(value, text)


def _measured(sizes: Sizes, model: str, metric: str) -> float | None:
    """Return parameters in millions, or multiply-accumulates in billions: a classifier's at 224."""
    if metric == "params_m":
        params = sizes.params(model)
        return None if params is None else params / 1e6
    size = sizes.size_of_image(model) if "." in model else "224"
    macs = None if size is None else sizes.macs(model, size, _GMACS[metric])
    return None if macs is None else macs / 1e9
