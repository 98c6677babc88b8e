"""Digests of the code that trains, which change only with what the code does."""

import ast
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from smt.runs.paths import PACKAGE

_CODE = (
    "config", "data", "models", "detection", "segmentation", "evaluation", "engine", "tasks",
)  # fmt: skip
"""What takes part in a training, below the package: whole folders, so that none is forgotten."""

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Whose version can change a result."""


def digests() -> dict[str, str]:
    """Return a digest of each module that takes part in a training, and versions of libraries.

    A digest is of what the code does: comments, docstrings and layout do not count.
    """
    digests: dict[str, str] = {}
    for name in _CODE:
        digests |= digests_of(PACKAGE / name)
    return {**digests, **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


def digests_of(folder: Path) -> dict[str, str]:
    """Return a digest of each module in a folder of this package."""
    files = sorted(folder.rglob("*.py"))
    return {f"smt/{file.relative_to(PACKAGE)}": _code_digest(file) for file in files}


def _code_digest(file: Path) -> str:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A string that stands alone is a docstring, of a module down to an attribute.
            node.body = [statement for statement in body if not _is_string(statement)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return one phrase for each module or library that has changed between two digests."""
    phrases = []
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        if name in _LIBRARIES:
            phrases.append(f"{name} {old} -> {new}")
        else:
            how = "is new" if old is None else "is gone" if new is None else "has changed"
            phrases.append(f"{name} {how}")
    return phrases
