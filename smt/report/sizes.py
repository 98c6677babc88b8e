"""Parameters and multiply-accumulates, measured and published: `sizes.json` and the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field, RootModel

from smt.config.project import Project
from smt.config.published import ReportedValue
from smt.report.format import css_class, exact, signed, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, Record
from smt.runs.state import State

NAME = "sizes"

CONVENTIONS = ("conv_linear", "attention", "reported")
"""How multiply-accumulates are counted: convolutions and linears; with attention products; as the
published figures were counted."""

PAPER = "paper"
"""The scale whose models are the paper's own: only their sizes can be set beside published ones."""


class Macs(Record):
    """Multiply-accumulates of a forward pass of one image, by convention."""

    conv_linear: int
    attention: int
    reported: int
    thop: int | None = None


class PartSize(Record):
    """What one part of a detector or segmenter has of its size."""

    params: int
    reported: int
    """MACs as the published figures were counted."""


class ModelSize(Record):
    """Parameters and multiply-accumulates of a classifier, or of a head on a model."""

    title: str
    params: int
    macs: Annotated[dict[str, Macs], Field(min_length=1)]
    """By the image: the side in pixels of a classifier's, `height x width` of others."""
    parts: dict[str, PartSize] = {}
    """Of a head on a model."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolutions that a classifier was measured at, lowest first."""
        return tuple(sorted(int(image) for image in self.macs if image.isdigit()))


class SizesRecord(RootModel[dict[str, ModelSize]]):
    """`sizes.json`: the size of each model, and of each head on a model, by name."""

    model_config = ConfigDict(frozen=True)

    def as_json(self) -> dict[str, Any]:
        """Return the keys that were set, with those that this version does not know."""
        values: dict[str, Any] = self.model_dump(exclude_unset=True)
        return values


@dataclass(frozen=True)
class Sizes:
    """What `smt profile` measured at one scale."""

    scale: str
    models: Mapping[str, ModelSize] = field(default_factory=dict)
    damage: DamagedRecord | None = None
    """What is wrong with the file, if it cannot be read."""

    @classmethod
    def read(cls, layout: Layout, scale: str) -> "Sizes":
        """Return the sizes measured at `scale` in the same results folder; empty without any."""
        path = Layout(scale, layout.results, layout.data).sizes
        try:
            sizes = record.read(SizesRecord, path, f"remove it and run: {_command(scale)}")
        except DamagedRecord as damage:
            return cls(scale, damage=damage)
        return cls(scale, sizes.root if sizes else {})

    @property
    def state(self) -> State:
        """The state of a size that is not there."""
        return State.NOT_STARTED if self.damage is None else State.FAILED

    @property
    def missing(self) -> Cell:
        """What stands in a table in place of a size that is not there."""
        return Cell.of(self.state, kind=css_class(self.state))

    @property
    def reason(self) -> str:
        """Why a size is not there, with the remedy."""
        return f"{self.state}: {self.damage or f'run {_command(self.scale)}'}"

    def params(self, model: str) -> int | None:
        """Return the parameters of a model or system."""
        size = self.models.get(model)
        return size.params if size else None

    def macs(self, model: str, image: int | str, convention: str) -> int | None:
        """Return the MACs of a model or system for an image of this size."""
        size = self.models.get(model)
        macs = size.macs.get(str(image)) if size else None
        return None if macs is None else int(getattr(macs, convention))

    def resolutions(self, model: str) -> tuple[int, ...]:
        """Return the resolutions that a classifier was measured at, lowest first."""
        size = self.models.get(model)
        return size.resolutions if size else ()

    def size_of_image(self, system: str) -> str | None:
        """Return the size of the image that a head on a model was measured at, None if not yet."""
        size = self.models.get(system)
        return next(iter(size.macs)) if size else None


def _command(scale: str) -> str:
    return f"smt profile --scale {scale}"


def read_sizes(project: Project, layout: Layout) -> dict[str, Sizes]:
    """Return the sizes of the paper's scale and of the project's own, by scale."""
    scales = dict.fromkeys((PAPER, project.scale_name))
    return {scale: Sizes.read(layout, scale) for scale in scales}


def sizes_grid(project: Project, sizes: Mapping[str, Sizes]) -> Grid:
    """Return the table of sizes, given those of `read_sizes`.

    The paper's models come first, whatever the scale: their sizes need no training. At another
    scale its own models follow, which nothing published can be compared with.
    """
    table = _SizesTable(project)
    for scale, measured in sizes.items():
        table.add(measured, published=scale == PAPER)
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
            own = reported.sizes_of(model) if published else {}
            for resolution in sizes.resolutions(model) or (None,):
                self._add_row(sizes, model, spec.title, resolution, own)
        for name, system in self.project.systems.items():
            titles = self.project.heads[system.head].title, self.project.models[system.model].title
            own = reported.sizes_of(name) if published else {}
            self._add_row(sizes, name, ", ".join(titles), sizes.size_of_image(name), own)

    def _add_row(
        self,
        sizes: Sizes,
        model: str,
        title: str,
        resolution: int | str | None,
        published: Mapping[str, ReportedValue],
    ) -> None:
        params = sizes.params(model)
        counts = {
            name: sizes.macs(model, resolution, name) if resolution else None
            for name in CONVENTIONS
        }
        first = resolution == 224 or not isinstance(resolution, int)
        key = "gmacs" if first else f"gmacs_{resolution}"
        params_m, gmacs = published.get("params_m"), published.get(key)
        self.rows.append(
            (
                Cell.of(title),
                Cell.of(sizes.scale),
                sizes.missing if params is None else Cell.of(f"{params / 1e6:.6f}"),
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
                "state": "measured" if params is not None else sizes.reason,
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
        states = dict.fromkeys(row["state"] for row in self.records)
        notes += [f"{state}." for state in states if state != "measured"]
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
