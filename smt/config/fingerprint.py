"""The fingerprint of a run: a hash of everything that changes its mathematics, of nothing else."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from smt.config.experiments import Run
from smt.config.project import Project

CODE_VERSION = 1
"""Raised by hand when a change of the training code changes results."""


_NOT_MATHEMATICS = {"title", "drop_path", "deterministic", "recompute", "compile"}
"""Keys of a recipe left out: the drop-path rate has an entry of its own, the order of sums depends
on the machine in any case, and what is computed again has the same bits."""


def inputs(project: Project, run: Run) -> tuple[str, ...]:
    """Return the data sets and class maps whose digests the fingerprint of `run` needs.

    Data sets come by name, class maps as `class_map:NAME`; those of every ancestor are in it.
    """
    names: dict[str, None] = {}
    for name in (run.experiment, *project.ancestors(run.experiment)):
        names.setdefault(project.dataset_of(name))
        start = project.experiments[name].start
        if start is not None and start.class_map is not None:
            names.setdefault(f"class_map:{start.class_map}")
    return tuple(names)


def content(project: Project, run: Run, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what the fingerprint of `run` is taken of, as plain JSON values.

    `digests` holds the SHA-256 of each of `inputs(project, run)`.
    """
    experiment = project.experiments[run.experiment]
    recipe = project.recipes[experiment.recipe]
    parent = project.parent(run)
    start = experiment.start
    class_map = start.class_map if start else None
    # A classifier has no head, and no such entry.
    head = {} if experiment.head is None else {"head": _without_title(project, experiment.head)}
    return {
        "code": CODE_VERSION,
        "task": experiment.task,
        **head,
        "model": _architecture(project, experiment.model),
        "recipe": recipe.model_dump(mode="json", exclude=_NOT_MATHEMATICS),
        "drop_path": project.drop_path(run.experiment),
        "classes": project.datasets[recipe.dataset].classes,
        "data": digests[recipe.dataset],
        "class_map": digests[f"class_map:{class_map}"] if class_map else None,
        "seed": run.seed,
        "parent": fingerprint(project, parent, digests) if parent else None,
    }


def _architecture(project: Project, model: str) -> dict[str, Any]:
    """Return what a model is, without what it is called.

    timm's version is not in it, as torch's is not: requirements.lock pins both, and provenance has
    them. The fingerprint can so be worked out where neither is installed.
    """
    content: dict[str, Any] = project.models[model].model_dump(
        mode="json", exclude={"title", "name"}
    )
    return content


def _without_title(project: Project, head: str) -> dict[str, Any]:
    content: dict[str, Any] = project.heads[head].model_dump(mode="json", exclude={"title"})
    return content


def fingerprint(project: Project, run: Run, digests: Mapping[str, str]) -> str:
    """Return the fingerprint of `run`: 64 hexadecimal digits."""
    return digest(content(project, run, digests))


def digest(content: Mapping[str, Any]) -> str:
    """Return the fingerprint of what `content` returned, also when it was read from a file."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
