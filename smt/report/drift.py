"""The drift table: where the paper, the release and this project are inconsistent."""

import re
from collections.abc import Callable

from smt.config.project import Project
from smt.errors import UserError, suggest
from smt.report import released as released_weights
from smt.report.grid import Cell, Column, Grid
from smt.report.released import ReleasedResults
from smt.report.sizes import PAPER, Sizes

NAME = "drift"

_PLACE = re.compile(r"\{([a-z0-9_]+(?:\.[a-z0-9_]+)?)\.([a-z0-9_]+)\}")
_GMACS = {f"gmacs_{name}": name for name in ("conv_linear", "attention", "reported")}
METRICS = ("params_m", *_GMACS)
"""What `ours` may name of a model or system: {smt_small.params_m}, {mask_rcnn.smt_small.params_m}
and the like."""


def drift_grid(project: Project, sizes: Sizes, released: ReleasedResults) -> Grid:
    """Return the drift table, with the sizes and results that discrepancies name filled in.

    Discrepancies are about the paper's own models, so sizes and released weights are those of its
    scale. Without any released weights that were evaluated there is no column of them.

    Raises:
        UserError: a discrepancy names a model, a size or a result that does not exist.
    """
    keys = ["subject", "kind", "paper", "release", "ours"]
    titles = ["Paper", "Release", "Here"]
    if released.evaluations:
        keys.append("released")
        titles.append("Released weights, here")
    texts = [
        {
            **discrepancy.model_dump(),
            "ours": _fill(discrepancy.ours, _sizes_of(project, sizes), f"{index}.ours"),
            "released": _fill(discrepancy.released, _results_of(project, released),
                              f"{index}.released"),
        }
        for index, discrepancy in enumerate(project.discrepancies)
    ]  # fmt: skip
    rows = [tuple(text[key] for key in keys) for text in texts]
    notice = project.scale.notice
    return Grid(
        name=NAME,
        title="Drift",
        caption="Where the paper, the authors' release and this project do not agree.",
        notice=notice,
        columns=(
            Column("Subject", prose=True),
            Column("Kind"),
            *(Column(title, prose=True) for title in titles),
        ),
        rows=tuple(tuple(Cell.of(text) for text in row) for row in rows),
        notes=(
            "Measured sizes are of the paper's own models, by "
            f"smt profile --scale {PAPER}; MACs of classifiers at 224.",
            *_released_notes(released),
        ),
        records=tuple(
            {"table": NAME, **dict(zip(keys, row, strict=True)), "notice": notice or ""}
            for row in rows
        ),
    )


def _released_notes(released: ReleasedResults) -> list[str]:
    if not released.evaluations:
        return [
            "No column of released weights: none was evaluated here; "
            f"smt evaluate EXPERIMENT --released FILE --scale {PAPER} does."
        ]
    return [
        f"{name}: {released_weights.source(found)}." for name, found in released.evaluations.items()
    ]


def _fill(text: str, value: Callable[[str, str], str], where: str) -> str:
    """Return `text` with what `value` gives in place of {name.metric}."""

    def replacement(match: re.Match[str]) -> str:
        try:
            return value(*match.groups())
        except KeyError as error:
            raise UserError(
                f"params/drift.yaml: discrepancies.{where}: {match.group()}: {error.args[0]}"
            ) from None

    return _PLACE.sub(replacement, text)


def _sizes_of(project: Project, sizes: Sizes) -> Callable[[str, str], str]:
    """Return a function that gives a measured size as text; the reason where there is none."""
    valid = (*project.models, *project.systems)

    def value(model: str, metric: str) -> str:
        if model not in valid:
            kind = "system" if "." in model else "model"
            raise KeyError(f"no {kind} {model!r}; {suggest(model, valid)}")
        if metric not in METRICS:
            raise KeyError(f"no size {metric!r}; valid: {', '.join(METRICS)}")
        count = _measured(sizes, model, metric)
        return f"({sizes.reason})" if count is None else f"{count:.3f}"

    return value


def _results_of(project: Project, released: ReleasedResults) -> Callable[[str, str], str]:
    """Return a function that gives a result of released weights as text, or that there is none."""
    valid = project.evaluated_classifiers

    def value(experiment: str, metric: str) -> str:
        if experiment not in valid:
            raise KeyError(f"no classifier {experiment!r}; {suggest(experiment, valid)}")
        if metric not in project.metrics_of(experiment):
            metrics = ", ".join(project.metrics_of(experiment))
            raise KeyError(f"no result {metric!r}; valid: {metrics}")
        found = released.evaluations.get(experiment)
        return "not evaluated" if found is None else released_weights.number(found, metric)

    return value


def _measured(sizes: Sizes, model: str, metric: str) -> float | None:
    """Return parameters in millions, or multiply-accumulates in billions: a classifier's at 224."""
    if metric == "params_m":
        params = sizes.params(model)
        return None if params is None else params / 1e6
    size = sizes.size_of_image(model) if "." in model else "224"
    macs = None if size is None else sizes.macs(model, size, _GMACS[metric])
    return None if macs is None else macs / 1e9
