"""Base of the downstream tasks, detection and segmentation."""

from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import nn

from smt.config.experiments import Run
from smt.config.project import Project
from smt.config.recipes import DownstreamRecipe
from smt.data.loader import Loader
from smt.data.rng import derive_seed
from smt.data.transforms.image import Normalise
from smt.datasets import manifest
from smt.engine.distributed import Ranks
from smt.engine.protocol import EvaluationInterrupted, MicroBatch
from smt.models.pyramid import Trunk, start_from_classifier
from smt.runs.paths import Layout
from smt.tasks.network import network


class LoaderArguments(TypedDict):
    """Arguments of the loaders that say which process reads which images."""

    rank: int
    world_size: int
    workers: int


class Downstream:
    """A head on a trunk, data with annotations, and a sum of named losses.

    The trunk starts from the parent's weights, the head from the run's seed; with `inherit` off
    both start from the seed, for weights that are loaded into them afterwards. `workers` is the
    number of data workers, which does not change what is read.
    """

    model: nn.Module
    """What is trained, on this rank's device."""
    _loader: Loader[Any]
    """The training micro-batches, which a task sets when its model is there."""

    def __init__(
        self, project: Project, layout: Layout, run: Run, ranks: Ranks, *, inherit: bool = True,
        workers: int,
    ) -> None:  # fmt: skip
        experiment = project.experiments[run.experiment]
        recipe = project.recipe_of(run.experiment)
        assert isinstance(recipe, DownstreamRecipe) and experiment.head is not None
        self._ranks = ranks
        self._loader_arguments = LoaderArguments(
            rank=ranks.rank, world_size=ranks.world_size, workers=workers
        )
        self._root = layout.dataset_root(project.datasets[recipe.dataset])
        self._manifest = manifest.read(layout, recipe.dataset)
        self._head = project.heads[experiment.head]
        torch.manual_seed(derive_seed(run.seed, "init"))
        self.model = network(project, run.experiment, classes=len(self._manifest.classes))
        parent = project.parent(run)
        if parent is not None and inherit:
            trunk = self.model.get_submodule("backbone")
            assert isinstance(trunk, Trunk)
            start_from_classifier(trunk, layout.weights(parent))
        self.model.to(ranks.device)

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise(self._ranks.device)

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch."""
        return self._loader.steps_per_epoch

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of this process in a global step."""
        return self._loader.accumulation_steps

    @staticmethod
    def loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Return the sum of the head's losses, in float32."""
        losses: dict[str, torch.Tensor] = model(*batch.loss_inputs)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def _raise_if_interrupted(self, interrupted: bool) -> None:
        """Raise EvaluationInterrupted on every rank if the evaluation of one was interrupted."""
        (stopped,) = self._ranks.sum(interrupted)
        if stopped:
            raise EvaluationInterrupted
