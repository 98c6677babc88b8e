"""YAML files read strictly: duplicate keys refused, every key's line number known."""

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from smt.errors import UserError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.CSafeLoader):  # libyaml: a tenth of the time that Python's own parser takes
    """SafeLoader that reads `1e-3` as a number, as YAML 1.2 does, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)


_FLOAT_FIRST = list("-+0123456789.")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.inf|\.nan)$"
    ),
    _FLOAT_FIRST,
)


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value)
            lines[child] = key.start_mark.line + 1
            _collect_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*path, index), lines)


@lru_cache(maxsize=64)  # commands read the same params at their own scale and at the paper's
def _parse(text: str) -> tuple[Any, Mapping[KeyPath, int]]:
    """Return the data of a YAML text, and the line of each key. Others get the same objects."""
    loader = _Loader(text)
    node = loader.get_single_node()
    lines: dict[KeyPath, int] = {}
    if node is None:
        return None, lines
    _collect_lines(node, (), lines)
    return loader.construct_document(node), lines


class YamlFile:
    """One YAML file: its data, and where each key stands.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file; run from the project's root, or give --params DIR"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        try:
            data, self._lines = _parse(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or error
            raise UserError(f"{where}: not valid YAML: {problem}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected a mapping of names, found {type(data).__name__}")
        self.data: dict[str, Any] = copy.deepcopy(data)

    def has(self, key_path: KeyPath) -> bool:
        """Return whether the file itself has this key."""
        return key_path in self._lines

    def where(self, key_path: KeyPath) -> str:
        """Return `file:line: dotted.key` for the deepest part of the path that the file has."""
        prefix = key_path
        while prefix and prefix not in self._lines:
            prefix = prefix[:-1]
        dotted = ".".join(str(part) for part in key_path)
        return f"{self.path}:{self._lines.get(prefix, 1)}: {dotted}"
