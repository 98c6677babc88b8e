"""The network of an experiment, as it is before its first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from smt.config.heads import Detector, Head, UPerNet
from smt.config.load import locate
from smt.config.models import TimmModel
from smt.config.project import Project
from smt.config.recipes import DownstreamRecipe
from smt.errors import UserError
from smt.models import weights
from smt.models.pyramid import Pyramid, Trunk
from smt.models.smt import SMT
from smt.runs.paths import default_params

if TYPE_CHECKING:
    from smt.detection.structures import DetectionModel
    from smt.segmentation import upernet


def network(project: Project, experiment: str, *, classes: int) -> nn.Module:
    """Return it in float32 on the CPU, its weights initialised from torch's global generator.

    A classifier takes images (B, 3, H, W) to logits (B, classes). A detector or segmenter has its
    trunk under `backbone`; the trunk's weights are initialised first, then the head's.

    Raises:
        UserError: timm refuses what the experiment asks of it.
    """
    entry = project.experiments[experiment]
    if entry.head is not None:
        head = project.heads[entry.head]
        return on_trunk(backbone(project, experiment), head, classes)
    model, drop_path = project.models[entry.model], project.drop_path(experiment)
    if isinstance(model, TimmModel):
        from smt.models import timm_network

        with explained_refusal(project, experiment):
            return timm_network.classifier(
                model, num_classes=classes, drop_path_rate=drop_path,
                resolution=project.recipe_of(experiment).resolution,
            )  # fmt: skip
    return SMT(model, num_classes=classes, drop_path_rate=drop_path)


@contextmanager
def explained_refusal(project: Project, experiment: str) -> Iterator[None]:
    """Turn what timm refuses into a line on the experiment whose model it is.

    Raises:
        UserError: names file and key.
    """
    from smt.models import timm_network  # timm takes seconds, and SMT does without

    try:
        yield
    except timm_network.Refusal as error:
        key_path = tuple(error.key.split("."))
        where = locate(default_params(), project.scale_name, experiment, key_path)
        raise UserError(f"{where}: {error}") from None


def head_names(classifier: nn.Module) -> tuple[str, ...]:
    """Return the tensors of a classifier that have a row for each class."""
    if isinstance(classifier, SMT):
        return weights.HEAD
    from smt.models import timm_network

    return timm_network.head_names(classifier)


def backbone(project: Project, experiment: str) -> Trunk:
    """Return the trunk of an experiment with a head.

    Raises:
        UserError: as `network`.
    """
    recipe = project.recipe_of(experiment)
    assert isinstance(recipe, DownstreamRecipe)
    model = project.models[project.experiments[experiment].model]
    drop_path = project.drop_path(experiment)
    if isinstance(model, TimmModel):
        from smt.models import timm_network

        with explained_refusal(project, experiment):
            return timm_network.TimmPyramid(
                model, drop_path, recipe.drop_path_mode, project.trunk_resolution(experiment)
            )
    return Pyramid(model, drop_path, recipe.drop_path_mode)


def on_trunk(trunk: Trunk, head: Head, classes: int) -> "DetectionModel | upernet.UPerNet":
    """Return the detector or segmenter that a head makes of a trunk."""
    # Imported only when needed: all heads together take seconds.
    if isinstance(head, UPerNet):
        from smt.segmentation import upernet

        return upernet.UPerNet(trunk, head=head, classes=classes)
    from smt.detection import build

    assert isinstance(head, Detector)
    return build.build(trunk, head, classes)
