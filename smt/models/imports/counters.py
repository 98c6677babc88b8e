"""What BatchNorm's counters say of a training: how many epochs, at which batch.

`num_batches_tracked` counts the forward passes in training mode, and is saved with the weights. The
released code drops an epoch's incomplete batch, makes one pass a process for each micro-batch, and
starts a fine-tuning with the counters of the weights that it starts from.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import Tensor

from smt.config.project import Project
from smt.models.imports.checks import held_against, recorded_epoch
from smt.models.imports.facts import Facts
from smt.models.imports.readings import datasets_of, readings_of, recipe_chains, trainings_by

_COUNTER = ".num_batches_tracked"

_ALTERNATIVES = 2
"""Other readings of a count that are named where what is recorded does not decide."""


def counts(state: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Return the layers that have counted, by their counts; mostly all have the same."""
    found: dict[int, list[str]] = {}
    for name, tensor in state.items():
        counter = name.endswith(_COUNTER) and tensor.numel() == 1 and not tensor.is_meta
        if counter and not (tensor.is_floating_point() or tensor.is_complex()):
            found.setdefault(int(tensor.item()), []).append(name.removesuffix(_COUNTER))
    return found


@dataclass(frozen=True)
class Explanation:
    """What a count means, held against what the file records."""

    meaning: str
    agrees: tuple[str, ...]
    contradictions: tuple[str, ...]


def explain(project: Project, count: int, classes: int | None, facts: Facts) -> Explanation:
    """Return what a count of forward passes means by the recipes of params and by `facts`.

    `classes` are those of the head, where there is one. Of all readings that add up to the count
    the one is taken that contradicts least of what is recorded.
    """
    done = facts.epochs_done
    if count <= 0:
        wrong = () if done is None else (recorded_epoch(done),)
        return Explanation("never trained, or its counters were set back", (), wrong)
    datasets = datasets_of(project, classes)
    if not datasets:
        return Explanation(
            f"not known: the head has {classes:,} classes, as no data set of params has", (), ()
        )
    readings = [
        each for each in readings_of(project, count, facts) if each.last.dataset in datasets
    ]
    if not readings:
        return _unexplained(project, count, datasets, facts)
    ranked = sorted(
        ((each, held_against(each, project, classes, facts)) for each in readings),
        key=lambda pair: len(pair[1][1]),  # stable: readings come with the likeliest first
    )
    best, (agrees, contradictions) = ranked[0]
    meaning = str(best)
    others = [
        str(each)
        for each, held in ranked[1:]
        # Where next to nothing is recorded, a recipe that makes the count is worth a word.
        if held == (agrees, contradictions) or (each.recipes and len(agrees) < 2)
    ]
    if others:
        meaning += f"; it could also be {', or '.join(others[:_ALTERNATIVES])}"
    return Explanation(meaning, tuple(agrees), tuple(contradictions))


def _unexplained(
    project: Project, count: int, datasets: Container[str], facts: Facts
) -> Explanation:
    """Return how many epochs of the recipes a count is, which is no whole number of them."""
    trainings = [
        trainings_by(project, name)[0]
        for name in dict.fromkeys(chain[0] for chain in recipe_chains(project))
    ]
    told = [
        f"{each.lasting(count // each.epoch_passes)}, and {count % each.epoch_passes:,} steps"
        for each in trainings
        if each.dataset in datasets
    ]
    meaning = "no whole number of epochs by a batch of params or of what is recorded"
    if told:
        meaning += f": {' or '.join(told)}"
    epochs = facts.epochs_done
    wrong = () if epochs is None else (recorded_epoch(epochs),)
    return Explanation(meaning, (), wrong)
