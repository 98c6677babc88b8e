"""Released weights, evaluated here: the authors' checkpoints in this project's own evaluation.

Images are evaluated in a fixed random order, and each one's prediction is kept as soon as it is
there. So the first N are a random sample, which an evaluation of all images goes on from, and what
was interrupted goes on where it was.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from smt.config.fingerprint import CODE_VERSION
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.config.released import RELEASE, ReleasedWeights, recipe_for
from smt.data.imagenet import ImageFolder
from smt.data.rng import derive_seed
from smt.datasets import manifest, scan
from smt.datasets.decoding import EncodedImage
from smt.datasets.labelled_images import LabelledImages, images_of
from smt.engine import cpus
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.errors import DataError, UserError, listed, suggest
from smt.evaluation import top_k
from smt.evaluation.image_predictions import Columns, ImagePrediction, PredictionFile
from smt.models.imports import classifier
from smt.models.imports.classifier import ClassifierWeights
from smt.models.smt import SMT
from smt.runs import provenance, record, shared_folder
from smt.runs.atomic import sha256
from smt.runs.lock import exclusive
from smt.runs.paths import Layout
from smt.runs.record import MAIN_PACKAGES
from smt.runs.released import EvaluatedImages, ReleasedEvaluation, UsedPreprocessing, WeightsFile
from smt.tasks import environment
from smt.tasks.evaluation import LOCK
from smt.tasks.evaluation_progress import EvaluationProgress
from smt.tasks.network import network
from smt.tasks.predict import predict

SAMPLE_SEED = 0
"""Of the order in which images are evaluated."""

CPU_BATCH = 32
"""Images of a forward pass on a CPU: few are lost when it is interrupted."""

CHECK_EVERY = 1000
"""Images after which the order of the classes is checked, before hours are spent on a wrong one."""


class EvaluationStopped(Exception):
    """A signal asked to stop; what is done is on disk."""


@dataclass(frozen=True)
class _Selection(Sequence[tuple[Path | EncodedImage, int]]):
    """Some images in an order of their own."""

    images: LabelledImages
    indices: Sequence[int]

    @property
    def samples(self) -> Sequence[tuple[Path | EncodedImage, int]]:
        return self

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(  # type: ignore[override]
        self, place: int
    ) -> tuple[Path | EncodedImage, int]:
        return self.images.samples[self.indices[place]]


@dataclass(frozen=True)
class ReleasedTask:
    """Weights of others, the images to evaluate them on, and how; checked before anything runs."""

    layout: Layout
    experiment: str
    model_name: str
    file: Path
    settings: ReleasedWeights
    weights: ClassifierWeights
    weights_sha256: str
    images: LabelledImages
    expected_images: int
    """Of the data set that the experiment is evaluated on."""
    recipe: ClassificationRecipe
    network: SMT

    @property
    def count(self) -> int:
        """Images that are asked for."""
        return min(self.settings.images or len(self.images), len(self.images))

    @cached_property
    def order(self) -> list[int]:
        """Every image, by number, in the order in which they are evaluated."""
        generator = np.random.default_rng(derive_seed(SAMPLE_SEED, "released"))
        return [int(index) for index in generator.permutation(len(self.images))]

    @cached_property
    def predictions(self) -> Path:
        """Where predictions are kept: another file for other weights, images or preprocessing."""
        decisive = [
            CODE_VERSION, self.weights_sha256, self.weights.checkpoint.key, self.model_name,
            self.network.spec.model_dump(mode="json"), self.images.digest, self.images.classes,
            self.recipe.resolution, self.recipe.evaluation.model_dump(mode="json"),
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
        return self.layout.released(self.experiment).with_name(f"predictions-{key}.csv")


def threads(project: Project) -> int:
    """Return the CPU threads of an evaluation: those of the scale, on a small machine fewer."""
    share = cpus.cpu_share(os.environ, len(os.sched_getaffinity(0)))
    return min(project.scale.threads, share.cpus)


def prepare(
    project: Project, layout: Layout, experiment: str, file: Path, settings: ReleasedWeights
) -> ReleasedTask:
    """Return the evaluation of `file` in the place of an experiment's weights.

    Paths in `settings` are absolute, or below the data folder.

    Raises:
        UserError: no such file, one of another model, of other classes or without a classifier, or
            an unknown preprocessing.
        DataError: no such images, or their folders are not in the order of the classes.
    """
    if not file.is_file() and not file.is_dir():  # what a folder is, its reader says
        raise UserError(f"no released weights {file}; download them, and give their path")
    model_name = project.experiments[experiment].model
    recipe = _recipe(project, experiment, settings)
    models = project.smt_models
    weights = classifier.read(file, model_name, models, layout.scale, settings.state)
    images = _images(project, layout, experiment, settings)
    dataset = project.datasets[project.dataset_of(experiment)]
    _require_same_classes(file, weights.classes, images, dataset.classes, settings)
    model = network(project, experiment, classes=weights.classes)
    assert isinstance(model, SMT)
    model.load_state_dict(weights.state)
    return ReleasedTask(
        layout, experiment, model_name, file, settings, weights, sha256(file), images,
        dataset.val_images, recipe, model,
    )  # fmt: skip


def _recipe(project: Project, experiment: str, settings: ReleasedWeights) -> ClassificationRecipe:
    valid = (RELEASE, *project.preprocessings)
    if settings.preprocessing not in valid:
        raise UserError(
            f"--preprocessing: no entry {settings.preprocessing!r} in params/released.yaml; "
            f"{suggest(settings.preprocessing, valid)}"
        )
    recipe = project.recipe_of(experiment)
    assert isinstance(recipe, ClassificationRecipe)
    chosen = project.preprocessings.get(settings.preprocessing)
    return recipe_for(recipe, chosen, settings.resolution)


def _images(
    project: Project, layout: Layout, experiment: str, settings: ReleasedWeights
) -> LabelledImages:
    """Return the images of the settings, or the validation images of the data set."""
    name = project.dataset_of(experiment)
    dataset = project.datasets[name]
    root = layout.data_file(settings.data) if settings.data else layout.dataset_root(dataset)
    labels = layout.data_file(settings.labels) if settings.labels else None
    own = settings.data is None and labels is None
    if own and shared_folder.exists(layout.manifest(name)):
        listing = manifest.read_current(project, layout, name)
        folder = ImageFolder(root, "val", listing)
        digest = listing.splits["val"].sha256
        return LabelledImages(root, folder.samples, folder.classes, digest, "bytes")
    if scan.is_pack(root):
        raise DataError(
            f"{root} is a pack, which is read through its manifest: without --data and --labels, "
            f"after {manifest.manifest_command(layout, name)}; or give a folder of images a class"
        )
    images = images_of(root, labels)
    if own and len(images) != dataset.val_images:
        raise DataError(
            f"{images.root} has {len(images):,} of {dataset.val_images:,} images of {name}; copy "
            "the rest, or name the folder by --data if it is to be so"
        )
    return images


def _require_same_classes(
    file: Path, classes: int, images: LabelledImages, expected: int, settings: ReleasedWeights
) -> None:
    """Refuse images of other classes than a file's, and name the folders that differ."""
    here = len(images.classes)
    if settings.labels is not None:
        if here != classes:
            raise UserError(
                f"{file} has {classes:,} classes, and --labels {settings.labels} names {here:,}; "
                f"give a file of {classes:,} lines with the class folders in the order of the "
                "weights' classes"
            )
        return
    _refuse_other_synsets(classes, images)
    if here == classes:
        return
    what = f"{file} has {classes:,} classes, and {images.root} {here:,}"
    if classes == expected and here < classes:
        raise DataError(
            f"{what}; bring the folders of all classes, or give --labels a file of {classes:,} "
            "lines with the class folders in the order of the weights' classes"
        )
    if classes == expected:
        raise DataError(f"{what}; remove the folders that are none of the weights' classes")
    raise UserError(
        f"{what}: give weights of {here:,} classes, such as those that were "
        "fine-tuned; the rows of a larger head are selected by: smt convert --class-map"
    )


def _refuse_other_synsets(classes: int, images: LabelledImages) -> None:
    """Refuse folders named by synsets that are not those of ImageNet-1K, for as many classes.

    Its classes are numbered as the synsets are sorted, so that one other folder would move those
    behind it.
    """
    from timm.data.imagenet_info import ImageNetInfo

    own = ImageNetInfo("imagenet-1k").label_names()
    if classes != len(own) or not set(own) & set(images.classes):
        return
    others = sorted(set(images.classes) - set(own))
    missing = sorted(set(own) - set(images.classes))
    if others:
        lacks = f" and lacks {listed(missing, 3)}" if missing else ""
        do = "bring ImageNet-1K's, or give --labels" if missing else "remove them"
        raise DataError(
            f"{images.root} has class folders that ImageNet-1K has not: {listed(others, 3)}"
            f"{lacks}; the folders behind them would be other classes: {do}"
        )
    if missing:
        raise DataError(
            f"{images.root} lacks class folders of ImageNet-1K: {listed(missing, 3)}; bring them, "
            f"or give --labels a file of {classes:,} lines with every class folder, sorted by name"
        )


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(
    task: ReleasedTask, project: Project, ranks: Ranks, stop: StopRequest
) -> ReleasedEvaluation:
    """Return the numbers of released weights, and write them beside the predictions.

    Raises:
        EvaluationStopped: `stop` said so; the same call goes on.
        DataError: an image cannot be read, or the classes of the images are in another order than
            those of the weights.
        TrainingError: another process evaluates the same already.
    """
    started = time.monotonic()
    path = task.layout.released(task.experiment)
    with exclusive(path.parent, LOCK, "evaluates"):
        names = [task.images.name(index) for index in task.order]
        with closing(PredictionFile(task.predictions, names)) as predictions:
            _predict(task, project, ranks, stop, predictions)
            columns = predictions.columns(max(task.count, len(predictions.rows)))
        _require_class_order(task, columns)
        result = _result(task, columns, ranks, time.monotonic() - started)
        record.write(path, result)
    return result


def _predict(
    task: ReleasedTask,
    project: Project,
    ranks: Ranks,
    stop: StopRequest,
    predictions: PredictionFile,
) -> None:
    """Add the predictions of the images that are missing among those asked for."""
    done = len(predictions.rows)
    todo = task.order[done : task.count]
    model = task.network.eval().to(ranks.device).to(memory_format=torch.channels_last)
    on_cpu = ranks.device.type == "cpu"
    batch = min(task.recipe.device_batch, CPU_BATCH) if on_cpu else task.recipe.device_batch
    recipe = task.recipe.model_copy(update={"device_batch": batch})
    workers = cpus.data_workers(project.scale.workers, ranks)
    selection = _Selection(task.images, todo)
    batches = predict(model, selection, recipe, ranks, workers=workers)
    title = f"{task.experiment}, released weights"
    right = predictions.columns(done).hits(1)
    checked = done
    stop.defer_signals()
    with EvaluationProgress(title, task.count, done) as progress, closing(batches):
        for logits, labels in batches:
            rows = _rows(logits, labels, [task.images.name(index) for index in
                                          task.order[done : done + len(labels)]])  # fmt: skip
            predictions.append(rows)
            done += len(rows)
            right += sum(row.best[0] == row.label for row in rows)
            progress.show(done, 100 * right / done)
            if done - checked >= CHECK_EVERY:
                checked = done
                _require_class_order(task, predictions.columns(done))
            if stop.requested and done < task.count:
                raise EvaluationStopped(f"stopped after {done:,} of {task.count:,} images")


def _rows(
    logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]
) -> list[ImagePrediction]:
    losses, best, _ = top_k.score(logits, labels)
    columns = zip(names, labels.tolist(), best.tolist(), losses.tolist(), strict=True)
    return [ImagePrediction(name, label, tuple(top), loss) for name, label, top, loss in columns]


def _require_class_order(task: ReleasedTask, columns: Columns) -> None:
    """Refuse images whose folders are in another order than the classes of the weights."""
    classes = task.weights.classes
    found = top_k.renumbering(columns.labels, columns.best[:, 0], classes)
    if found is None:
        return
    examples = ", ".join(
        f"{task.images.classes[label]} is number {label} here and {number} there"
        for label, number in found.moved[:3]
    )
    raise DataError(
        f"{task.images.root}: its classes are in another order than those of {task.file}: of "
        f"{len(columns.labels):,} images {100 * found.accuracy:.1f} % have the label that the "
        f"weights say (by chance: {100 / classes:.2g} %), and {100 * found.renumbered:.1f} % once "
        f"classes are renumbered one to one ({examples}); give --labels a file with the class "
        "folders in the order of the weights' classes"
    )


def _result(
    task: ReleasedTask, columns: Columns, ranks: Ranks, seconds: float
) -> ReleasedEvaluation:
    count, population = len(columns.labels), len(task.images)
    hits = {"top1": columns.hits(1), "top5": columns.hits(top_k.TOP)}
    metrics = {name: 100 * value / count for name, value in hits.items()}
    sampled = count < population
    path = task.layout.released(task.experiment)
    labels = task.layout.data_file(task.settings.labels) if task.settings.labels else None
    evaluation, checkpoint = task.recipe.evaluation, task.weights.checkpoint
    gpus = [torch.cuda.get_device_name()] if ranks.device.type == "cuda" else []
    versions = {name.lower(): version for name, version in provenance.packages().items()}
    return ReleasedEvaluation(
        experiment=task.experiment,
        model=task.model_name,
        scale=task.layout.scale,
        weights=WeightsFile(
            path=str(task.file),
            sha256=task.weights_sha256,
            bytes=task.file.stat().st_size,
            state=checkpoint.key,
            notes=list(checkpoint.notes),
            recorded=dict(checkpoint.facts.recorded),
        ),
        data=EvaluatedImages(
            root=str(task.images.root),
            images=population,
            expected=task.expected_images,
            classes=len(task.images.classes),
            content=task.images.content,
            digest=task.images.digest,
            labels=None if labels is None else str(labels),
            labels_sha256=None if labels is None else sha256(labels),
        ),
        preprocessing=UsedPreprocessing(
            name=task.settings.preprocessing,
            resolution=task.recipe.resolution,
            resize=evaluation.resize,
            crop_ratio=evaluation.crop_ratio,
        ),
        images=count,
        sample_seed=SAMPLE_SEED,
        metrics={**metrics, "loss": float(columns.losses.mean())},
        intervals={name: top_k.interval(value, count) for name, value in hits.items()}
        if sampled
        else {},
        interval=top_k.INTERVAL if sampled else "",
        predictions=task.predictions.name,
        predictions_sha256=sha256(task.predictions),
        seconds=seconds,
        finished=time.time(),
        environment=environment.of(ranks, task.recipe),
        hardware=provenance.hardware(gpus),
        git=provenance.git_state(path.parent),
        packages={name: versions[name] for name in MAIN_PACKAGES if name in versions},
    )


def with_changes(settings: ReleasedWeights | None, **changes: object) -> ReleasedWeights:
    """Return settings of params with those that a command line names; None leaves one as it is."""
    given = {key: value for key, value in changes.items() if value is not None}
    base = settings or ReleasedWeights(file=None)
    return ReleasedWeights.model_validate({**base.model_dump(), **given})
