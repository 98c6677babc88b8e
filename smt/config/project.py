"""The nouns of the project, read from `params/` and validated: what is trained, and how.

`smt.config.load.load_project` is the only way in. Everything here is frozen.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field

from smt.config.augment import (
    DetectionAugment,
    DetectionEvaluation,
    SegmentationAugment,
    SegmentationEvaluation,
)
from smt.config.cluster import Cluster
from smt.config.heads import Detector, TwoStage, UPerNet
from smt.config.metrics import MEASURED, METRICS
from smt.config.trajectory import Trajectory
from smt.config.types import Fraction, Name, Positive, PositiveFloat, Strict
from smt.errors import suggest

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]

Mixer = Literal["sam", "msa", "alternate", "half"]
Aggregation = Literal["saa", "none", "conv1x1", "dense", "dense_expand"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""tf32: float32, of whose mantissas GPUs multiply 10 bits; on a CPU it is fp32."""


class Model(Strict):
    """An architecture: a variant of the paper or an ablation. Four values are one a stage."""

    title: str
    """How tables call it."""
    widths: tuple[Positive, Positive, Positive, Positive]
    """Channels."""
    depths: tuple[Positive, Positive, Positive, Positive]
    """Blocks."""
    mlp_ratios: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
    """Hidden channels of the MLP over the stage's channels."""
    stem_kernel: Literal[3, 7]
    """Kernel of the stem's first convolution."""
    layer_scale: PositiveFloat | None
    """Initial value of LayerScale, or null for none."""
    mixers: tuple[Mixer, Mixer, Mixer, Mixer]
    """sam, msa, alternate (SAM first) or half (first half SAM, then MSA)."""
    mhmc_heads: Positive
    """Heads of MHMC; head i convolves with a kernel of 3 + 2i."""
    msa_heads: tuple[Positive, Positive, Positive, Positive]
    """Heads of MSA; read only in stages whose mixer has MSA."""
    aggregation: Aggregation
    """What follows MHMC: SAA, or what an ablation puts in its place."""

    def block_mixers(self, stage: int) -> tuple[Literal["sam", "msa"], ...]:
        """Return the mixer of each block of `stage` (0 to 3)."""
        depth, mixer = self.depths[stage], self.mixers[stage]
        if mixer == "alternate":
            return tuple("msa" if block % 2 else "sam" for block in range(depth))
        if mixer == "half":
            # With an odd depth the middle block is SAM.
            return tuple("sam" if 2 * block < depth else "msa" for block in range(depth))
        return (mixer,) * depth


class Optimizer(Strict):
    """AdamW and the gradient."""

    lr: PositiveFloat
    """Peak learning rate at a global batch of `lr_batch`; scaled linearly to the real one."""
    lr_batch: Positive
    """Global batch at which the three learning rates of the recipe are stated."""
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    """Applied to parameters of two or more dimensions; biases and norms have none."""
    clip_norm: PositiveFloat | None
    """Largest L2 norm of the whole gradient."""


class DownstreamOptimizer(Optimizer):
    """AdamW of detectors and segmenters."""

    decay: Literal["all", "all_but_layer_norm"]
    """What weight decay is applied to: every parameter, or all but those of LayerNorms. Biases and
    BatchNorms decay, as they do in the released configs."""
    backbone_rate: PositiveFloat
    """Learning rate of the backbone over that of the head."""


class Schedule(Strict):
    """Linear warm-up, then cosine, both per step."""

    epochs: Positive
    warmup_epochs: Annotated[int, Field(ge=0)]
    warmup_lr: Annotated[float, Field(ge=0)]
    """Learning rate of step 0, at `lr_batch`."""
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate that the cosine ends in, at `lr_batch`."""


class StepSchedule(Strict):
    """Linear warm-up over the first steps, then a constant rate that drops at some epochs."""

    epochs: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    warmup_ratio: Fraction
    """Learning rate of step 0 over the one without warm-up."""
    milestones: tuple[Positive, ...]
    """Epochs after which the rate is multiplied by `gamma`."""
    gamma: PositiveFloat


class PolySchedule(Strict):
    """A number of steps rather than epochs; the rate falls as a power of what is left of them."""

    steps: Positive
    interval: Positive
    """Steps that count as an epoch: after them the model is evaluated and saved."""
    warmup_steps: Annotated[int, Field(ge=0)]
    warmup_ratio: Fraction
    """Learning rate of step 0 over the one without warm-up."""
    power: PositiveFloat
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate at the end, at `lr_batch`."""

    @property
    def epochs(self) -> int:
        """Intervals of the whole run."""
        return self.steps // self.interval


class Augment(Strict):
    """Training-time augmentation, in timm's terms."""

    scale: tuple[PositiveFloat, PositiveFloat]
    """Area of the random resized crop over the image's."""
    ratio: tuple[PositiveFloat, PositiveFloat]
    """Aspect ratio of the random resized crop."""
    hflip: Fraction
    rand_augment: str | None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1."""
    color_jitter: Annotated[float, Field(ge=0)]
    """Used only where there is no RandAugment, as timm does."""
    random_erasing: Fraction
    """Probability; erased pixels are noise, one draw a pixel."""
    mixup: Annotated[float, Field(ge=0)]
    """Alpha of Mixup's beta distribution; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)]
    """Alpha of CutMix's beta distribution; 0 is off."""
    mix_prob: Fraction
    """Probability that a batch is mixed at all."""
    mix_switch_prob: Fraction
    """Probability of CutMix rather than Mixup where both are on."""
    label_smoothing: Fraction


class Evaluation(Strict):
    """How an image is brought to the model's resolution for evaluation."""

    resize: Literal["crop", "squash"]
    """crop: short side to resolution / crop_ratio, then the centre; squash: straight to square."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)]


class Guard(Strict):
    """What is done with a step whose loss or gradient is not finite, or whose loss jumps."""

    policy: Literal["stop", "skip"]
    """skip: leave the step out and go on, with a warning and a line in the journal."""
    max_skips: Annotated[int, Field(ge=0)]
    """Steps of a run that may be skipped; at the next one it stops."""
    spike: PositiveFloat | None
    """A loss further above its running mean than this many times its running mean deviation is
    such a step as well, from the 100th step on; null for no such rule."""


class Recipe(Strict):
    """How a model is trained."""

    FILE: ClassVar[str]
    """Of params/, where recipes of this kind stand."""
    WARMUP: ClassVar[str]
    """Key of how long the learning rate rises."""

    title: str
    dataset: Name
    resolution: Annotated[int, Field(ge=32)]
    """Side of the square that a classifier sees, in pixels; of a detector or segmenter, the shorter
    side of the image that its size is counted at."""
    global_batch: Positive
    """Images per optimizer step over all processes and accumulation steps."""
    device_batch: Positive
    """Images per forward pass of one process at most: BatchNorm sees this many."""
    precision: Precision
    deterministic: bool
    """Whether the same bits are asked for every time, so that an interrupted run ends in the bytes
    of an undisturbed one; false: whatever is quickest on a GPU. Not part of the fingerprint."""
    optimizer: Optimizer
    schedule: Schedule | StepSchedule | PolySchedule
    guard: Guard
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    """Drop-path rate of the last block; an experiment may set its own."""
    unreadable_images: Literal["stop", "skip"]
    """skip: another image of the epoch takes the place of one that cannot be decoded."""
    eval_every: Positive
    """Epochs between evaluations; the last epoch is always evaluated."""

    @property
    def half_precision(self) -> bool:
        """Whether most of it is computed in 16 bits, which is for GPUs."""
        return self.precision in ("bf16", "fp16")

    @property
    def chunks(self) -> int:
        """Forward passes that make a global batch, over all processes."""
        return self.global_batch // self.device_batch


class ClassificationRecipe(Recipe):
    """How a classifier is trained."""

    FILE = "recipes.yaml"
    WARMUP = "schedule.warmup_epochs"
    schedule: Schedule
    augment: Augment
    evaluation: Evaluation


class DownstreamRecipe(Recipe):
    """How a detector or segmenter is trained."""

    optimizer: DownstreamOptimizer
    drop_path_mode: Literal["stochastic", "dropout"]
    """stochastic: a block's branch is dropped for an image (the paper); dropout: element by
    element (the release's detection and segmentation code)."""
    resolution_long: Annotated[int, Field(ge=32)]
    """Longer side of the image that its size is counted at."""


class DetectionRecipe(DownstreamRecipe):
    """How a detector is trained."""

    FILE = "detection.yaml"
    WARMUP = "schedule.warmup_steps"
    schedule: StepSchedule
    augment: DetectionAugment
    evaluation: DetectionEvaluation


class SegmentationRecipe(DownstreamRecipe):
    """How a segmenter is trained."""

    FILE = "segmentation.yaml"
    WARMUP = "schedule.warmup_steps"
    schedule: PolySchedule
    augment: SegmentationAugment
    evaluation: SegmentationEvaluation


class Dataset(Strict):
    """Images on disk, in the layout that the data set is published in."""

    title: str
    layout: Literal["imagenet", "coco", "ade20k"] = "imagenet"
    """imagenet: `train/CLASS/IMAGE`, `val/CLASS/IMAGE`. coco: `train2017/IMAGE`,
    `val2017/IMAGE`, `annotations/instances_train2017.json` and `instances_val2017.json`. ade20k:
    `images/training/NAME.jpg` with `annotations/training/NAME.png`, and `validation` likewise."""
    root: str
    """Folder, absolute or below the data folder (`--data`, SMT_DATA, or data/)."""
    classes: Positive
    train_images: Positive
    also_published: tuple[Positive, ...] = ()
    """Other counts of training images that copies of the data set have: one of them is no sign of
    an incomplete copy, but has to be chosen as `train_images`."""
    val_images: Annotated[int, Field(ge=0)]
    """0 where the data set has no validation split."""
    images_with_objects: Positive | None = None
    """Training images that show an object, of a coco data set: the others are not trained on."""
    source: str
    """Where classes and counts are published."""
    generator: Literal["digits", "digit_pairs", "scenes_coco", "scenes_ade20k"] | None
    """Demo data are made by this; null where the user brings the data."""

    @property
    def trained_images(self) -> int:
        """Images of an epoch."""
        return self.images_with_objects or self.train_images


class ClassMap(Strict):
    """For each class of the target data set, the row of the source head that starts it."""

    source: Name
    """Data set of the head that is cut down."""
    target: Name
    """Data set of the new head."""
    path: str
    """Text file, one source class number a line, absolute or below the data folder."""


class Start(Strict):
    """Where an experiment's weights come from."""

    experiment: Name
    """Its run of the same seed, or of its only seed. A detector or segmenter takes its backbone
    from a classifier."""
    class_map: Name | None
    """Needed where the two data sets differ in classes, and both runs classify."""


Task = Literal["classify", "detect", "segment"]


def system_name(head: str | None, model: str) -> str:
    """Return what stands in files for a head on a model."""
    return f"{head}.{model}"


class Experiment(Strict):
    """A model trained by a recipe."""

    title: str
    task: Task
    model: Name
    recipe: Name
    group: Literal["pretrain", "finetune", "ablation", "detect", "segment"]
    """Which rule of the DAG trains it."""
    head: Name | None = None
    """What stands on the model in detection and segmentation."""
    start: Start | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """In place of the recipe's."""
    seeds: (
        Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] | None
    ) = None
    """In place of the scale's."""

    @property
    def system(self) -> str:
        """Name of its head and model, as in `mask_rcnn.smt_small`."""
        return system_name(self.head, self.model)


class Source(Strict):
    """Where a published number stands."""

    title: str
    where: str
    """Enough to find it: document, section or table."""


class ReportedValue(Strict):
    """A published number, or one that was derived from published ones."""

    value: float
    source: Name
    derived_for: tuple[Name, ...] = ()
    """Tables that it was worked out for, and stands in; the source does not print it. Empty for a
    number that the source prints, which stands in every table."""


class Reported(Strict):
    """Every published number, by experiment, by model or by system, then by metric."""

    sources: dict[Name, Source]
    experiments: dict[Name, dict[Name, ReportedValue]]
    models: dict[Name, dict[Name, ReportedValue]]
    systems: dict[str, dict[Name, ReportedValue]] = {}
    """By head and model, as in `mask_rcnn.smt_small`."""


class System(NamedTuple):
    """A head on a model, as it is trained and measured."""

    head: str
    model: str
    classes: int
    size: tuple[int, int]
    """Height and width, in pixels, of the image that its cost is counted at."""

    @property
    def name(self) -> str:
        """What stands for it in files: head and model."""
        return system_name(self.head, self.model)

    @property
    def resolution(self) -> str:
        """The size in words."""
        return f"{self.size[0]} x {self.size[1]}"


class Finding(Strict):
    """A place where the paper, the release and this project do not agree."""

    subject: str
    paper: str
    release: str
    ours: str
    """May name a measured size as {model.metric}, filled in from `smt profile`."""
    kind: Literal["size", "recipe", "code", "missing", "protocol"]
    """protocol: how numbers are taken that are the same in name."""


def _metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"no such metric; {suggest(name, METRICS)}")
    return name


MetricName = Annotated[str, AfterValidator(_metric)]


class Row(Strict):
    """One line of a table."""

    label: str
    experiment: Name
    columns: dict[str, str] = {}
    """Further cells that describe the row, such as a number of heads."""


class Table(Strict):
    """One of the paper's tables."""

    title: str
    caption: str
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    baseline: Name | None = None
    """Experiment whose result the gain column is measured from."""
    tolerance: Annotated[float, Field(ge=0)]
    """Distance from the reported value, in the metric's unit, that counts as reproduced."""
    sizes: bool = False
    """Whether parameters and MACs of each row's head and model stand beside its results."""


class ProvedRun(Strict):
    """A run that is trained undisturbed and interrupted, to see that both end the same."""

    experiment: Name
    ranks: Positive
    """Processes; where they cannot share a global batch, the proof lowers the device batch."""


class Proving(Strict):
    """What `smt prove` proves where it is not told."""

    kills: Positive
    """Kills of each run."""
    runs: Annotated[tuple[ProvedRun, ...], Field(min_length=1)]


class Scale(Strict):
    """How big a reproduction is: the paper's, or a rehearsal on data that packages ship."""

    title: str
    notice: str | None
    """Stands on every table and figure made at this scale."""
    seeds: Seeds
    threads: Positive
    """CPU threads of a training process: they change the order of sums, so they are fixed."""
    workers: Annotated[int, Field(ge=0)]
    """DataLoader processes beside each training process."""
    log_every: Positive
    """Steps between two records of the journal."""
    checkpoint_minutes: PositiveFloat
    """Longest time between two checkpoints."""
    checkpoint_steps: Positive | None
    """Most steps between two checkpoints, or null; each epoch ends in one in any case."""
    stall_minutes: PositiveFloat
    """Time without a step after which a training writes down where it stands, and ends as one that
    can go on."""
    proof: Proving | None = None


class Project(Strict):
    """All of `params/` at one scale: every reference resolved, every number checked."""

    scale_name: Name
    scale: Scale
    models: dict[Name, Model]
    heads: dict[Name, Detector | UPerNet]
    recipes: dict[Name, Recipe]
    """Instances of its subclasses, one a task."""
    datasets: dict[Name, Dataset]
    class_maps: dict[Name, ClassMap]
    experiments: dict[Name, Experiment]
    reported: Reported
    tables: dict[Name, Table]
    findings: tuple[Finding, ...]
    cluster: Cluster
    trajectory: Trajectory

    @cached_property
    def runs(self) -> tuple["Run", ...]:
        """Every run of the scale, parents before children."""
        return tuple(
            Run(experiment=name, seed=seed) for name in self.order for seed in self.seeds(name)
        )

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names of all experiments, parents before children."""
        ordered: dict[str, None] = {}
        for name in self.experiments:
            for ancestor in reversed((name, *self.ancestors(name))):
                ordered.setdefault(ancestor)
        return tuple(ordered)

    def ancestors(self, name: str) -> Iterator[str]:
        """Yield the experiments that `name` starts from, nearest first."""
        start = self.experiments[name].start
        while start is not None:
            yield start.experiment
            start = self.experiments[start.experiment].start

    def seeds(self, name: str) -> tuple[int, ...]:
        """Return the seeds of an experiment at this scale."""
        return self.experiments[name].seeds or self.scale.seeds

    def parent(self, run: "Run") -> "Run | None":
        """Return the run whose weights `run` starts from, or None."""
        start = self.experiments[run.experiment].start
        if start is None:
            return None
        seeds = self.seeds(start.experiment)
        return Run(experiment=start.experiment, seed=run.seed if run.seed in seeds else seeds[0])

    def drop_path(self, name: str) -> float:
        """Return the drop-path rate that an experiment trains with."""
        experiment = self.experiments[name]
        if experiment.drop_path is not None:
            return experiment.drop_path
        return self.recipes[experiment.recipe].drop_path

    def reported_value(self, name: str, metric: str, table: str = "") -> ReportedValue | None:
        """Return the published number of an experiment, or the one derived for `table`.

        Without a table that is what its source prints, and nothing else.
        """
        found = self.reported.experiments.get(name, {}).get(metric)
        if found is not None and found.derived_for and table not in found.derived_for:
            return None
        return found

    def recipe_of(self, experiment: str) -> Recipe:
        """Return how an experiment is trained."""
        return self.recipes[self.experiments[experiment].recipe]

    def dataset_of(self, name: str) -> str:
        """Return the name of the data set that an experiment trains on."""
        return self.recipe_of(name).dataset

    def steps_per_epoch(self, name: str) -> int:
        """Return the global batches of an epoch of an experiment; an incomplete one is dropped."""
        recipe = self.recipe_of(name)
        if isinstance(recipe.schedule, PolySchedule):
            return recipe.schedule.interval
        dataset = self.datasets[recipe.dataset]
        return max(dataset.trained_images // recipe.global_batch, 1)

    @cached_property
    def systems(self) -> dict[str, System]:
        """Every head on every model that an experiment trains, by its name."""
        found: dict[str, System] = {}
        for experiment in self.experiments.values():
            recipe = self.recipes[experiment.recipe]
            if experiment.head is None or not isinstance(recipe, DownstreamRecipe):
                continue
            size = (recipe.resolution, recipe.resolution_long)
            classes = self.datasets[recipe.dataset].classes
            system = System(experiment.head, experiment.model, classes, size)
            found.setdefault(system.name, system)
        return found

    def metrics_of(self, name: str) -> tuple[str, ...]:
        """Return what an evaluation of an experiment measures."""
        experiment = self.experiments[name]
        if experiment.task == "detect" and isinstance(self._head(name), TwoStage):
            return tuple(each for each in METRICS if each.startswith(("box_", "mask_")))
        return MEASURED[experiment.task]

    def _head(self, name: str) -> Detector | UPerNet:
        head = self.experiments[name].head
        assert head is not None
        return self.heads[head]

    def classifier_recipes(self, model: str) -> tuple[ClassificationRecipe, ...]:
        """Return the recipes by which a model is trained to classify, the last one last.

        Of a model that no experiment trains, that is the first recipe of the project.
        """
        names = [name for name in self.order if self.experiments[name].model == model]
        recipes = [self.recipe_of(name) for name in names]
        every = [each for each in recipes if isinstance(each, ClassificationRecipe)]
        if not every:
            first = next(iter(self.recipes.values()))
            assert isinstance(first, ClassificationRecipe)
            every = [first]
        return tuple(every)


class Run(Strict):
    """One training: an experiment with a seed."""

    experiment: Name
    seed: int

    def __str__(self) -> str:
        return f"{self.experiment}-seed{self.seed}"
