"""Semantic segmentation: a segmenter on images and label maps in ADE20K's layout."""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch

from smt.config.experiments import Run
from smt.config.heads import UPerNet as Head
from smt.config.project import Project
from smt.config.recipes import SegmentationRecipe
from smt.data.ade20k import ADE20KSplit
from smt.data.segmentation import segmentation_inputs, segmentation_loader
from smt.data.transforms.image import clear_padding
from smt.engine import optim
from smt.engine.distributed import Ranks
from smt.engine.protocol import MicroBatch, never
from smt.evaluation import semantic
from smt.evaluation.writer import LabelMapWriter
from smt.runs.paths import EvaluationOutputs, Layout
from smt.segmentation import inference
from smt.segmentation.upernet import UPerNet
from smt.tasks.downstream import Downstream


class Segmentation(Downstream):
    """The task of a segmentation run: see `smt.engine.protocol.Task`."""

    headline = "miou"
    model: UPerNet

    def __init__(
        self, project: Project, layout: Layout, run: Run, ranks: Ranks, *, inherit: bool = True,
        workers: int,
    ) -> None:  # fmt: skip
        super().__init__(project, layout, run, ranks, inherit=inherit, workers=workers)
        recipe = project.recipe_of(run.experiment)
        assert isinstance(recipe, SegmentationRecipe) and isinstance(self._head, Head)
        self.recipe = recipe
        self._classes = len(self._manifest.classes)
        self._val = ADE20KSplit(self._root, "val", self._manifest)
        self._loader = segmentation_loader(
            ADE20KSplit(self._root, "train", self._manifest),
            recipe,
            seed=run.seed,
            **self._loader_arguments,
        )

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        """Yield this rank's batches, on its device."""
        device = self._ranks.device
        for indices, batch in self._loader.micro_batches(epoch, start_step):
            images = clear_padding(self._normalise(batch.images), batch.sizes)
            labels = batch.labels.to(device, non_blocking=True).long()
            yield MicroBatch((images, labels), len(images), (epoch, indices.step, indices.number))

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True,
        outputs: EvaluationOutputs | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return mean IoU, mean accuracy and pixel accuracy in percent, of a single scale.

        Where it is `final`, those of the multi-scale test as well, under names that end in _ms.
        With `outputs`, single-scale predictions are written there, as ADE20K's test
        server takes it.

        Raises:
            EvaluationInterrupted: `interrupted` said so on some rank; none has a result then.
            UserError: predictions cannot be written.
        """
        measured = self._single_scale(interrupted, outputs)
        if final:
            evaluation = self.recipe.evaluation
            measured |= self._scores("_ms", evaluation.factors, evaluation.hflip, interrupted)
        return measured

    def _single_scale(
        self, interrupted: Callable[[], bool], outputs: EvaluationOutputs | None
    ) -> dict[str, float]:
        if outputs is None:
            return self._scores("", (1.0,), False, interrupted)
        maps = LabelMapWriter(outputs, self._val)
        with self._ranks.fail_together():
            if self._ranks.is_first:
                maps.begin()
        measured = self._scores("", (1.0,), False, interrupted, maps.add)
        samples = self._ranks.gather(maps.samples)
        with self._ranks.fail_together():
            if samples is not None:
                maps.end(samples)
        return measured

    def _scores(
        self, suffix: str, factors: tuple[float, ...], hflip: bool,
        interrupted: Callable[[], bool], keep: Callable[[int, np.ndarray], None] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        counts = np.zeros((self._classes, self._classes), np.int64)
        was_interrupted = False
        for index, prediction, truth in self._predictions(factors, hflip):
            if interrupted():
                was_interrupted = True
                break
            if keep is not None:
                keep(index, prediction)
            counts += semantic.confusion(prediction, truth, self._classes)
        self._raise_if_interrupted(was_interrupted)
        gathered = self._ranks.gather(counts) or [counts]
        scores = semantic.scores(self._ranks.broadcast(np.sum(gathered, axis=0)))
        return {
            f"miou{suffix}": scores.miou,
            f"mean_accuracy{suffix}": scores.mean_accuracy,
            f"pixel_accuracy{suffix}": scores.pixel_accuracy,
        }

    def _predictions(
        self, factors: tuple[float, ...], hflip: bool
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, predicted and true classes (H, W) of this rank's validation images."""
        inputs = segmentation_inputs(self._val, **self._loader_arguments)
        self.model.eval()
        try:
            with closing(inputs), torch.inference_mode():
                for index, pixels, truth in inputs:
                    with optim.autocast(self.recipe, self._ranks.device):
                        prediction = inference.predict(
                            self.model,
                            pixels,
                            self.recipe.evaluation,
                            factors=factors,
                            hflip=hflip,
                            device=self._ranks.device,
                        )
                    yield index, prediction, truth
        finally:
            self.model.train()
