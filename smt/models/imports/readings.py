"""Which trainings make a count of forward passes: epochs, batch and data set of each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from smt.config.project import Project
from smt.models.imports.facts import Facts


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
    fewest: int
    """Images of the smallest batch that gives as many passes in an epoch; `batch` is one of these
    to `most`."""
    most: int

    @property
    def epoch_passes(self) -> int:
        """Forward passes of an epoch."""
        return self.images // self.batch

    @property
    def passes(self) -> int:
        """Forward passes of all epochs."""
        return self.epochs * self.epoch_passes

    def lasting(self, epochs: int) -> "Training":
        """Return it with another number of epochs."""
        return replace(self, epochs=epochs)

    def __str__(self) -> str:
        exactly = self.fewest == self.most
        batch = f"{self.batch:,}" if exactly else f"{self.fewest:,} to {self.most:,}"
        what = f"{counted(self.epochs)} of {self.epoch_passes:,}"
        if self.accumulation_steps > 1:
            what += f" forward passes of {batch} images ({self.accumulation_steps} a step)"
        else:
            what += f" steps of batch {batch}"
        return f"{what} on the {self.images:,} images of {self.dataset}"


@dataclass(frozen=True)
class Reading:
    """One way to make a count: the trainings one after the other that add up to it."""

    trainings: tuple[Training, ...]
    carried: int = 0
    """Passes before the first training, of one that is not known."""
    recipes: str | None = None
    """How recipes of params train so, in a phrase."""

    @property
    def last(self) -> Training:
        """The training that wrote the file."""
        return self.trainings[-1]

    def __str__(self) -> str:
        before = [f"{self.carried:,} passes of the weights that it began with"]
        parts = [*(before if self.carried else []), *map(str, self.trainings)]
        return ", then ".join(parts) + (f", {self.recipes}" if self.recipes else "")


def readings_of(project: Project, count: int, facts: Facts) -> Iterator[Reading]:
    """Yield every way to make a count, the likeliest kind first, none of them twice."""
    seen = set()
    for reading in (
        *_of_recipes(project, count, facts),
        *_of_records(project, count, facts),
        *_of_whole_epochs(project, count),
    ):
        if (reading.trainings, reading.carried) not in seen:
            seen.add((reading.trainings, reading.carried))
            yield reading


def _of_recipes(project: Project, count: int, facts: Facts) -> Iterator[Reading]:
    """Yield the trainings of params, one after the other, that add up to the count.

    The last one is as long as params say, or as the file records.
    """
    named: dict[tuple[Training, ...], list[str]] = {}
    for chain in recipe_chains(project):
        for *before, last in product(*(trainings_by(project, name) for name in chain)):
            for epochs in dict.fromkeys((last.epochs, facts.epochs_done or last.epochs)):
                trained = (*before, last.lasting(epochs))
                if _passes(trained) == count:
                    how = "as" if epochs == last.epochs else "by the batch of"
                    named.setdefault(trained, []).append(f"{how} recipe {' then '.join(chain)}")
    for trained, names in named.items():
        yield Reading(trained, recipes=" or ".join(names))


def _of_records(project: Project, count: int, facts: Facts) -> Iterator[Reading]:
    """Yield trainings as long as the file records, at whatever batch makes the count."""
    epochs = facts.epochs_done or facts.epochs
    if epochs is None:
        return
    accumulation_steps = facts.accumulation_steps or 1
    starts = {_passes(trained): trained for trained in _pretrainings(project)} | {0: ()}
    schedule = facts.schedule_passes
    if schedule is not None and epochs * schedule < count:
        starts.setdefault(count - epochs * schedule, ())
    for carried, before in sorted(starts.items()):
        passes, rest = divmod(count - carried, epochs)
        if rest or passes < 1:
            continue
        for name, images in datasets_of(project).items():
            last = _solved(name, images, epochs, passes, accumulation_steps, facts.device_batch)
            if last is not None:
                yield Reading((*before, last), 0 if before else carried)


def _of_whole_epochs(project: Project, count: int) -> Iterator[Reading]:
    """Yield trainings by a recipe's batch of another number of epochs."""
    for (name,) in (chain for chain in recipe_chains(project) if len(chain) == 1):
        for training in trainings_by(project, name):
            epochs, rest = divmod(count, training.epoch_passes)
            if not rest and epochs:
                yield Reading((training.lasting(epochs),))


def recipe_chains(project: Project) -> list[tuple[str, ...]]:
    """Return the recipes of each classifier and of those that it starts from, first one first."""
    chains: dict[tuple[str, ...], None] = {}  # for its order
    for name, experiment in project.experiments.items():
        if experiment.task == "classify":
            line = (name, *project.ancestors(name))
            chains[tuple(project.experiments[each].recipe for each in reversed(line))] = None
    return list(chains)


def _pretrainings(project: Project) -> Iterator[tuple[Training, ...]]:
    for chain in dict.fromkeys(chain[:-1] for chain in recipe_chains(project) if len(chain) > 1):
        yield from product(*(trainings_by(project, name) for name in chain))


def trainings_by(project: Project, name: str) -> list[Training]:
    """Return a recipe's training, by each number of micro-batches that make its global batch."""
    recipe = project.recipes[name]
    images = project.datasets[recipe.dataset].train_images
    batches = {
        chunks: recipe.global_batch // chunks
        for chunks in range(1, recipe.chunks + 1)
        if recipe.global_batch % chunks == 0
    }
    return [
        _exact(recipe.dataset, images, recipe.schedule.epochs, batch, chunks)
        for chunks, batch in batches.items()
        if batch % recipe.device_batch == 0 and batch <= images
    ]


def _exact(dataset: str, images: int, epochs: int, batch: int, accumulation_steps: int) -> Training:
    return Training(dataset, images, epochs, batch, accumulation_steps, batch, batch)


def _passes(trainings: Iterable[Training]) -> int:
    return sum(each.passes for each in trainings)


def _solved(
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
    fewest, most = images // (passes + 1) + 1, images // passes
    if fewest > most:
        return None
    batches = range(fewest, most + 1)
    fitting = [each for each in batches if device_batch and each % device_batch == 0] or batches
    batch = max(fitting, key=lambda each: each & -each)
    if len(fitting) == 1:
        fewest = most = batch
    return Training(dataset, images, epochs, batch, accumulation_steps, fewest, most)


def datasets_of(project: Project, classes: int | None = None) -> dict[str, int]:
    """Return the images of each data set that classifiers are trained on, or those of `classes`."""
    names = {project.recipes[name].dataset for chain in recipe_chains(project) for name in chain}
    return {
        name: dataset.train_images
        for name, dataset in project.datasets.items()
        if name in names and classes in (None, dataset.classes)
    }


def counted(number: int) -> str:
    """Return a number of epochs in words."""
    return f"{number:,} epoch{'' if number == 1 else 's'}"
