"""What a run costs on the cluster of `params/cluster.yaml`: GPU-hours, attempts, resources.

An estimate from MACs, images and the stated rate of a GPU for a model, or from the images/s that a
run has reached. GPUs are taken to share a training without loss; waiting in the queue is not in it.
"""

from dataclasses import dataclass
from math import ceil

from smt.config import macs
from smt.config.cluster import Cluster
from smt.config.models import Model
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe, Precision, Recipe, SegmentationRecipe
from smt.errors import UserError

FLOPS_PER_MAC = 2
TRAINING_PASSES = 3
"""Forward, and backward as two of it: gradients of what a layer reads, and of its weights."""
RECOMPUTED_PASSES = TRAINING_PASSES + 1
"""With `recompute`: blocks run forward once more. A head does not, which is taken to be little."""
FP32_RATE = 0.5
"""Of the rate in half precision: memory decides, and every number takes twice as many bytes."""


@dataclass(frozen=True)
class Estimate:
    """What a run of an experiment costs."""

    resolution: int
    """Pixels of the shorter side."""
    macs: int
    """Of a forward pass of one image."""
    images: int
    """Training images of an epoch; what does not fill a global batch is left out."""
    epochs: int
    gpus: int
    images_per_second: float
    """Training images on one GPU."""
    compute_hours: float
    """Of all GPUs at once: steps, and the evaluations between epochs."""
    attempts: int
    """Jobs that the training takes under the time limit."""
    wall_hours: float
    """From the start of the first attempt to the end of the last, start-ups and tails included."""
    evaluation_hours: float
    """Of the evaluation of the exported weights, a job of its own on one GPU."""

    @property
    def requeues(self) -> int:
        return self.attempts - 1

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.wall_hours + self.evaluation_hours


@dataclass(frozen=True)
class Resources:
    """What the training of a run asks of SLURM, by the names that Snakemake has for it."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_mb: int
    """Memory of a node."""
    runtime: int
    """Minutes."""


def estimate(project: Project, experiment: str, rate: float | None = None) -> Estimate:
    """Return what each run of `experiment` costs.

    `rate` is what a GPU was measured to reach, in training images per second; without one it
    follows from the cluster's figures.
    """
    recipe = project.recipe_of(experiment)
    dataset, cluster, scale = project.datasets[recipe.dataset], project.cluster, project.scale_name
    epochs, forward = recipe.schedule.epochs, forward_macs(project, experiment)
    speed = flops_per_second(cluster, recipe.precision, project.experiments[experiment].model)
    pass_seconds = FLOPS_PER_MAC * forward / speed
    each = training_passes(project, experiment)
    if rate is not None:
        pass_seconds = 1 / (rate * each)
    images = project.steps_per_epoch(experiment) * recipe.global_batch
    evaluated = ceil(epochs / recipe.eval_every) * dataset.val_images
    gpus = gpus_of(project, experiment)
    final = (final_passes(recipe) - 1) * dataset.val_images
    passes = each * epochs * images + evaluated + final
    compute_hours = passes * pass_seconds / gpus / 3600
    attempts = attempts_for(compute_hours, cluster, scale)
    startup_hours = cluster.startup_hours(scale)
    return Estimate(
        resolution=recipe.resolution,
        macs=forward,
        images=images,
        epochs=epochs,
        gpus=gpus,
        images_per_second=1 / (each * pass_seconds),
        compute_hours=compute_hours,
        attempts=attempts,
        wall_hours=compute_hours + attempts * startup_hours + (attempts - 1) * cluster.tail_hours,
        evaluation_hours=startup_hours
        + final_passes(recipe) * dataset.val_images * pass_seconds / 3600,
    )


def training_passes(project: Project, experiment: str) -> float:
    """Return how many forward passes, of the image that the recipe counts at, an image takes."""
    recomputes = project.recomputes(experiment, on_gpu=True)
    passes = RECOMPUTED_PASSES if recomputes else TRAINING_PASSES
    return passes * trained_area(project.recipe_of(experiment))


def trained_area(recipe: Recipe) -> float:
    """Return the area of a training image over that of the image that the recipe counts at.

    A segmenter trains on crops. Of other recipes both count as equal; convolutions and linears,
    which are most of the MACs, go with the area.
    """
    if not isinstance(recipe, SegmentationRecipe):
        return 1.0
    return recipe.augment.crop**2 / (recipe.resolution * recipe.resolution_long)


def final_passes(recipe: Recipe) -> float:
    """Return how many forward passes the last evaluation takes for each image, by their area.

    That of a segmenter is one at a single scale, and one at each of several, with their mirror
    images.
    """
    if not isinstance(recipe, SegmentationRecipe):
        return 1.0
    several = sum(factor**2 for factor in recipe.evaluation.factors)
    return 1 + several * (2 if recipe.evaluation.hflip else 1)


def forward_macs(project: Project, experiment: str) -> int:
    """Return the MACs of a forward pass of one image, at the size that the recipe counts at.

    Raises:
        UserError: params/sizes.yaml has no MACs of the experiment's head on its model.
    """
    entry = project.experiments[experiment]
    recipe = project.recipes[entry.recipe]
    if isinstance(recipe, ClassificationRecipe):
        classes = project.datasets[recipe.dataset].classes
        model = project.models[entry.model]
        if isinstance(model, Model):
            return macs.forward(model, recipe.resolution, num_classes=classes).total
        counted = model.sized_text(recipe.resolution, classes)
        if counted not in project.timm_sizes:
            raise _uncounted(f"timm.{counted}", experiment)
        return project.timm_sizes[counted].macs
    counted = project.counted_as(project.systems[entry.system])
    if counted not in project.forward_macs:
        raise _uncounted(f"{project.scale_name}.{counted}", experiment)
    return project.forward_macs[counted]


def _uncounted(key: str, experiment: str) -> UserError:
    return UserError(
        f"params/sizes.yaml: {key} is missing, which {experiment} trains; count it: "
        "smt profile --update"
    )


def flops_per_second(cluster: Cluster, precision: Precision, model: str) -> float:
    """Return the FLOPs per second that a GPU of the cluster reaches in training a model."""
    half = cluster.kind.tflops * 1e12 * cluster.kind.efficiency * cluster.speed.of(model)
    return half * FP32_RATE if precision in ("fp32", "tf32") else half


def attempts_for(compute_hours: float, cluster: Cluster, scale: str) -> int:
    """Return how many jobs it takes to compute for so long under the cluster's time limit."""
    return max(1, ceil(compute_hours / cluster.useful_hours(scale)))


def gpus_of(project: Project, experiment: str) -> int:
    """Return the GPUs that each training of `experiment` gets."""
    share = project.cluster.scales[project.scale_name]
    return share.gpus_of(experiment, project.experiments[experiment].recipe)[0]


def nodes_for(gpus: int, gpus_per_node: int) -> tuple[int, int]:
    """Return the fewest nodes that hold `gpus`, as many on each, and how many that is."""
    per_node = max(n for n in range(1, gpus_per_node + 1) if gpus % n == 0)
    return gpus // per_node, per_node


def resources(project: Project, experiment: str, *, task_memory_mb: int) -> Resources:
    """Return what the training of a run asks for, where each process takes `task_memory_mb`."""
    nodes, per_node = nodes_for(gpus_of(project, experiment), project.cluster.gpus_per_node)
    return Resources(
        nodes=nodes,
        tasks_per_node=per_node,
        gpus_per_node=per_node,
        cpus_per_task=project.scale.cpus,
        mem_mb=per_node * task_memory_mb,
        runtime=runtime_minutes(estimate(project, experiment), project.cluster),
    )


def runtime_minutes(estimated: Estimate, cluster: Cluster) -> int:
    """Return the minutes to ask for: the estimate with its margin, no more than the limit."""
    wanted = max(cluster.floor_minutes, ceil(60 * estimated.wall_hours * cluster.margin))
    return min(wanted, int(60 * cluster.wall_hours))
