"""Parameters and multiply-accumulates of detectors and segmenters, part by part, at a fixed size.

Nothing is computed. Where a forward pass depends on what it finds, its largest numbers are counted,
as published tables do: all proposals for box heads, all detections for mask heads.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from smt.config.heads import Head
from smt.config.models import Model, TimmModel
from smt.config.peers import timm_peers
from smt.config.project import Project
from smt.config.yaml import YamlFile
from smt.detection.structures import Size
from smt.errors import UserError
from smt.models import timm_network
from smt.models.profile import Counts, count_forward
from smt.models.pyramid import Pyramid
from smt.runs.paths import default_params
from smt.tasks.network import backbone, explained_refusal, network, on_trunk

_NORMS_NOT_COUNTED = "box_heads"
"""Part whose norms the tool of the published counts leaves out: they are synchronised ones."""


@dataclass(frozen=True)
class Part:
    """A part of a model, by the name that its tensors start with."""

    parameters: int
    counts: Counts | None
    """Of one image; None for what is only trained with, or holds parameters and nothing else."""


@dataclass(frozen=True)
class Sizes:
    """What a model is and what one image costs it."""

    parts: dict[str, Part]

    @property
    def parameters(self) -> int:
        """Return the parameters of all parts, those that are only trained with among them."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def counts(self) -> Counts:
        """Return what prediction costs: the auxiliary head of a segmenter takes no part."""
        return _sum(part.counts for part in self.parts.values() if part.counts is not None)


def downstream_counts(
    model: Model | TimmModel, head: Head, classes: int, size: Size, resolution: int | None = None
) -> Sizes:
    """Return the sizes of `head` on the backbone `model`, for an image of `size`.

    `resolution` is that of the classifier which the backbone starts from, where that matters.
    """
    images = torch.empty(1, 3, *size, device="meta")
    with torch.device("meta"):
        trunk = (
            Pyramid(model, 0.0)
            if isinstance(model, Model)
            else timm_network.TimmPyramid(model, 0.0, resolution=resolution)
        )
        whole = on_trunk(trunk, head, classes)
    whole.eval().requires_grad_(False)
    with torch.no_grad():
        calls = whole.calls(trunk(images), size)
    costs = {"backbone": count_forward(trunk, images)} | {
        part: _sum(count_forward(module, *inputs) for module, inputs in modules)
        for part, modules in calls.items()
    }
    if (uncounted := costs.get(_NORMS_NOT_COUNTED)) is not None:
        costs[_NORMS_NOT_COUNTED] = replace(uncounted, norm_elements=0)
    parts = dict.fromkeys(name.split(".")[0] for name, _ in whole.named_parameters())
    return Sizes({name: Part(_parameters(whole, name), costs.get(name)) for name in parts})


def require_trainable(project: Project, experiment: str) -> None:
    """Refuse a model of timm that cannot be trained as an experiment says. Nothing is computed.

    Raises:
        UserError: names file and key.
    """
    entry, recipe = project.experiments[experiment], project.recipe_of(experiment)
    if not isinstance(project.models[entry.model], TimmModel):
        return
    size = (recipe.resolution, getattr(recipe, "resolution_long", recipe.resolution))
    with torch.device("meta"):
        if entry.head is not None:
            part: nn.Module = backbone(project, experiment)
        else:
            classes = project.datasets[recipe.dataset].classes
            part = network(project, experiment, classes=classes)
        with explained_refusal(project, experiment):
            timm_network.refuse_image(part, torch.empty(2, 3, *size))


@contextmanager
def explained_peer(table: str, peer: str) -> Iterator[None]:
    """Turn what timm refuses into a line on the peer whose model it is.

    Raises:
        UserError: names file and key.
    """
    try:
        yield
    except timm_network.Refusal as error:
        peers = YamlFile(default_params() / "peers.yaml")
        where = peers.where(("peer_tables", table, "peers", peer, "timm"))
        raise UserError(f"{where}: {error}") from None


def require_peers(project: Project) -> None:
    """Refuse names of peers that timm does not have.

    Raises:
        UserError: names file and key.
    """
    for table, key, name in timm_peers(project.peer_tables):
        with explained_peer(table, key):
            timm_network.require_model(name)


def _parameters(network: nn.Module, part: str) -> int:
    named = network.named_parameters()
    return sum(parameter.numel() for name, parameter in named if name.split(".")[0] == part)


def _sum(counts: Iterable[Counts]) -> Counts:
    first, *others = counts
    return sum(others, start=first)
