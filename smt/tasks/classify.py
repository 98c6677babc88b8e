"""Image classification: a network with its classifier on images in ImageNet's layout."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from smt.config.experiments import Run
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.data.classification import TrainLoader
from smt.data.imagenet import ImageFolder
from smt.data.rng import derive_seed
from smt.data.transforms.image import Normalise
from smt.datasets import manifest
from smt.engine.distributed import Ranks
from smt.engine.protocol import EvaluationInterrupted, MicroBatch, never
from smt.evaluation.top_k import score
from smt.models import weights
from smt.models.compiled import compile_blocks
from smt.runs.paths import Layout
from smt.tasks.network import head_names, network
from smt.tasks.predict import predict

if TYPE_CHECKING:
    from smt.data.transforms.classification import Mix


class Classification:
    """The task of a classification run: see `smt.engine.protocol.Task`.

    The model is initialised from the run's seed, or from its parent's weights, whose head is cut
    down by the class map where the data sets differ. With `inherit` off it starts from the seed
    all the same, for weights that are loaded into it afterwards. `workers` is the number of data
    workers, which does not change what is read.
    """

    headline = "top1"

    def __init__(
        self, project: Project, layout: Layout, run: Run, ranks: Ranks, *, inherit: bool = True,
        workers: int,
    ) -> None:  # fmt: skip
        recipe = project.recipe_of(run.experiment)
        assert isinstance(recipe, ClassificationRecipe)
        self.recipe = recipe
        self._run, self._ranks = run, ranks
        self._workers = workers
        dataset = project.datasets[self.recipe.dataset]
        root = layout.dataset_root(dataset)
        data_manifest = manifest.read(layout, self.recipe.dataset)
        self._train = ImageFolder(root, "train", data_manifest)
        self._val = ImageFolder(root, "val", data_manifest) if dataset.val_images else None
        self._classes = dataset.classes
        self.model = self._build(project, layout, inherit)
        self._loader = TrainLoader(
            self._train,
            self.recipe,
            seed=run.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=self._workers,
        )
        self.steps_per_epoch = self._loader.steps_per_epoch
        self.accumulation_steps = self._loader.accumulation_steps

    def _build(self, project: Project, layout: Layout, inherit: bool) -> nn.Module:
        experiment = project.experiments[self._run.experiment]
        torch.manual_seed(derive_seed(self._run.seed, "init"))
        model = network(project, self._run.experiment, classes=self._classes)
        parent = project.parent(self._run)
        if parent is not None and inherit:
            assert experiment.start is not None
            source = layout.weights(parent)
            state = weights.read(source)
            if experiment.start.class_map is not None:
                rows = manifest.rows(layout, experiment.start.class_map)
                state = weights.select_head_rows(state, rows, head_names(model))
            weights.load_state(model, state, source)
        model = model.to(self._ranks.device).to(memory_format=torch.channels_last)
        if self.recipe.compile:
            compile_blocks(model)
        return model

    @cached_property
    def _mix(self) -> "Mix":
        from smt.data.transforms.classification import Mix  # timm, which an evaluation does without

        return Mix(self.recipe.augment, self._classes)

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise(self._ranks.device)

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        """Yield this rank's batches, mixed and on its device."""
        for batch in self._loader.batches(epoch, start_step):
            key = (epoch, batch.step, batch.number)
            labels = batch.labels.to(self._ranks.device, non_blocking=True)
            images, targets = self._mix(
                batch.inputs(self._normalise), labels, self._run.seed, "mix", *key
            )
            yield MicroBatch((images, targets), len(labels), key)

    @staticmethod
    def loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Return the cross entropy with soft targets, in float32."""
        images, targets = batch.loss_inputs
        return F.cross_entropy(model(images).float(), targets)

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True
    ) -> dict[str, float]:
        """Return top1 and top5 in percent and the mean loss; every image counts once.

        Raises:
            EvaluationInterrupted: `interrupted` said so on some rank; none has a result then.
        """
        if self._val is None:
            return {}
        self.model.eval()
        counts = self._ranks.sum(*self._count_correct(self._val, interrupted))
        self.model.train()
        top1, top5, loss, images, was_interrupted = counts
        if was_interrupted:
            raise EvaluationInterrupted
        return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss / images}

    def _count_correct(
        self, folder: ImageFolder, interrupted: Callable[[], bool]
    ) -> tuple[int, int, float, int, bool]:
        """Return this rank's right in one guess, in five, losses, images; and if interrupted."""
        top1 = top5 = images = 0
        loss = 0.0
        batches = predict(self.model, folder, self.recipe, self._ranks, workers=self._workers)
        with closing(batches):
            for logits, labels in batches:
                if interrupted():
                    return 0, 0, 0.0, 0, True
                scores = score(logits, labels)
                loss += scores.losses.sum().item()
                top1 += int(scores.hits[:, 0].sum())
                top5 += int(scores.hits.sum())
                images += len(labels)
        return top1, top5, loss, images, False
