"""All of `params/` at one scale. `smt.config.load.load_project` is the only way in."""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from smt.config.claims import AssumedSpread, Claim
from smt.config.cluster import Cluster
from smt.config.datasets import ClassMap, Dataset
from smt.config.experiments import Experiment, Run, Seeds, system_name
from smt.config.heads import Head, TwoStage
from smt.config.metrics import METRICS, TASK_METRICS
from smt.config.models import Model, TimmModel, TimmSize
from smt.config.peers import PeerTable
from smt.config.published import Discrepancy, Reported, ReportedValue, Table
from smt.config.recipes import ClassificationRecipe, DownstreamRecipe, PolySchedule, Recipe
from smt.config.released import Preprocessing, ReleasedWeights
from smt.config.trajectory import Trajectory
from smt.config.types import Name, Positive, PositiveFloat, Strict


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


class ProofRun(Strict):
    """A run that `smt prove` trains with and without interruptions, and compares."""

    experiment: Name
    ranks: Positive
    """Processes; where they cannot share a global batch, the proof lowers `device_batch`."""


class ProofSettings(Strict):
    """What `smt prove` proves by default."""

    kills: Positive
    """Kills of each run."""
    runs: Annotated[tuple[ProofRun, ...], Field(min_length=1)]


MOST_WORKERS = 16
"""Data workers that a process takes by itself, however many CPUs it has. SMT-T on an H200 learns
from 1,600 images a second (docs/gpu.md), and a core reads 181 of ImageNet's size
(docs/benchmarks.md): more would only take memory."""


def workers_for(cpus: int) -> int:
    """Return how many data workers to run on the CPUs of a process: one is for the training."""
    return min(max(cpus - 1, 1), MOST_WORKERS)


class Scale(Strict):
    """How big a reproduction is: the paper's, or a rehearsal on data that packages ship."""

    title: str
    notice: str | None
    """Printed on every table and figure made at this scale."""
    seeds: Seeds
    threads: Positive
    """CPU threads of a training process: they change the order of sums, so they are fixed."""
    workers: Annotated[int, Field(ge=0)] | None
    """DataLoader processes beside each training process; null: as its CPUs allow."""
    log_every: Positive
    """Steps between two records of the journal."""
    checkpoint_minutes: PositiveFloat
    """Longest time between two checkpoints."""
    checkpoint_steps: Positive | None
    """Most steps between two checkpoints, or null; each epoch ends in one in any case."""
    keep_milestones: Annotated[int, Field(ge=0)]
    """Checkpoints of a run that are kept for `smt audit`: the last one, and others at the ends of
    epochs, evenly spaced."""
    stall_minutes: PositiveFloat
    """Time without a step after which a training writes its stacks to the log and ends as
    resumable."""
    proof: ProofSettings | None = None
    reported: bool = True
    """Whether published numbers stand beside results of this scale. Not where trainings are other
    ones than the paper's and their results look as if they could be compared."""
    first_rung: Name | None = None
    """A scale of shorter trainings, which `smt plan --claims` proposes to begin with."""

    @property
    def cpus(self) -> int:
        """CPUs that each training process asks for: its threads do little while workers read."""
        return max(self.threads, (self.workers or 0) + 1)

    @property
    def expected_workers(self) -> int:
        """Data workers beside each training process, where it gets the CPUs that it asks for."""
        return workers_for(self.cpus) if self.workers is None else self.workers


class Project(Strict):
    """All of `params/` at one scale: every reference resolved, every number checked."""

    scale_name: Name
    scale: Scale
    models: dict[Name, Model | TimmModel]
    """Those of models.yaml, and those that experiments take from timm."""
    heads: dict[Name, Head]
    """Instances of its subclasses, one a kind."""
    recipes: dict[Name, Recipe]
    """Instances of its subclasses, one a task."""
    datasets: dict[Name, Dataset]
    class_maps: dict[Name, ClassMap]
    experiments: dict[Name, Experiment]
    released: dict[Name, ReleasedWeights]
    """By the experiment in whose row they stand."""
    preprocessings: dict[Name, Preprocessing]
    reported: Reported
    tables: dict[Name, Table]
    peer_tables: dict[Name, PeerTable]
    claims: dict[Name, Claim]
    assumed_spreads: dict[Name, AssumedSpread]
    """By metric."""
    discrepancies: tuple[Discrepancy, ...]
    cluster: Cluster
    forward_macs: dict[str, Positive]
    """MACs of a forward pass of an image by head and model (`mask_rcnn.smt_small`), at the size
    that the recipe counts at. Heads have no formula: `smt profile --update` counts them."""
    timm_sizes: dict[str, TimmSize]
    """Sizes of classifiers of timm, by `TimmModel.sized_text`: they too have no formula."""
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
        """Return the published number to show beside an experiment's results at this scale."""
        return self.published_value(name, metric, table) if self.scale.reported else None

    def published_value(self, name: str, metric: str, table: str = "") -> ReportedValue | None:
        """Return the published number of an experiment, or the one derived for `table`.

        Without a table that is what its source prints, and nothing else.
        """
        value = self.reported.experiments.get(name, {}).get(metric)
        if value is not None and value.derived_for and table not in value.derived_for:
            return None
        return value

    def recipe_of(self, experiment: str) -> Recipe:
        """Return how an experiment is trained.

        `recompute` and `compile` are of SMT's blocks: for a model of timm they are off, so that a
        recipe can have them while other models share it.
        """
        entry = self.experiments[experiment]
        recipe = self.recipes[entry.recipe]
        if entry.model in self.smt_models:
            return recipe
        keys = {"recompute", "compile"} & type(recipe).model_fields.keys()
        return recipe.model_copy(update=dict.fromkeys(keys, False))

    def recomputes(self, experiment: str, *, on_gpu: bool) -> bool:
        """Return whether a training keeps only the input of each block and computes the rest again.

        The recipe says so, or the kind of GPU in use does where it is trained on one.
        """
        on_card = on_gpu and experiment in self.cluster.kind.recompute
        return self.recipe_of(experiment).recompute or on_card

    def on_gpu(self, kind: str, **figures: Any) -> "Project":
        """Return the project on another kind of GPU, with `figures` of it in place of its own."""
        cluster = self.cluster
        kinds = {**cluster.kinds, kind: cluster.kinds[kind].model_copy(update=figures)}
        return self.model_copy(
            update={"cluster": cluster.model_copy(update={"gpu": kind, "kinds": kinds})}
        )

    def dataset_of(self, name: str) -> str:
        """Return the name of the data set that an experiment trains on."""
        return self.recipe_of(name).dataset

    @property
    def evaluated_classifiers(self) -> tuple[str, ...]:
        """Names of the experiments in which an SMT classifies the validation images of its data."""
        return tuple(
            name
            for name, experiment in self.experiments.items()
            if experiment.task == "classify"
            and experiment.model in self.smt_models
            and self.datasets[self.dataset_of(name)].val_images
        )

    def steps_per_epoch(self, name: str) -> int:
        """Return the global batches of an epoch of an experiment; an incomplete one is dropped."""
        recipe = self.recipe_of(name)
        if isinstance(recipe.schedule, PolySchedule):
            return recipe.schedule.interval
        dataset = self.datasets[recipe.dataset]
        return max(dataset.trained_images // recipe.global_batch, 1)

    def table_title(self, title: str) -> str:
        """Return the title of a table, which names a scale whose numbers look like the paper's."""
        return title if self.scale.reported else f"{title}, {self.scale.title}"

    @cached_property
    def smt_models(self) -> dict[str, Model]:
        """The variants and ablations of SMT, without models of timm."""
        return {name: model for name, model in self.models.items() if isinstance(model, Model)}

    @cached_property
    def systems(self) -> dict[str, System]:
        """Every head on every model that an experiment trains, by its name."""
        by_name: dict[str, System] = {}
        for experiment in self.experiments.values():
            recipe = self.recipes[experiment.recipe]
            if experiment.head is None or not isinstance(recipe, DownstreamRecipe):
                continue
            size = (recipe.resolution, recipe.resolution_long)
            classes = self.datasets[recipe.dataset].classes
            system = System(experiment.head, experiment.model, classes, size)
            by_name.setdefault(system.name, system)
        return by_name

    def counted_as(self, system: System) -> str:
        """Return what stands for a head on a model in params/sizes.yaml.

        A model of timm stands there with its arguments, so that other ones are counted again.
        """
        model = self.models[system.model]
        return system_name(
            system.head, model.text if isinstance(model, TimmModel) else system.model
        )

    def timm_size(self, model: TimmModel, recipe: Recipe) -> TimmSize | None:
        """Return the size of a classifier of timm by a recipe; None before it was counted."""
        classes = self.datasets[recipe.dataset].classes
        return self.timm_sizes.get(model.sized_text(recipe.resolution, classes))

    def trunk_resolution(self, experiment: str) -> int | None:
        """Return the resolution of the classifier that a head's trunk starts from, if from one."""
        start = self.experiments[experiment].start
        if start is None:
            return None
        recipe = self.recipe_of(start.experiment)
        return recipe.resolution

    def metrics_of(self, name: str) -> tuple[str, ...]:
        """Return what an evaluation of an experiment measures."""
        experiment = self.experiments[name]
        if experiment.task == "detect" and isinstance(self._head(name), TwoStage):
            return tuple(metric for metric in METRICS if metric.startswith(("box_", "mask_")))
        return TASK_METRICS[experiment.task]

    def _head(self, name: str) -> Head:
        head = self.experiments[name].head
        assert head is not None
        return self.heads[head]

    def classifier_recipes(self, model: str) -> tuple[ClassificationRecipe, ...]:
        """Return the recipes by which a model is trained to classify, the last one last.

        Of a model that no experiment trains, that is the first recipe of the project.
        """
        names = [name for name in self.order if self.experiments[name].model == model]
        recipes = [self.recipe_of(name) for name in names]
        classification = [recipe for recipe in recipes if isinstance(recipe, ClassificationRecipe)]
        if not classification:
            first = next(iter(self.recipes.values()))
            assert isinstance(first, ClassificationRecipe)
            classification = [first]
        return tuple(classification)
