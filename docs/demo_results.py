"""Puts the demo's tables into demo-results.md, between its two markers."""

import re
import sys
from pathlib import Path

BEGIN, END = "<!-- demo tables: begin -->", "<!-- demo tables: end -->"
DROPPED = {"Runs"}
"""Columns that link to runs in the reader's own MLflow: nothing is behind them elsewhere."""


def fill(page: str, tables: list[str]) -> str:
    """Return `page` with `tables` (Markdown) between its markers.

    Raises:
        ValueError: the markers are missing, or not in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no lines {BEGIN} and {END}")
    return "\n\n".join([before + BEGIN, *map(shortened, tables), END + after])


def shortened(table: str) -> str:
    """Return one table's page a level deeper, without links to a local server."""
    text = re.sub(
        r"(?<!\\)\[((?:\\.|[^\]\\])*)\]\(http://(?:127\.0\.0\.1|localhost)[^)]*\)", r"\1", table
    )
    lines = text.strip().splitlines()
    header = next((line for line in lines if line.startswith("|")), "")
    dropped = {number for number, cell in enumerate(_cells(header)) if cell in DROPPED}
    return "\n".join(_without(line, dropped) for line in lines).replace("# ", "## ", 1)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _without(line: str, dropped: set[int]) -> str:
    if not line.startswith("|") or not dropped:
        return line
    kept = (cell for number, cell in enumerate(_cells(line)) if number not in dropped)
    return f"| {' | '.join(kept)} |"


def main(page: Path, folder: Path) -> None:
    """Fill `page` from the tables in `folder`, in the order of its index."""
    index = (folder / "index.md").read_text()
    names = list(dict.fromkeys(re.findall(r"\(([a-z0-9_]+)\.(?:md|html)\)", index)))
    tables = [(folder / f"{name}.md").read_text() for name in names]
    page.write_text(fill(page.read_text(), tables))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}; run: make reproduce, then make demo-docs")
