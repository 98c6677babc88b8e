"""A file of others as the weights of a classifier of `params/`: the right variant, and a head."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smt.config.models import Model
from smt.errors import UserError, listed
from smt.models import released, weights, zoo
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
    path: Path, name: str, models: Mapping[str, Model], state: str | None = None
) -> ClassifierWeights:
    """Return the weights in `path` of the model that `models` have as `name`.

    `state` is as for `released.read`.

    Raises:
        UserError: the file cannot be read, has no classifier, or is of another model.
    """
    content = torch_file.read(path)
    _require_head(unwrap.states(content.tree), path)
    checkpoint = released.take(content, path, state)
    if not checkpoint.classes:
        raise UserError(_without_head(path, checkpoint.state))
    expected = zoo.skeleton(models[name], num_classes=checkpoint.classes).state_dict()
    try:
        tensors = released.to_ours(checkpoint.state, expected, path)
    except UserError:
        fitting = [other for other in models if _fits(checkpoint, models[other])]
        if not fitting or name in fitting:
            raise
        raise UserError(
            f"{path} holds weights of {' or '.join(fitting)}, not of {name}; give the file of "
            f"{name}, or name the other model"
        ) from None
    return ClassifierWeights(tensors, checkpoint)


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


def _fits(checkpoint: Checkpoint, model: Model) -> bool:
    """Return whether a model has exactly the names and shapes of a file."""
    ours = zoo.skeleton(model, num_classes=checkpoint.classes).state_dict()
    own = ours if released.is_ours(checkpoint.state) else released.to_released(ours)
    return weights.shapes(own) == weights.shapes(checkpoint.state)
