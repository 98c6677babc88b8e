"""tests/README.md: the tests that check the documents' promises exist."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.helpers import ROOT
from tests.helpers.documents import DOCUMENTS

TESTS = ROOT / "tests"
EXECUTOR = ROOT / "workflow" / "plugins" / "snakemake-executor-plugin-submitit" / "tests"
TABLE = (TESTS / "README.md").read_text()
TESTS_IN_TABLE = re.findall(r"`([\w/]+\.py)::(test_\w+)`", TABLE)


@cache
def names_in(path: Path) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def path_of(file: str) -> Path:
    """Return where a file of the table lies: below the tests, or those of the executor."""
    return (
        EXECUTOR / file.removeprefix("executor/") if file.startswith("executor/") else TESTS / file
    )


def headings(text: str, level: str) -> list[str]:
    """Return the headings of a level, without shell blocks, where `#` begins a comment."""
    return re.findall(rf"^{level} (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)


def test_every_test_in_the_table_exists():
    assert len(TESTS_IN_TABLE) > 100
    missing = [
        f"{file}::{name}"
        for file, name in TESTS_IN_TABLE
        if not path_of(file).exists() or name not in names_in(path_of(file))
    ]
    assert not missing, "name the tests of these promises in tests/README.md"


def test_every_document_has_a_section_in_the_table():
    titles = [title for document in DOCUMENTS for title in headings(document.read_text(), "#")]
    assert sorted(headings(TABLE, "###")) == sorted(titles)


def test_every_row_names_a_test():
    promises = TABLE[TABLE.index("\n## What the documents promise") :]
    rows = [line for line in promises.splitlines() if line.startswith("| ")]
    assert [row for row in rows if "::test_" not in row] == ["| promise | test |"] * (
        rows.count("| promise | test |")
    )


def test_every_marker_and_shared_fixture_is_described():
    markers = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(markers) <= set(re.findall(r"^\| `(\w+)` \|", TABLE, re.M))
    fixtures = set()
    for path in (TESTS / "conftest.py", *(TESTS / "helpers").glob("*_fixtures.py")):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
                and any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
            ):
                fixtures.add(node.name)
    assert fixtures <= set(re.findall(r"^\| `(\w+)` \|", TABLE, re.M))
