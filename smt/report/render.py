"""A table as Markdown, CSV, LaTeX and HTML. The same table gives the same bytes."""

import csv
import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from smt.report.grid import Cell, Column, Grid, Span
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing

if TYPE_CHECKING:
    from jinja2 import Environment

FORMATS = ("md", "csv", "tex", "html")

_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
}

_LAST_LATIN = "\u017f"


def write(grid: Grid, folder: Path) -> list[Path]:
    """Write the table in every format and return the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    texts = {"md": markdown(grid), "csv": as_csv(grid), "tex": latex(grid), "html": html(grid)}
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{grid.name}.{suffix}")
        write_text(paths[-1], text)
    return paths


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with explained(path, RESULTS_REMEDY), replacing(path) as file:
        file.write(text.encode())


# --- Markdown --------------------------------------------------------------------------------


def markdown(grid: Grid) -> str:
    """Return the table in GitHub's Markdown."""
    parts = [f"# {markdown_text(grid.title)}", markdown_text(grid.caption)]
    if grid.notice:
        parts.append(f"**{markdown_text(grid.notice)}**")
    parts.append(markdown_table(grid.columns, grid.rows))
    parts += [markdown_text(note) for note in grid.notes]
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> str:
    """Return only the rows and their heading."""
    lines = [
        [markdown_text(column.full_title) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([", ".join(_markdown_span(span) for span in cell.spans) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_span(span: Span) -> str:
    text = markdown_text(span.text)
    if span.href is None:
        return text
    return f"[{text}]({span.href})"


def markdown_text(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line."""
    escaped = re.sub(r"([\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([+-])(?=\s|$)", r"\\\1", escaped)  # else a list's bullet


# --- CSV -------------------------------------------------------------------------------------


def as_csv(grid: Grid) -> str:
    """Return the records: one line a row of the table, numbers with every digit."""
    text = io.StringIO()
    keys = list(grid.records[0]) if grid.records else []
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(grid.records)
    return text.getvalue()


# --- LaTeX -----------------------------------------------------------------------------------


def latex(grid: Grid) -> str:
    """Return a table of booktabs; one with sentences is a longtable, which may break over pages."""
    visible = grid.without_provenance()
    prose = any(column.prose for column in visible.columns)
    packages = "booktabs,array,longtable" if prose else "booktabs,graphicx"
    lines = [
        *_latex_provenance(grid),
        rf"% Needs \usepackage{{{packages}}}; links need \usepackage{{hyperref}}.",
        r"\providecommand{\href}[2]{#2}",
        *(_latex_long(visible) if prose else _latex_float(visible)),
    ]
    return "\n".join(lines) + "\n"


def _latex_float(grid: Grid) -> list[str]:
    columns = "".join("r" if column.numeric else "l" for column in grid.columns)
    return [
        r"\begin{table}[htbp]",
        r"\centering",
        _latex_caption(grid),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *_latex_heading(grid),
        r"\midrule",
        *_latex_rows(grid),
        r"\bottomrule",
        r"\end{tabular}}",
        *_latex_notes(grid),
        r"\end{table}",
    ]


def _latex_long(grid: Grid) -> list[str]:
    heading = [r"\toprule", *_latex_heading(grid), r"\midrule"]
    width = 0.9 / (sum(column.prose for column in grid.columns) + 0.3)
    paragraph = rf">{{\raggedright\arraybackslash}}p{{{width:.2f}\linewidth}}"
    columns = "".join(paragraph if column.prose else "l" for column in grid.columns)
    return [
        r"{\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{{columns}}}",
        _latex_caption(grid) + r" \\",
        *heading,
        r"\endfirsthead",
        *heading,
        r"\endhead",
        *_spaced(_latex_rows(grid)),
        r"\bottomrule",
        r"\end{longtable}",
        *_latex_notes(grid),
        "}",
    ]


def _spaced(rows: list[str]) -> list[str]:
    """Return rows with some space between: their cells are paragraphs."""
    return [*(row + r"\addlinespace" for row in rows[:-1]), *rows[-1:]]


def _latex_caption(grid: Grid) -> str:
    notice = rf" \textbf{{{latex_text(grid.notice)}.}}" if grid.notice else ""
    text = f"{latex_text(grid.title)}. {latex_text(grid.caption)}{notice}"
    return rf"\caption{{{text}}}\label{{tab:{grid.name}}}"


def _latex_rows(grid: Grid) -> list[str]:
    rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in grid.rows]
    # The end of a row takes a bracket or star that follows for its own.
    return [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]


def _latex_notes(grid: Grid) -> list[str]:
    notes = [rf"{latex_text(note)}\par" for note in grid.notes]
    # Without \par a note would begin beside a narrow table.
    return [r"\par\smallskip{\raggedright\footnotesize", *notes, "}"] if notes else []


def _latex_heading(grid: Grid) -> list[str]:
    titles = " & ".join(latex_text(column.title) for column in grid.columns) + r" \\"
    groups = grid.groups()
    if not any(title for title, _ in groups):
        return [titles]
    cells, rules, start = [], [], 1
    for title, width in groups:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(title)}}}" if title else "")
        if title:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return [" & ".join(cells) + r" \\", " ".join(rules), titles]


def _latex_cell(cell: Cell) -> str:
    parts = []
    for span in cell.spans:
        text = latex_text(span.text)
        parts.append(rf"\href{{{_latex_url(span.href)}}}{{{text}}}" if span.href else text)
    # A cell that begins with [ would be read as an argument of the \\ before it.
    return "{}" + ", ".join(parts) if cell.text.startswith("[") else ", ".join(parts)


def _latex_url(url: str) -> str:
    return re.sub(r"([%#&_\\{}])", r"\\\1", url)


def _latex_provenance(grid: Grid) -> list[str]:
    """Return comments that name the run of every cell."""
    lines = []
    for row in grid.rows:
        for column, cell in zip(grid.columns, row, strict=True):
            if column.provenance:
                runs = [" ".join((span.title or span.text).split()) for span in cell.spans]
                lines.append(f"% {' '.join(row[0].text.split())}: {'; '.join(runs)}")
    return lines


def latex_text(text: str) -> str:
    """Return `text` so that LaTeX sets it as it is, on one line.

    Latin letters pass; a sign that no LaTeX font has without further packages becomes a `?`.
    """
    signs = " ".join(text.split())
    escaped = (_TEX.get(sign, sign if sign <= _LAST_LATIN else "?") for sign in signs)
    return re.sub(r"-(?=-)", "-{}", "".join(escaped))  # two hyphens would become one dash


# --- HTML ------------------------------------------------------------------------------------


def html(grid: Grid) -> str:
    """Return a page of its own, which loads nothing from anywhere."""
    return page("table.html.j2", grid=grid)


def page(template: str, **values: object) -> str:
    """Return a filled template of this package; everything in it is escaped."""
    return _environment().get_template(template).render(**values) + "\n"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("smt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
