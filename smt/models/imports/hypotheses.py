"""Which trainings, one after another, may add up to a count of forward passes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from smt.config.project import Project
from smt.models.imports.metadata import TrainingMetadata


@dataclass(frozen=True)
class Training:
    """Epochs over one data set, with batches of one size."""

    dataset: str
    """Its name in params."""
    images: int
    """Of an epoch."""
    epochs: int
    batch: int
    """Images of a forward pass, over all processes."""
    accumulation_steps: int
    """Forward passes of an optimizer step."""
    min_batch: int
    """Images of the smallest batch that gives as many passes in an epoch; `batch` is one of these
    to `max_batch`."""
    max_batch: int

    @property
    def epoch_passes(self) -> int:
        """Forward passes of an epoch."""
        return self.images // self.batch

    @property
    def passes(self) -> int:
        """Forward passes of all epochs."""
        return self.epochs * self.epoch_passes

    def with_epochs(self, epochs: int) -> "Training":
        """Return it with another number of epochs."""
        return replace(self, epochs=epochs)

    def __str__(self) -> str:
        exactly = self.min_batch == self.max_batch
        batch = f"{self.batch:,}" if exactly else f"{self.min_batch:,} to {self.max_batch:,}"
        what = f"{epochs_phrase(self.epochs)} of {self.epoch_passes:,}"
        if self.accumulation_steps > 1:
            what += f" forward passes of {batch} images ({self.accumulation_steps} a step)"
        else:
            what += f" steps of batch {batch}"
        return f"{what} on the {self.images:,} images of {self.dataset}"


@dataclass(frozen=True)
class Hypothesis:
    """Trainings one after the other whose forward passes add up to a count."""

    trainings: tuple[Training, ...]
    initial_passes: int = 0
    """Passes before the first training, of one that is not known."""
    recipes: str | None = None
    """How recipes of params train so, in a phrase."""

    @property
    def last(self) -> Training:
        """The training that wrote the file."""
        return self.trainings[-1]

    def __str__(self) -> str:
        before = [f"{self.initial_passes:,} passes of the weights that it began with"]
        parts = [*(before if self.initial_passes else []), *map(str, self.trainings)]
        return ", then ".join(parts) + (f", {self.recipes}" if self.recipes else "")


def hypotheses(project: Project, count: int, metadata: TrainingMetadata) -> Iterator[Hypothesis]:
    """Yield every hypothesis about a count, the likeliest kind first, none of them twice."""
    yielded = set()
    for hypothesis in (
        *_of_recipes(project, count, metadata),
        *_of_records(project, count, metadata),
        *_of_whole_epochs(project, count),
    ):
        if (hypothesis.trainings, hypothesis.initial_passes) not in yielded:
            yielded.add((hypothesis.trainings, hypothesis.initial_passes))
            yield hypothesis


def _of_recipes(project: Project, count: int, metadata: TrainingMetadata) -> Iterator[Hypothesis]:
    """Yield the trainings of params, one after the other, that add up to the count.

    The last one is as long as params say, or as the file records.
    """
    recipes_of: dict[tuple[Training, ...], list[str]] = {}
    for chain in recipe_chains(project):
        for *before, last in product(*(trainings_by(project, name) for name in chain)):
            for epochs in dict.fromkeys((last.epochs, metadata.epochs_done or last.epochs)):
                trainings = (*before, last.with_epochs(epochs))
                if _passes(trainings) == count:
                    how = "as" if epochs == last.epochs else "by the batch of"
                    recipes_of.setdefault(trainings, []).append(
                        f"{how} recipe {' then '.join(chain)}"
                    )
    for trainings, names in recipes_of.items():
        yield Hypothesis(trainings, recipes=" or ".join(names))


def _of_records(project: Project, count: int, metadata: TrainingMetadata) -> Iterator[Hypothesis]:
    """Yield trainings as long as the file records, at whatever batch makes the count."""
    epochs = metadata.epochs_done or metadata.epochs
    if epochs is None:
        return
    accumulation_steps = metadata.accumulation_steps or 1
    starts = {_passes(trainings): trainings for trainings in _pretrainings(project)} | {0: ()}
    schedule = metadata.schedule_passes
    if schedule is not None and epochs * schedule < count:
        starts.setdefault(count - epochs * schedule, ())
    for initial_passes, before in sorted(starts.items()):
        passes, rest = divmod(count - initial_passes, epochs)
        if rest or passes < 1:
            continue
        for name, images in datasets_of(project).items():
            last = _solve_batch(
                name, images, epochs, passes, accumulation_steps, metadata.device_batch
            )
            if last is not None:
                yield Hypothesis((*before, last), 0 if before else initial_passes)


def _of_whole_epochs(project: Project, count: int) -> Iterator[Hypothesis]:
    """Yield trainings by a recipe's batch of another number of epochs."""
    for (name,) in (chain for chain in recipe_chains(project) if len(chain) == 1):
        for training in trainings_by(project, name):
            epochs, rest = divmod(count, training.epoch_passes)
            if not rest and epochs:
                yield Hypothesis((training.with_epochs(epochs),))


def recipe_chains(project: Project) -> list[tuple[str, ...]]:
    """Return the recipes of each classifier and of those that it starts from, first one first."""
    chains: dict[tuple[str, ...], None] = {}  # for its order
    for name, experiment in project.experiments.items():
        if experiment.task == "classify":
            line = (name, *project.ancestors(name))
            chains[tuple(project.experiments[ancestor].recipe for ancestor in reversed(line))] = (
                None
            )
    return list(chains)


def _pretrainings(project: Project) -> Iterator[tuple[Training, ...]]:
    for chain in dict.fromkeys(chain[:-1] for chain in recipe_chains(project) if len(chain) > 1):
        yield from product(*(trainings_by(project, name) for name in chain))


def trainings_by(project: Project, name: str) -> list[Training]:
    """Return a recipe's training, by each number of micro-batches that make its global batch."""
    recipe = project.recipes[name]
    images = project.datasets[recipe.dataset].train_images
    batches = {
        micro_batches: recipe.global_batch // micro_batches
        for micro_batches in range(1, recipe.micro_batches + 1)
        if recipe.global_batch % micro_batches == 0
    }
    return [
        _exact(recipe.dataset, images, recipe.schedule.epochs, batch, micro_batches)
        for micro_batches, batch in batches.items()
        if batch % recipe.device_batch == 0 and batch <= images
    ]


def _exact(dataset: str, images: int, epochs: int, batch: int, accumulation_steps: int) -> Training:
    return Training(dataset, images, epochs, batch, accumulation_steps, batch, batch)


def _passes(trainings: Iterable[Training]) -> int:
    return sum(training.passes for training in trainings)


def _solve_batch(
    dataset: str,
    images: int,
    epochs: int,
    passes: int,
    accumulation_steps: int,
    device_batch: int | None,
) -> Training | None:
    """Return a training of so many passes in each epoch, or None where no batch gives these.

    Of several batches it takes those that processes of `device_batch` images make, and of these
    the one that the highest power of two divides.
    """
    min_batch, max_batch = images // (passes + 1) + 1, images // passes
    if min_batch > max_batch:
        return None
    batches = range(min_batch, max_batch + 1)
    divisible = [
        batch for batch in batches if device_batch and batch % device_batch == 0
    ] or batches
    batch = max(divisible, key=lambda batch: batch & -batch)
    if len(divisible) == 1:
        min_batch = max_batch = batch
    return Training(dataset, images, epochs, batch, accumulation_steps, min_batch, max_batch)


def datasets_of(project: Project, classes: int | None = None) -> dict[str, int]:
    """Return the images of each data set that classifiers are trained on, or those of `classes`."""
    names = {project.recipes[name].dataset for chain in recipe_chains(project) for name in chain}
    return {
        name: dataset.train_images
        for name, dataset in project.datasets.items()
        if name in names and classes in (None, dataset.classes)
    }


def epochs_phrase(number: int) -> str:
    """Return a number of epochs in words."""
    return f"{number:,} epoch{'' if number == 1 else 's'}"
