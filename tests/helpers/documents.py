"""The shell commands of the documents."""

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
"""Documents that are written by hand."""
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
    """`export` lines of the block before it."""

    @property
    def script(self) -> str:
        """Return the script that a shell runs."""
        return "\n".join((*self.settings, self.text))


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """Return line number and content of each fenced block of a language."""
    text = document.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match[2])
        for match in _FENCE.finditer(text)
        if match[1] == language
    ]


def commands() -> list[Command]:
    """Return the commands in all `bash` blocks of the documents, in order."""
    result = []
    for document in DOCUMENTS:
        for start, block in blocks(document, "bash"):
            settings: tuple[str, ...] = ()
            for number, line in enumerate(block.splitlines(), start):
                text = _COMMENT.sub("", line).strip()
                if text.startswith(_SETTING):
                    settings += (text,)
                elif text and not text.startswith("#"):
                    result.append(Command(f"{document.relative_to(ROOT)}:{number}", text, settings))
    return result


def unnamed_blocks() -> list[str]:
    """Return the places of blocks without a language, which no test would run."""
    return [
        f"{document.relative_to(ROOT)}:{line}"
        for document in DOCUMENTS
        for line, _ in blocks(document, "")
    ]


TIMM = "## A model of timm"
"""Heading of the part of the worked example that takes another's model."""
DETECTOR = "## A new detector"
"""Heading of the part of the worked example that changes code."""


def follow_timm_example(project: ProjectCopy) -> None:
    """Apply the worked example of a model of timm to a project's params."""
    first, last = (WORKED_EXAMPLE.read_text().split(it)[0].count("\n") for it in (TIMM, DETECTOR))
    for line, block in blocks(WORKED_EXAMPLE, "yaml"):
        if first < line < last:
            place, text = block.split("\n", 1)
            _insert(project.folder, *place.removeprefix("# ").partition(", ")[::2], text)


def follow_example(project: ProjectCopy) -> ProjectCopy:
    """Apply the worked example of a variant to a project's params; return the project."""
    heading = WORKED_EXAMPLE.read_text().split(TIMM)[0].count("\n")
    for line, block in blocks(WORKED_EXAMPLE, "yaml"):
        if line > heading:
            break
        place, text = block.split("\n", 1)
        match = re.match(r"# params/(\w+\.yaml), ", place)
        assert match, place
        if place.endswith("at the end"):
            path = project.folder / "params" / match[1]
            path.write_text(path.read_text() + text)
        else:
            row = '      - {label: "2", experiment: ablation_heads_2}\n'
            project.edit(match[1], row, row + text)
    return project


def follow_detector_example(project: ProjectCopy) -> None:
    """Copy the code into a project, and apply the worked example of a detector to both."""
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
        replacement = before + text + (f"\n\n{after}" if after else "")
        path.write_text(content.replace(mapping, replacement))
