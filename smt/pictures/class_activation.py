"""Class activation by Grad-CAM (Selvaraju et al., ICCV 2017): where the evidence of a class lies.

A few lines, since a library would be a dependency for one call: grad-cam brings OpenCV, captum
its own hooks and attribution classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from smt.errors import UserError
from smt.models.smt import SMT
from smt.pictures.maps import recorded

MIN_POSITIONS = 4
"""Rows and columns that a map has at least: one of 1 x 1 would say nothing of where."""


@dataclass(frozen=True)
class ClassActivation:
    """Where in each image the evidence of a class lies."""

    maps: Tensor
    """(B, h, w), 0 or more: weighted sums of channels, in units of the logit."""
    classes: Tensor
    """(B,): the class that each map is of."""
    probabilities: Tensor
    """(B,): what the softmax gives that class."""
    stage: int
    """The stage (from 1) whose output the maps are of."""


def class_activation(network: SMT, images: Tensor, label: int | None = None) -> ClassActivation:
    """Return the evidence of class `label`, by default of the class that each image is taken for.

    `images` are (B, 3, H, W), normalised. The maps are of the last stage's output, or where that
    has fewer than 4 x 4 positions of the last stage that has as many. A channel's weight is the
    mean gradient of the logit.

    Raises:
        UserError: a network without a classifier, or a class that it does not have.
    """
    if network.num_classes == 0:
        raise UserError("class activation: these weights have no classifier")
    if label is not None and not 0 <= label < network.num_classes:
        raise UserError(f"class {label}: valid: 0 to {network.num_classes - 1}")
    with recorded(dict(enumerate(network.stages, start=1))) as outputs, torch.enable_grad():
        logits = network(images)
    classes = logits.argmax(1) if label is None else torch.full((len(images),), label)
    evidence = logits.gather(1, classes[:, None])
    stage = max((it for it in outputs if min(outputs[it].shape[1:3]) >= MIN_POSITIONS), default=1)
    (gradient,) = torch.autograd.grad(evidence.sum(), outputs[stage])
    weights = gradient.mean((1, 2), keepdim=True)
    maps = (weights * outputs[stage]).sum(-1).relu().detach()
    probabilities = logits.detach().softmax(1).gather(1, classes[:, None])[:, 0]
    return ClassActivation(maps, classes, probabilities, stage)
