"""The shell commands that the documents tell a reader to type."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy

README = ROOT / "README.md"
WORKED_EXAMPLE = ROOT / "docs" / "add-a-variant.md"
DEMO_RESULTS = ROOT / "docs" / "demo-results.md"
DOCUMENTS = (
    README,
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path != DEMO_RESULTS),
)
"""What is written by hand."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_COMMENT = re.compile(r"\s+# .*")
_SETTING = "export "


@dataclass(frozen=True)
class Command:
    """A line of a shell block, without its comment."""

    place: str
    """Document and line."""
    text: str
    settings: tuple[str, ...]
    """What the block exports before it."""

    @property
    def script(self) -> str:
        """Return what a shell is given."""
        return "\n".join((*self.settings, self.text))


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language, each with the line that it begins in."""
    text = document.read_text()
    return [
        (text[: found.start()].count("\n") + 2, found[2])
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def commands() -> list[Command]:
    """Return every command in a `bash` block of the documents, in their order."""
    found = []
    for document in DOCUMENTS:
        for start, block in blocks(document, "bash"):
            settings: tuple[str, ...] = ()
            for number, line in enumerate(block.splitlines(), start):
                text = _COMMENT.sub("", line).strip()
                if text.startswith(_SETTING):
                    settings += (text,)
                elif text and not text.startswith("#"):
                    found.append(Command(f"{document.relative_to(ROOT)}:{number}", text, settings))
    return found


def unnamed_blocks() -> list[str]:
    """Return the places of blocks that do not say their language: nothing would run them."""
    return [
        f"{document.relative_to(ROOT)}:{line}"
        for document in DOCUMENTS
        for line, _ in blocks(document, "")
    ]


DETECTOR = "## A new detector"
"""Heading of the worked example that changes code."""


def follow_example(project: ProjectCopy) -> ProjectCopy:
    """Return a project with the documents' example of a variant in its params."""
    heading = WORKED_EXAMPLE.read_text().split(DETECTOR)[0].count("\n")
    for line, block in blocks(WORKED_EXAMPLE, "yaml"):
        if line > heading:
            break
        place, text = block.split("\n", 1)
        found = re.match(r"# params/(\w+\.yaml), ", place)
        assert found, place
        if place.endswith("at the end"):
            path = project.folder / "params" / found[1]
            path.write_text(path.read_text() + text)
        else:
            row = '      - {label: "2", experiment: ablation_heads_2}\n'
            project.edit(found[1], row, row + text)
    return project


def follow_detector_example(project: ProjectCopy) -> None:
    """Give a project a copy of the code, and to both the documents' example of a detector."""
    shutil.copytree(ROOT / "smt", project.folder / "smt")
    heading = WORKED_EXAMPLE.read_text().split(DETECTOR)[0].count("\n")
    for language in ("python", "yaml"):
        for line, block in blocks(WORKED_EXAMPLE, language):
            if line > heading:
                place, text = block.split("\n", 1)
                _insert(project.folder, *place.removeprefix("# ").partition(", ")[::2], text)


def _insert(folder: Path, file: str, where: str, text: str) -> None:
    path = folder / file
    content = path.read_text() if path.exists() else ""
    assert bool(content) == bool(where), file
    mapping = "HEADS: Mapping[str, type[Head]] = {\n"
    before, after = {"before HEADS": ("", mapping), "in HEADS": (mapping, "")}.get(where, ("", ""))
    if where in ("", "at the end"):
        path.write_text(content + text)
    else:
        assert content.count(mapping) == 1
        added = before + text + (f"\n\n{after}" if after else "")
        path.write_text(content.replace(mapping, added))
