"""A table, computed once for all formats."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A piece of a cell."""

    text: str
    href: str | None = None
    title: str | None = None
    """Said of the link where a format can: which run, which fingerprint."""


@dataclass(frozen=True)
class Cell:
    """What stands in one cell: its spans with commas between."""

    spans: tuple[Span, ...]
    kind: str = ""
    """A state or verdict, by which HTML marks the cell."""

    @classmethod
    def of(cls, text: str, href: str | None = None, *, title: str = "", kind: str = "") -> "Cell":
        """Return a cell of one span."""
        return cls((Span(text, href, title or None),), kind)

    @property
    def text(self) -> str:
        return ", ".join(span.text for span in self.spans)


@dataclass(frozen=True)
class Column:
    """A column, which may stand with its neighbours below a common heading."""

    title: str
    group: str = ""
    numeric: bool = False
    provenance: bool = False
    """Fingerprints and run ids: LaTeX has them in comments instead."""
    prose: bool = False
    """Sentences, which LaTeX breaks into lines."""

    @property
    def full_title(self) -> str:
        return f"{self.group} {self.title}".strip()


@dataclass(frozen=True)
class Grid:
    """One table."""

    name: str
    title: str
    caption: str
    notice: str | None
    """Stands on the table in every format."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    """Sources, tolerance, and why a cell is empty."""
    records: tuple[dict[str, str], ...]
    """The rows for machines, with full precision; all have the same keys."""

    def groups(self) -> list[tuple[str, int]]:
        """Return the common headings in order, each with the number of columns below it."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    def without_provenance(self) -> "Grid":
        """Return the table without columns of run ids."""
        indices = [index for index, column in enumerate(self.columns) if not column.provenance]
        return Grid(
            self.name,
            self.title,
            self.caption,
            self.notice,
            tuple(self.columns[index] for index in indices),
            tuple(tuple(row[index] for index in indices) for row in self.rows),
            self.notes,
            self.records,
        )
