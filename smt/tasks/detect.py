"""Object detection: a detector on images and annotations in COCO's layout."""

from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from smt.config.experiments import Run
from smt.config.heads import TwoStage
from smt.config.project import Project
from smt.config.recipes import DetectionRecipe
from smt.data.coco import CocoSplit
from smt.data.detection import DetectionBatch, detection_inputs, detection_loader, pad
from smt.data.transforms.detection import DetectionInput
from smt.data.transforms.image import clear_padding
from smt.detection.structures import DetectionModel, Target
from smt.engine import optim
from smt.engine.distributed import Ranks
from smt.engine.protocol import MicroBatch, never
from smt.evaluation import coco, predictions
from smt.evaluation.predictions import ImageResult
from smt.evaluation.writer import write_detections
from smt.runs.paths import EvaluationOutputs, Layout
from smt.tasks.downstream import Downstream


class Detection(Downstream):
    """The task of a detection run: see `smt.engine.protocol.Task`."""

    headline = "box_ap"
    model: DetectionModel

    def __init__(
        self, project: Project, layout: Layout, run: Run, ranks: Ranks, *, inherit: bool = True,
        workers: int,
    ) -> None:  # fmt: skip
        super().__init__(project, layout, run, ranks, inherit=inherit, workers=workers)
        recipe = project.recipe_of(run.experiment)
        assert isinstance(recipe, DetectionRecipe)
        self.recipe = recipe
        self._kinds: tuple[predictions.Kind, ...] = ("bbox",)
        self._threshold = 0.0
        if isinstance(self._head, TwoStage):
            self._kinds, self._threshold = ("bbox", "segm"), self._head.mask_threshold
        masks = "segm" in self._kinds
        self._val = CocoSplit(self._root, "val", self._manifest, masks=masks)
        self._loader = detection_loader(
            CocoSplit(self._root, "train", self._manifest, masks=masks),
            recipe,
            masks=masks,
            seed=run.seed,
            **self._loader_arguments,
        )

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        """Yield this rank's batches, on its device."""
        for indices, batch in self._loader.micro_batches(epoch, start_step):
            key = (epoch, indices.step, indices.number)
            yield MicroBatch(self._on_device(batch), len(batch.images), key)

    def _on_device(self, batch: DetectionBatch) -> tuple[torch.Tensor, list[Target]]:
        device = self._ranks.device
        targets = [
            Target(
                sample.boxes.to(device, non_blocking=True),
                sample.labels.to(device, non_blocking=True),
                sample.size,
                None if sample.masks is None else sample.masks.to(device, non_blocking=True),
            )
            for sample in batch.samples
        ]
        sizes = [sample.size for sample in batch.samples]
        return clear_padding(self._normalise(batch.images), sizes), targets

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True,
        outputs: EvaluationOutputs | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return COCO's average precisions and recalls in percent, of boxes and of masks.

        With `outputs`, detections are written there, as COCO's test server takes it.

        Raises:
            EvaluationInterrupted: `interrupted` said so on some rank; none has a result then.
            UserError: detections cannot be written.
        """
        detections = self.detections(interrupted)
        measured = self.average_precision(detections)
        if outputs is not None:
            with self._ranks.fail_together():
                if detections is not None:
                    write_detections(outputs, self._val, detections, self._kinds)
        return measured

    def average_precision(self, detections: list[ImageResult] | None) -> dict[str, float]:
        """Return the metrics of what rank 0 has of all ranks, the same on every rank."""
        metrics: dict[str, float] = {}
        with self._ranks.fail_together():
            if detections is not None:
                metrics = coco.evaluate(self._val.annotation_file, detections, kinds=self._kinds)
        return self._ranks.broadcast(metrics)

    def detections(self, interrupted: Callable[[], bool] = never) -> list[ImageResult] | None:
        """Return the detections of each validation image, by id, on rank 0; None on the others.

        Raises:
            EvaluationInterrupted: as `evaluate` does.
        """
        self.model.eval()
        try:
            own, was_interrupted = self._detect(interrupted)
        finally:
            self.model.train()
        self._raise_if_interrupted(was_interrupted)
        gathered = self._ranks.gather(own)
        if gathered is None:
            return None
        results = [result for part in gathered for result in part]
        return sorted(results, key=lambda result: result.image_id)

    def _detect(self, interrupted: Callable[[], bool]) -> tuple[list[ImageResult], bool]:
        """Return the results of this rank's images, and whether that was interrupted."""
        results = []
        inputs = detection_inputs(self._val, self.recipe, **self._loader_arguments)
        with closing(inputs), torch.inference_mode():
            for index, detection_input in inputs:
                if interrupted():
                    return [], True
                results.append(self._result(index, detection_input))
        return results, False

    def _result(self, index: int, detection_input: DetectionInput) -> ImageResult:
        images = pad([self._normalise(detection_input.image)])
        with optim.autocast(self.recipe, self._ranks.device):
            (detections,) = self.model.predict(images, [detection_input.size])
        return predictions.image_result(
            detections,
            self._val.images[index].id,
            input_size=detection_input.size,
            size=detection_input.original_size,
            categories=self._val.category_ids,
            mask_threshold=self._threshold,
        )
