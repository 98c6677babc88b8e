"""The table of inference speeds: published ones, and ours, each in a column of its own machine."""

from collections.abc import Iterator

from smt.config.numbers import SIZES
from smt.report import evidence
from smt.report.collect import Results
from smt.report.format import exact, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.report.throughput import COMMAND, NAME

TITLE = "Throughput and size"


class ThroughputGrid:
    """Builds the table from published rates and from what was measured here."""

    def __init__(self, results: Results) -> None:
        self.results, self.project = results, results.project
        self.published = self.project.reported.throughput
        self.measured = results.throughput.measured
        self.hardware = tuple(dict.fromkeys(rate.setting for rate in self.published.values()))
        own = [name for name in self.project.models if self._has_rate(name)]
        owners = [*own, *(name for name in self.published if name not in own)]
        self.rows = [self._record(owner) for owner in owners]
        keys = ("source", *(f"{key}_source" for key in SIZES))
        named = (row[key] for key in keys for row in self.rows if row[key])
        self.sources = tuple(dict.fromkeys(named))

    def grid(self) -> Grid:
        """Return the table: models of the paper, then others, by their published rates."""
        return Grid(
            name=NAME,
            title=TITLE,
            caption=(
                "Images a second of inference, of classifiers at 224. Each column is of one "
                "machine and setting; numbers of different columns cannot be compared."
            ),
            notice=None,
            columns=self._columns(),
            rows=tuple(self._cells(row) for row in self.rows),
            notes=tuple(self._notes()),
            records=tuple(self.rows),
        )

    def _has_rate(self, owner: str) -> bool:
        return owner in self.published or any(owner in entry.rates for entry in self.measured)

    def _columns(self) -> tuple[Column, ...]:
        sizes = [("published", "Parameters (M)"), ("measured", "Parameters (M)"),
                 ("published", "MACs (G)"), ("measured", "MACs (G)")]  # fmt: skip
        rates = [(setting, "Published (images/s)") for setting in self.hardware]
        rates += [(entry.label, "Here (images/s)") for entry in self.measured]
        columns = (Column(title, group, numeric=True) for title, group in (*sizes, *rates))
        return (Column("Model"), *columns)

    def _title(self, owner: str) -> str:
        if owner in self.project.models:
            return self.project.models[owner].title
        table, _, name = owner.partition(".")
        return self.project.peer_tables[table].peers[name].title

    def _record(self, owner: str) -> dict[str, str]:
        """Return a row for machines, which the cells are made of."""
        record = {"model": self._title(owner), "name": owner}
        for key in SIZES:
            value, source = self._published_size(owner, key)
            record |= {f"{key}_published": exact(value), f"{key}_source": source}
            record[f"{key}_measured"] = exact(self._measured_size(owner, key))
        rate = self.published.get(owner)
        for setting in self.hardware:
            value = rate.images_per_second if rate and rate.setting == setting else None
            record[f"published, {setting}"] = exact(value)
        record["source"] = rate.source if rate else ""
        for entry in self.measured:
            record[entry.stem] = exact(entry.rates.get(owner))
        return record

    def _published_size(self, owner: str, key: str) -> tuple[float | None, str]:
        """Return a published size and the name of its source; None where it is not at hand."""
        if owner in self.project.models:
            size = self.project.reported.sizes_of(owner).get(key)
            return (size.value, size.source) if size else (None, "")
        table, _, name = owner.partition(".")
        peer = self.project.peer_tables[table].peers[name]
        return float(getattr(peer, key)), peer.source

    def _measured_size(self, owner: str, key: str) -> float | None:
        """Return a size by the counter of `smt profile`; None for a model that timm lacks."""
        if owner in self.project.models:
            return evidence.measured_sizes(self.results, owner).get(key)
        table, _, name = owner.partition(".")
        timm = self.project.peer_tables[table].peers[name].timm
        return evidence.peer_sizes(self.results, timm).get(key)

    def _cells(self, row: dict[str, str]) -> tuple[Cell, ...]:
        mark = self._mark(row["source"])
        cells = [Cell.of(row["model"])]
        for key in SIZES:
            source = self._mark(row[f"{key}_source"])
            cells += [Cell.of(_number(row[f"{key}_published"], "g", source)),
                      Cell.of(_number(row[f"{key}_measured"], ".2f"))]  # fmt: skip
        return (
            *cells,
            *(Cell.of(_number(row[f"published, {name}"], "g", mark)) for name in self.hardware),
            *(Cell.of(_number(row[entry.stem], ".1f")) for entry in self.measured),
        )

    def _mark(self, source: str) -> str:
        return f" [{source_mark(self.sources.index(source))}]" if source else ""

    def _notes(self) -> Iterator[str]:
        yield from source_notes(self.sources, self.project.reported.sources)
        yield "MACs in 1e9 multiply-accumulates of an image, counted as the published figures were."
        if not self.measured:
            yield f"Nothing was measured here yet: run {COMMAND}, then smt tables {NAME}."
        for entry in self.measured:
            yield (
                f"{entry.label}: the median of several batches of images of "
                f"{entry.resolution} x {entry.resolution}, torch {entry.torch}."
            )
        yield from (f"Not read: {damage}." for damage in self.results.throughput.damages)


def _number(text: str, spec: str, mark: str = "") -> str:
    return f"{float(text):{spec}}{mark}" if text else ""
