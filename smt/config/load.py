"""Reading `params/`: inheritance, the scale's overlay, validation with file, line and key."""

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from smt.config.cluster import Cluster
from smt.config.consistency import ConsistencyChecker
from smt.config.models import TimmModel, TimmSize
from smt.config.project import Project, Scale
from smt.config.published import Discrepancy, Reported
from smt.config.sections import OF_EVERY_SCALE, RECIPES, SECTIONS
from smt.config.trajectory import Trajectory
from smt.config.types import Positive, problems_within
from smt.config.yaml import KeyPath, YamlFile
from smt.errors import UserError, suggest

T = TypeVar("T")

_NAME = re.compile(r"^[a-z0-9][a-z0-9_]{0,79}$")
TIMM_SIZES = "timm"
"""Key of sizes.yaml under which models of timm stand, of every scale."""
_OVERLAY_SECTIONS = tuple(name for name in SECTIONS if name not in OF_EVERY_SCALE)


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
    scale_values: dict[str, Any] = {}
    for layer in layers:
        scale_values = _merge(scale_values, scales.data[layer])
    scale_values = {
        key: value for key, value in scale_values.items() if key not in (*_OVERLAY_SECTIONS, "base")
    }
    reader = _SectionReader(scales, layers)
    sections = {
        name: reader.section(files[file], name, kind) for name, (file, kind) in SECTIONS.items()
    }
    sections["models"] |= reader.timm_models
    project = Project(
        scale_name=scale,
        scale=_validate(
            Scale,
            scale_values,
            [(scales, (layer,)) for layer in reversed(layers)],
            skip=(*_OVERLAY_SECTIONS, "base"),
        ),
        recipes=_merge_sections(files, {name: sections.pop(name) for name in RECIPES.values()}),
        reported=_validate(Reported, files["reported"].data, [(files["reported"], ())]),
        **sections,
        discrepancies=tuple(
            _validate(Discrepancy, entry, [(drift, ("discrepancies", index))])
            for index, entry in enumerate(drift.data.get("discrepancies", ()))
        ),
        cluster=_validate(Cluster, cluster.data, [(cluster, ())]),
        forward_macs=_validate(dict[str, Positive], sizes.data.get(scale, {}), [(sizes, (scale,))]),
        timm_sizes=_validate(
            dict[str, TimmSize], sizes.data.get(TIMM_SIZES, {}), [(sizes, (TIMM_SIZES,))]
        ),
        trajectory=_validate(Trajectory, trajectory.data, [(trajectory, ())]),
    )
    ConsistencyChecker(project, {**files, "cluster": cluster, "trajectory": trajectory}).check()
    return project


def locate(params: Path, scale: str, experiment: str, key_path: KeyPath) -> str:
    """Return `file:line: key` where a scale or an experiment gives a key of the experiment.

    Keys of a model of timm stand in the experiment that describes it, which may be another one.
    """
    scales, file = (YamlFile(params / f"{name}.yaml") for name in ("scales", "experiments"))
    reader = _SectionReader(scales, _layers(scales, scale))
    models = {
        name: reader._resolve(file, "experiments", name, ()).get("model")
        for name in file.data["experiments"]
    }
    if key_path[0] == "model" and isinstance(models[experiment], str):
        owners = (
            name for name, model in models.items()
            if isinstance(model, dict) and model.get("name", model["timm"]) == models[experiment]
        )  # fmt: skip
        experiment = next(owners, experiment)
    given = (
        (source, (*prefix, *key_path))
        for source, prefix in reader._sources(file, "experiments", experiment)
        if source.has((*prefix, *key_path))
    )
    source, path = next(given, (file, ("experiments", experiment, *key_path)))
    return source.where(path)


def require_experiments(project: Project, names: Iterable[str]) -> None:
    """Raise a UserError with the nearest valid names where there is no such experiment."""
    for name in names:
        if name not in project.experiments:
            raise UserError(
                f"no experiment {name!r} in params/experiments.yaml; "
                f"{suggest(name, project.experiments)}"
            )


def _layers(scales: YamlFile, scale: str) -> tuple[str, ...]:
    """Return the scales that make up `scale`: its bases first, itself last."""
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
            cycle = " -> ".join((*reversed(layers), base))
            raise UserError(f"{where}: bases form a cycle: {cycle}")
    return layers


def _merge_sections(
    files: Mapping[str, YamlFile], sections: Mapping[str, dict[str, T]]
) -> dict[str, T]:
    """Return the entries of several sections together; a name may stand in one of them only."""
    merged: dict[str, T] = {}
    for section, entries in sections.items():
        for name in entries:
            if name in merged:
                where = files[SECTIONS[section][0]].where((section, name))
                raise UserError(f"{where}: another file has a recipe of this name; rename one")
        merged |= entries
    return merged


def _merge(base: Any, over: Any) -> Any:
    """Return `base` with `over` laid on it: mappings key by key, everything else replaced.

    Another model of timm takes over neither title nor arguments.
    """
    if isinstance(base, dict) and isinstance(over, dict):
        if "timm" in base and over.get("timm", base["timm"]) != base["timm"]:
            return over
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


class _SectionReader:
    """Resolves one section at a time: an entry's base, the entry, then the scale's overlays.

    `layers` are the scale and what it is based on, itself last.
    """

    def __init__(self, scales: YamlFile, layers: tuple[str, ...]) -> None:
        self.scales = scales
        self.layers = layers
        self.timm_models: dict[str, TimmModel] = {}
        """Models that experiments take from timm, by name."""
        self.smt_models: frozenset[str] = frozenset()
        """Names of the models of models.yaml."""

    def section(
        self, file: YamlFile, section: str, kind: type | Callable[[Any], type]
    ) -> dict[str, Any]:
        """Return the entries of a section; `kind` is a record, or returns that of an entry."""
        entries = file.data.get(section)
        if not isinstance(entries, dict):
            raise UserError(f"{file.path}: missing key {section}: expected a mapping of names")
        if section == "models":
            self.smt_models = frozenset(entries)
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
        for layer, name in self._overlay_entries(section):
            if name != "*" and name not in entries:
                raise UserError(
                    f"{self.scales.where((layer, section, name))}: no such entry in "
                    f"{file.path.name}; {suggest(name, entries)}"
                )
        records: dict[str, Any] = {}
        for name in entries:
            data = self._resolve(file, section, name, ())
            if section == "experiments" and isinstance(data.get("model"), dict):
                data["model"] = self._timm_model(file, name, data["model"])
            record = kind if isinstance(kind, type) else kind(data)
            records[name] = _validate(record, data, self._sources(file, section, name))
            for location, problem in problems_within(records[name]):
                # Values of several places do not fit: name the entry that brings them together.
                where = file.where((section, name, *location))
                raise UserError(f"{where}: {problem} (at scale {self.layers[-1]})")
        return records

    def _timm_model(self, file: YamlFile, experiment: str, data: dict[str, Any]) -> str:
        """Add the model of timm that an experiment describes to `timm_models`; return its name."""
        sources = self._sources(file, "experiments", experiment)
        places: list[tuple[YamlFile, KeyPath]] = [
            (file, (*path, "model")) for file, path in sources
        ]
        named = {key: data["timm"] for key in ("title", "name") if "timm" in data}
        model = _validate(TimmModel, named | data, places)
        for location, problem in model.problems():
            raise UserError(f"{_where(location, places)}: {problem}")
        if model.name in self.smt_models:
            raise UserError(
                f"{_where((), places)}: models.yaml has a model {model.name}; give this one "
                "another `name`"
            )
        other = self.timm_models.setdefault(model.name, model)
        if other != model:
            raise UserError(
                f"{_where((), places)}: another experiment has a model {model.name} with other "
                f"keys; write model: {model.name} here to share it, or give this one a `name`"
            )
        return model.name

    def _resolve(
        self, file: YamlFile, section: str, name: str, visited: tuple[str, ...]
    ) -> dict[str, Any]:
        entries = file.data[section]
        entry = dict(entries[name])
        base = entry.pop("base", None)
        resolved: dict[str, Any] = {}
        if base is not None:
            where = file.where((section, name, "base"))
            if base not in entries:
                raise UserError(f"{where}: no entry {base!r}; {suggest(str(base), entries)}")
            if base in (*visited, name):
                raise UserError(
                    f"{where}: bases form a cycle: {' -> '.join((*visited, name, base))}"
                )
            resolved = self._resolve(file, section, base, (*visited, name))
        resolved = _merge(resolved, entry)
        for layer in self.layers:
            overlay = self.scales.data[layer].get(section, {})
            for key in ("*", name):
                resolved = _merge(resolved, overlay.get(key, {}))
        return resolved

    def _overlay_entries(self, section: str) -> Iterator[tuple[str, str]]:
        """Yield scale and name of each overlay on a section."""
        for layer in self.layers:
            for name in self.scales.data[layer].get(section, {}):
                yield layer, name

    def _sources(self, file: YamlFile, section: str, name: str) -> list[tuple[YamlFile, KeyPath]]:
        """Return where the keys of an entry may stand, the place that takes precedence first."""
        sources: list[tuple[YamlFile, KeyPath]] = []
        current: str | None = name
        while current is not None:
            for layer in reversed(self.layers):
                sources.append((self.scales, (layer, section, current)))
                sources.append((self.scales, (layer, section, "*")))
            sources.append((file, (section, current)))
            current = file.data[section][current].get("base")
        return sources


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validate(
    kind: type[T],
    data: Any,
    sources: list[tuple[YamlFile, KeyPath]],
    skip: tuple[str, ...] = (),
) -> T:
    """Return `data` as a `kind`; on the first error, say where in `sources` it stands."""
    try:
        adapter: TypeAdapter[T] = _adapter(cast("Hashable", kind))
        return adapter.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        # A mistyped key is unknown, and the right one missing: the typing error says more.
        first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
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
    if error["type"] == "value_error":  # ours: pydantic puts words of its own before it
        message = str(error["ctx"]["error"])
    else:
        message = error["msg"][0].lower() + error["msg"][1:]
    # What it is in YAML.
    message = message.replace("tuple should", "list should").replace("a valid array", "a list")
    return f"{message}, found {json.dumps(error['input'])}"


def _keys_at(kind: Any, location: KeyPath) -> tuple[str, ...]:
    """Return the keys that the record at `location` inside `kind` may have."""
    for part in location:
        if hasattr(kind, "model_fields"):
            kind = kind.model_fields[str(part)].annotation
        else:  # a mapping's values, or the items of a list
            kind = [argument for argument in get_args(kind) if argument is not ...][-1]
        if get_origin(kind) in (Union, UnionType):
            kind = next(argument for argument in get_args(kind) if argument is not NoneType)
    return tuple(kind.model_fields) if hasattr(kind, "model_fields") else ()
