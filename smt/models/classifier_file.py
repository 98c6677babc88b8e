"""A classifier in a file of weights, ours or released: what the file is, and the network of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smt.config.models import Model
from smt.errors import UserError, listed
from smt.models import released, weights, zoo
from smt.models.imports import torch_file, unwrap
from smt.models.smt import SMT

_TRUNK = "backbone."
"""Prefix of an SMT's names within detectors and segmenters, ours and released."""


@dataclass(frozen=True)
class ClassifierFile:
    """Weights of a classifier, and what their file says of itself."""

    path: Path
    checkpoint: released.Checkpoint
    metadata: Mapping[str, Any]
    """Of the run that exported the weights (experiment, seed, scale); empty for released ones."""

    @property
    def classes(self) -> int:
        """Rows of the classifier; 0 without one."""
        return self.checkpoint.classes

    def find_model(self, models: Mapping[str, Model], scale: str) -> str:
        """Return the name of the one model whose tensors have these names and shapes.

        Raises:
            UserError: no model has, or several.
        """
        names = self._fitting(models)
        if len(names) == 1:
            return names[0]
        if names:
            raise UserError(
                f"weights {self.path} fit several models of params/models.yaml "
                f"({listed(names)}): name the one by --model"
            )
        raise UserError(
            f"weights {self.path} have the names and shapes of no model of params/models.yaml at "
            f"scale {scale}; --model NAME says what differs from one, --scale chooses another scale"
        )

    def _fitting(self, models: Mapping[str, Model]) -> list[str]:
        actual = weights.shapes(self.checkpoint.state)
        return [name for name, model in models.items() if self._shapes_of(model) == actual]

    def _shapes_of(self, model: Model) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of a model's tensors, in the naming of this file."""
        state = zoo.skeleton(model, num_classes=self.classes).state_dict()
        in_this_naming = state if self._is_ours else released.to_released(state)
        return weights.shapes(in_this_naming)

    @property
    def _is_ours(self) -> bool:
        return released.is_ours(self.checkpoint.state)

    def state_of(self, name: str, models: Mapping[str, Model], scale: str) -> dict[str, Tensor]:
        """Return these weights in our naming, as those of the model `name` of `models` at `scale`.

        Raises:
            UserError: they are of another model or scale, or a tensor is missing, extra, misshapen
                or not finite.
        """
        expected = zoo.skeleton(models[name], num_classes=self.classes).state_dict()
        try:
            return released.to_ours(self.checkpoint.state, expected, self.path)
        except weights.OtherModel as error:
            recorded, fitting = self.metadata.get("scale", scale), self._fitting(models)
            if recorded != scale:
                differs = (
                    f"the file says that they are of {self.metadata.get('experiment', 'a run')} at "
                    f"scale {recorded}; give that model, and --scale {recorded}"
                )
            elif fitting:
                differs = (
                    f"they are of {' or '.join(fitting)}; give the file of {name}, or name the "
                    "other model"
                )
            else:
                differs = f"{error.differences}; check the model's name and --scale"
            raise UserError(
                f"weights {self.path} are not of {name} at scale {scale}: {differs}"
            ) from None

    def build(self, name: str, models: Mapping[str, Model], scale: str) -> SMT:
        """Return a model with these weights in float32 on the CPU, set to evaluation.

        Raises:
            UserError: as `state_of`.
        """
        state = self.state_of(name, models, scale)
        network = zoo.build(models[name], num_classes=self.classes)
        network.load_state_dict(state)
        return network.eval()


def read(path: Path, state: str | None = None) -> ClassifierFile:
    """Return a file of weights: a run's model.safetensors or a released checkpoint.

    The form is known by the content. No code of the file is run. `state` is as for `released.read`.

    Raises:
        UserError: no such file, no checkpoint, a damaged one, or one of no SMT, of a detector or of
            a segmenter.
    """
    content = torch_file.read(path)
    for tensors in unwrap.states(content.tree).values():
        _refuse_detector(tensors, path)
    return take(content, path, state)


def take(content: torch_file.Content, path: Path, state: str | None = None) -> ClassifierFile:
    """Return what `read` does, of a file that has been read; detectors are not looked for.

    Raises:
        UserError: as `read`.
    """
    checkpoint = released.take(content, path, state)
    if not unwrap.has_smt_names(checkpoint.state):
        parts = dict.fromkeys(name.partition(".")[0] for name in checkpoint.state)
        raise UserError(
            f"weights {path} are no SMT's: their parts are {listed(parts, 5)}; give a checkpoint "
            "of an SMT, and use timm's own tools for others"
        )
    return ClassifierFile(path, checkpoint, weights.parsed(content.metadata))


def _refuse_detector(state: Mapping[str, Any], path: Path) -> None:
    others = [name for name in state if not name.startswith(_TRUNK)]
    if others and len(others) < len(state):
        raise UserError(
            f"weights {path} are of a detector or segmenter: beside {_TRUNK} they have "
            f"{listed(others, 3)}; valid: weights of a classifier, such as its backbone alone: "
            f"smt convert {path} OUT.safetensors --model NAME --prefix {_TRUNK}"
        )
