"""Reading `params/`: inheritance, the scale's overlay, validation with file, line and key."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from smt.config.cluster import Cluster
from smt.config.consistency import Checker
from smt.config.project import Project, Scale
from smt.config.published import Finding, Reported
from smt.config.sections import RECIPES, SECTIONS
from smt.config.trajectory import Trajectory
from smt.config.types import Positive
from smt.config.yaml import KeyPath, YamlFile
from smt.errors import UserError, suggest

T = TypeVar("T")

_NAME = re.compile(r"^[a-z0-9][a-z0-9_]{0,79}$")
_OVERLAID = tuple(name for name in SECTIONS if name != "tables")


def load_project(params: Path, scale: str) -> Project:
    """Return everything that `params` says at `scale`, checked.

    Raises:
        UserError: naming file, line and key, what is valid, and what to do.
    """
    names = dict.fromkeys(("scales", *(file for file, _ in SECTIONS.values()), "reported"))
    files = {name: YamlFile(params / f"{name}.yaml") for name in names}
    drift, cluster, sizes, trajectory = (
        YamlFile(params / f"{name}.yaml") for name in ("drift", "cluster", "sizes", "trajectory")
    )
    scales = files["scales"]
    if scale not in scales.data:
        raise UserError(f"{scales.path}: no scale {scale!r}; {suggest(scale, scales.data)}")
    layers = _layers(scales, scale)
    own: dict[str, Any] = {}
    for layer in layers:
        own = _merge(own, scales.data[layer])
    own = {key: value for key, value in own.items() if key not in (*_OVERLAID, "base")}
    reader = _Reader(scales, layers)
    sections = {
        name: reader.section(files[file], name, kind) for name, (file, kind) in SECTIONS.items()
    }
    project = Project(
        scale_name=scale,
        scale=_validate(
            Scale,
            own,
            [(scales, (each,)) for each in reversed(layers)],
            skip=(*_OVERLAID, "base"),
        ),
        recipes=_joined(files, {name: sections.pop(name) for name in RECIPES.values()}),
        reported=_validate(Reported, files["reported"].data, [(files["reported"], ())]),
        **sections,
        findings=tuple(
            _validate(Finding, finding, [(drift, ("findings", index))])
            for index, finding in enumerate(drift.data.get("findings", ()))
        ),
        cluster=_validate(Cluster, cluster.data, [(cluster, ())]),
        forward_macs=_validate(dict[str, Positive], sizes.data.get(scale, {}), [(sizes, (scale,))]),
        trajectory=_validate(Trajectory, trajectory.data, [(trajectory, ())]),
    )
    Checker(project, {**files, "cluster": cluster, "trajectory": trajectory}).check()
    return project


def require_experiments(project: Project, names: Iterable[str]) -> None:
    """Raise a UserError with the nearest valid names where there is no such experiment."""
    for name in names:
        if name not in project.experiments:
            raise UserError(
                f"no experiment {name!r} in params/experiments.yaml; "
                f"{suggest(name, project.experiments)}"
            )


def _layers(scales: YamlFile, scale: str) -> tuple[str, ...]:
    """Return the scales that make up `scale`: what it is based on comes first, it comes last."""
    layers: tuple[str, ...] = ()
    base: str | None = scale
    while base is not None:
        if not isinstance(scales.data[base], dict):
            raise UserError(f"{scales.where((base,))}: expected a mapping")
        layers = (base, *layers)
        where, base = scales.where((base, "base")), scales.data[base].get("base")
        if base is not None and base not in scales.data:
            raise UserError(f"{where}: no scale {base!r}; {suggest(str(base), scales.data)}")
        if base in layers:
            circle = " -> ".join((*reversed(layers), base))
            raise UserError(f"{where}: bases form a circle: {circle}")
    return layers


def _joined(files: Mapping[str, YamlFile], sections: Mapping[str, dict[str, T]]) -> dict[str, T]:
    """Return the entries of several sections together; a name stands in one of them."""
    joined: dict[str, T] = {}
    for section, entries in sections.items():
        for name in entries:
            if name in joined:
                where = files[SECTIONS[section][0]].where((section, name))
                raise UserError(f"{where}: another file has a recipe of this name; rename one")
        joined |= entries
    return joined


def _merge(base: Any, over: Any) -> Any:
    """Return `base` with `over` laid on it: mappings key by key, everything else replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


class _Reader:
    """Resolves one section at a time: an entry's base, the entry, then the scale's overlays.

    `layers` are the scale and what it is based on, itself last.
    """

    def __init__(self, scales: YamlFile, layers: tuple[str, ...]) -> None:
        self.scales = scales
        self.layers = layers

    def section(
        self, file: YamlFile, section: str, kind: type | Callable[[Any], type]
    ) -> dict[str, Any]:
        """Return the entries of a section; where `kind` is no record, it tells which one is."""
        entries = file.data.get(section)
        if not isinstance(entries, dict):
            raise UserError(f"{file.path}: missing key {section}: expected a mapping of names")
        for key in file.data:
            if key not in SECTIONS:
                raise UserError(f"{file.where((key,))}: unknown key; valid: {section}")
        for name, entry in entries.items():
            if not isinstance(name, str) or not _NAME.match(name):
                raise UserError(
                    f"{file.where((section, name))}: a name is lower-case letters, digits and _, "
                    "80 at most"
                )
            if not isinstance(entry, dict):
                raise UserError(f"{file.where((section, name))}: expected a mapping of keys")
        for layer, name in self._overlaid(section):
            if name != "*" and name not in entries:
                raise UserError(
                    f"{self.scales.where((layer, section, name))}: no such entry in "
                    f"{file.path.name}; {suggest(name, entries)}"
                )
        records: dict[str, Any] = {}
        for name in entries:
            data = self._resolve(file, section, name, ())
            record = kind if isinstance(kind, type) else kind(data)
            records[name] = _validate(record, data, self._sources(file, section, name))
        return records

    def _resolve(
        self, file: YamlFile, section: str, name: str, seen: tuple[str, ...]
    ) -> dict[str, Any]:
        entries = file.data[section]
        own = dict(entries[name])
        base = own.pop("base", None)
        resolved: dict[str, Any] = {}
        if base is not None:
            where = file.where((section, name, "base"))
            if base not in entries:
                raise UserError(f"{where}: no entry {base!r}; {suggest(str(base), entries)}")
            if base in (*seen, name):
                raise UserError(f"{where}: bases form a circle: {' -> '.join((*seen, name, base))}")
            resolved = self._resolve(file, section, base, (*seen, name))
        resolved = _merge(resolved, own)
        for layer in self.layers:
            overlay = self.scales.data[layer].get(section, {})
            for key in ("*", name):
                resolved = _merge(resolved, overlay.get(key, {}))
        return resolved

    def _overlaid(self, section: str) -> Iterator[tuple[str, str]]:
        """Yield the names of a section that each scale lays something over."""
        for layer in self.layers:
            for name in self.scales.data[layer].get(section, {}):
                yield layer, name

    def _sources(self, file: YamlFile, section: str, name: str) -> list[tuple[YamlFile, KeyPath]]:
        """Return where the keys of an entry may stand, the strongest place first."""
        sources: list[tuple[YamlFile, KeyPath]] = []
        current: str | None = name
        while current is not None:
            for layer in reversed(self.layers):
                sources.append((self.scales, (layer, section, current)))
                sources.append((self.scales, (layer, section, "*")))
            sources.append((file, (section, current)))
            current = file.data[section][current].get("base")
        return sources


def _validate(
    kind: type[T],
    data: Any,
    sources: list[tuple[YamlFile, KeyPath]],
    skip: tuple[str, ...] = (),
) -> T:
    """Return `data` as a `kind`; on the first error, say where in `sources` it stands."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        # A mistyped key is unknown, and the right one missing: the typing error says more.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        location: KeyPath = tuple(part for part in first["loc"] if part != "[key]")
        raise UserError(
            f"{_where(location, sources)}: {_explain(kind, first, location, skip)}"
        ) from None
    except TypeError as error:
        raise UserError(f"{_where((), sources)}: {error}") from None


def _where(location: KeyPath, sources: list[tuple[YamlFile, KeyPath]]) -> str:
    for file, prefix in sources:
        if location and file.has((*prefix, *location)):
            return file.where((*prefix, *location))
    file, prefix = next((source for source in sources if source[0].has(source[1])), sources[-1])
    return file.where((*prefix, *location))


def _explain(kind: type[Any], error: Any, location: KeyPath, skip: tuple[str, ...]) -> str:
    if error["type"] == "extra_forbidden":
        valid = (*_keys_at(kind, location[:-1]), *skip)
        return f"unknown key; {suggest(str(location[-1]), valid)}"
    if error["type"] == "missing":
        return "this key is missing"
    message = error["msg"][0].lower() + error["msg"][1:]
    message = message.replace("tuple should", "list should")  # what it is in YAML
    return f"{message}, found {json.dumps(error['input'])}"


def _keys_at(kind: Any, location: KeyPath) -> tuple[str, ...]:
    """Return the keys that the record at `location` inside `kind` may have."""
    for part in location:
        if hasattr(kind, "model_fields"):
            kind = kind.model_fields[str(part)].annotation
        else:  # a mapping's values, or the items of a list
            kind = [each for each in get_args(kind) if each is not ...][-1]
        if get_origin(kind) in (Union, UnionType):
            kind = next(each for each in get_args(kind) if each is not NoneType)
    return tuple(kind.model_fields) if hasattr(kind, "model_fields") else ()
