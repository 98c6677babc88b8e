"""The network of an experiment, as it is before its first step."""

from typing import TYPE_CHECKING

from torch import nn

from smt.config.heads import Detector, Head, UPerNet
from smt.config.project import Project
from smt.config.recipes import DownstreamRecipe
from smt.models.pyramid import Pyramid
from smt.models.smt import SMT

if TYPE_CHECKING:
    from smt.detection.structures import DetectionModel
    from smt.segmentation import upernet


def network(project: Project, experiment: str, *, classes: int) -> nn.Module:
    """Return it in float32 on the CPU, its weights initialised from torch's global generator.

    A classifier takes images (B, 3, H, W) to logits (B, classes). A detector or segmenter has its
    trunk under `backbone`; the trunk's weights are initialised first, then the head's.
    """
    entry = project.experiments[experiment]
    model, drop_path = project.models[entry.model], project.drop_path(experiment)
    if entry.head is None:
        return SMT(model, num_classes=classes, drop_path_rate=drop_path)
    recipe = project.recipes[entry.recipe]
    assert isinstance(recipe, DownstreamRecipe)
    trunk = Pyramid(model, drop_path, recipe.drop_path_mode)
    return on_trunk(trunk, project.heads[entry.head], classes)


def on_trunk(trunk: Pyramid, head: Head, classes: int) -> "DetectionModel | upernet.UPerNet":
    """Return the detector or segmenter that a head makes of a trunk."""
    # Imported only when needed: all heads together take seconds.
    if isinstance(head, UPerNet):
        from smt.segmentation import upernet

        return upernet.UPerNet(trunk, head=head, classes=classes)
    from smt.detection import build

    assert isinstance(head, Detector)
    return build.build(trunk, head, classes)
