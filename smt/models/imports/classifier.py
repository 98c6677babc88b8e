"""A file of others as the weights of a classifier of `params/`: the right variant, and a head."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smt.config.models import Model
from smt.errors import UserError, listed
from smt.models import classifier_file, weights
from smt.models.imports import torch_file, unwrap
from smt.models.released import Checkpoint


class ClassifierWeights(NamedTuple):
    """Weights of a classifier, and the file that they are of."""

    state: dict[str, Tensor]
    """In this project's naming."""
    checkpoint: Checkpoint

    @property
    def classes(self) -> int:
        """Rows of the classifier."""
        return self.checkpoint.classes


def read(
    path: Path, name: str, models: Mapping[str, Model], scale: str, state: str | None = None
) -> ClassifierWeights:
    """Return the weights in `path` of the model that `models`, those of `scale`, have as `name`.

    `state` is as for `released.read`.

    Raises:
        UserError: the file cannot be read, has no classifier, or is of another model.
    """
    content = torch_file.read(path)
    _require_head(unwrap.states(content.tree), path)
    file = classifier_file.take(content, path, state)
    if not file.classes:
        raise UserError(_without_head(path, file.checkpoint.state))
    return ClassifierWeights(file.state_of(name, models, scale), file.checkpoint)


def _require_head(states: Mapping[str, Mapping[str, object]], path: Path) -> None:
    """Refuse a detector, of whose names `unwrap` could only say that prefixes differ."""
    names = [name for state in states.values() for name in state]
    if unwrap.has_smt_names(names) and not any(
        f".{name}".endswith(f".{weights.HEAD[0]}") for name in names
    ):
        raise UserError(_without_head(path, names))


def _without_head(path: Path, names: Iterable[str]) -> str:
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    return (
        f"{path} has no classifier ({weights.HEAD[0]}), so there are no classes to count right; "
        f"its parts are {listed(parts, 5)}: a backbone, detector or segmenter. Give the "
        "checkpoint of the classifier"
    )
