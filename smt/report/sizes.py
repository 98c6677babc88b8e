"""The table of sizes: parameters and multiply-accumulates, measured and published."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smt.config.project import Project
from smt.config.published import ReportedValue
from smt.errors import UserError
from smt.report.format import exact, signed, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.runs.atomic import read_json
from smt.runs.paths import Layout

NAME = "sizes"

CONVENTIONS = ("conv_linear", "attention", "reported")
"""How multiply-accumulates are counted: convolutions and linears; with attention products; as the
published figures were counted."""

PAPER = "paper"
"""The scale whose models are the paper's own: only their sizes can be set beside published ones."""


@dataclass(frozen=True)
class Sizes:
    """What `smt profile` measured at one scale."""

    scale: str
    models: dict[str, Any] | None
    """None where it has not been run."""

    @classmethod
    def read(cls, layout: Layout, scale: str) -> "Sizes":
        """Return the sizes measured at `scale` in the same results folder."""
        path = Layout(scale, layout.results, layout.data).sizes
        try:
            return cls(scale, read_json(path))
        except ValueError as error:
            raise UserError(
                f"{path}: not JSON ({error}); run: smt profile --scale {scale}"
            ) from None

    @property
    def pending(self) -> str:
        return f"pending: run smt profile --scale {self.scale}"

    def params(self, model: str) -> int | None:
        entry = self._entry(model)
        return int(entry["params"]) if entry else None

    def macs(self, model: str, resolution: int | str, convention: str) -> int | None:
        entry = self._entry(model)
        if entry is None or str(resolution) not in entry["macs"]:
            return None
        return int(entry["macs"][str(resolution)][convention])

    def resolutions(self, model: str) -> tuple[int, ...]:
        """Return the resolutions that the model was measured at, lowest first."""
        entry = self._entry(model)
        return tuple(sorted(int(each) for each in entry["macs"])) if entry else ()

    def size_of_image(self, system: str) -> str | None:
        """Return the size of the image that a head on a model was measured at, None if not yet."""
        entry = self._entry(system)
        return next(iter(entry["macs"])) if entry else None

    def _entry(self, model: str) -> dict[str, Any] | None:
        if self.models is None or not isinstance(self.models.get(model), dict):
            return None
        entry: dict[str, Any] = self.models[model]
        return entry


def sizes_grid(project: Project, layout: Layout) -> Grid:
    """Return the table of sizes.

    The paper's models come first, whatever the scale: their sizes need no training. At another
    scale its own models follow, which nothing published can be compared with.
    """
    scales = dict.fromkeys((PAPER, project.scale_name))
    table = _SizesTable(project)
    for scale in scales:
        table.add(Sizes.read(layout, scale), published=scale == PAPER)
    return table.grid()


class _SizesTable:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.sources: dict[str, None] = {}
        self.rows: list[tuple[Cell, ...]] = []
        self.records: list[dict[str, str]] = []

    def add(self, sizes: Sizes, *, published: bool) -> None:
        """Add a row for each model and resolution."""
        reported = self.project.reported
        for model, spec in self.project.models.items():
            own = reported.models.get(model, {}) if published else {}
            for resolution in sizes.resolutions(model) or (None,):
                self._add_row(sizes, model, spec.title, resolution, own)
        for name, system in self.project.systems.items():
            titles = self.project.heads[system.head].title, self.project.models[system.model].title
            own = reported.systems.get(name, {}) if published else {}
            self._add_row(sizes, name, ", ".join(titles), sizes.size_of_image(name), own)

    def _add_row(
        self,
        sizes: Sizes,
        model: str,
        title: str,
        resolution: int | str | None,
        own: Mapping[str, ReportedValue],
    ) -> None:
        params = sizes.params(model)
        counts = {
            name: sizes.macs(model, resolution, name) if resolution else None
            for name in CONVENTIONS
        }
        first = resolution == 224 or not isinstance(resolution, int)
        key = "gmacs" if first else f"gmacs_{resolution}"
        params_m, gmacs = own.get("params_m"), own.get(key)
        waiting = "" if params is not None else "pending"
        self.rows.append(
            (
                Cell.of(title),
                Cell.of(sizes.scale),
                Cell.of(f"{params / 1e6:.6f}" if params is not None else waiting, kind=waiting),
                self._reported(params_m),
                Cell.of(_difference(params, params_m, 1e6)),
                Cell.of(str(resolution or "")),
                *(Cell.of(_giga(counts[name])) for name in CONVENTIONS),
                self._reported(gmacs),
                Cell.of(_difference(counts["reported"], gmacs, 1e9)),
            )
        )
        self.records.append(
            {
                "table": NAME,
                "model": model,
                "title": title,
                "scale": sizes.scale,
                "notice": self.project.scale.notice or "",
                "params": str(params) if params is not None else "",
                "params_m_published": exact(params_m.value if params_m else None),
                "resolution": str(resolution or ""),
                **{f"macs_{name}": str(counts[name] or "") for name in CONVENTIONS},
                "gmacs_published": exact(gmacs.value if gmacs else None),
                "state": "measured" if params is not None else sizes.pending,
            }
        )

    def _reported(self, value: ReportedValue | None) -> Cell:
        if value is None:
            return Cell.of("")
        self.sources.setdefault(value.source)
        mark = source_mark(list(self.sources).index(value.source))
        return Cell.of(f"{value.value} [{mark}]")

    def grid(self) -> Grid:
        notes = source_notes(self.sources, self.project.reported.sources)
        notes.append(
            "MACs in 1e9 multiply-accumulates of one image: convolutions and linears alone; the "
            "same with the products of attention; and as the published figures were counted, which "
            "is what their difference is taken from."
        )
        waiting = dict.fromkeys(
            record["state"] for record in self.records if record["state"] != "measured"
        )
        notes += [f"{each}." for each in waiting]
        if self.project.scale.notice is not None:
            notes.append(
                f"Rows of scale {PAPER} are the paper's own models and can be compared with it; "
                f"those of scale {self.project.scale_name} cannot."
            )
        return Grid(
            name=NAME,
            title="Sizes",
            caption="Parameters and multiply-accumulates of every model, measured and published.",
            notice=self.project.scale.notice,
            columns=_COLUMNS,
            rows=tuple(self.rows),
            notes=tuple(notes),
            records=tuple(self.records),
        )


_COLUMNS = (
    Column("Model"),
    Column("Scale"),
    Column("measured", "Parameters (M)", numeric=True),
    Column("published", "Parameters (M)", numeric=True),
    Column("difference", "Parameters (M)", numeric=True),
    Column("Resolution", numeric=True),
    Column("conv + linear", "MACs (G)", numeric=True),
    Column("with attention", "MACs (G)", numeric=True),
    Column("as published", "MACs (G)", numeric=True),
    Column("published", "MACs (G)", numeric=True),
    Column("difference", "MACs (G)", numeric=True),
)


def _giga(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.4f}"


def _difference(measured: int | None, published: ReportedValue | None, unit: float) -> str:
    if measured is None or published is None:
        return ""
    return signed(measured / unit - published.value, 3)
