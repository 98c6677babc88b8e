"""What BatchNorm's counters say of a training: how many epochs, at which batch.

`num_batches_tracked` counts the forward passes in training mode, and is saved with the weights. The
released code drops an epoch's incomplete batch, makes one pass a process for each micro-batch, and
starts a fine-tuning with the counters of the weights that it starts from.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import Tensor

from smt.config.project import Project
from smt.models.imports.checks import check_against, recorded_epoch
from smt.models.imports.hypotheses import datasets_of, hypotheses, recipe_chains, trainings_by
from smt.models.imports.metadata import TrainingMetadata

_COUNTER = ".num_batches_tracked"

_ALTERNATIVES = 2
"""Other hypotheses that are named where what is recorded does not decide."""


def counts(state: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Return the layers that have counted, by their counts; mostly all have the same."""
    layers_by_count: dict[int, list[str]] = {}
    for name, tensor in state.items():
        counter = name.endswith(_COUNTER) and tensor.numel() == 1 and not tensor.is_meta
        if counter and not (tensor.is_floating_point() or tensor.is_complex()):
            layers_by_count.setdefault(int(tensor.item()), []).append(name.removesuffix(_COUNTER))
    return layers_by_count


@dataclass(frozen=True)
class Explanation:
    """What a count means, and what the file records for and against it."""

    meaning: str
    agrees: tuple[str, ...]
    contradictions: tuple[str, ...]


def explain(
    project: Project, count: int, classes: int | None, metadata: TrainingMetadata
) -> Explanation:
    """Return what a count of forward passes means by the recipes of params and by `metadata`.

    `classes` are those of the head, where there is one. Of all hypotheses that add up to the
    count the one is taken that contradicts least of what is recorded.
    """
    done = metadata.epochs_done
    if count <= 0:
        against = () if done is None else (recorded_epoch(done),)
        return Explanation("never trained, or its counters were set back", (), against)
    datasets = datasets_of(project, classes)
    if not datasets:
        return Explanation(
            f"not known: the head has {classes:,} classes, as no data set of params has", (), ()
        )
    candidates = [
        hypothesis
        for hypothesis in hypotheses(project, count, metadata)
        if hypothesis.last.dataset in datasets
    ]
    if not candidates:
        return _unexplained(project, count, datasets, metadata)
    ranked = sorted(
        (
            (hypothesis, check_against(hypothesis, project, classes, metadata))
            for hypothesis in candidates
        ),
        key=lambda pair: len(pair[1][1]),  # stable: the likeliest come first
    )
    best, (agrees, contradictions) = ranked[0]
    meaning = str(best)
    others = [
        str(hypothesis)
        for hypothesis, result in ranked[1:]
        # Where next to nothing is recorded, a recipe that makes the count is worth a word.
        if result == (agrees, contradictions) or (hypothesis.recipes and len(agrees) < 2)
    ]
    if others:
        meaning += f"; it could also be {', or '.join(others[:_ALTERNATIVES])}"
    return Explanation(meaning, tuple(agrees), tuple(contradictions))


def _unexplained(
    project: Project, count: int, datasets: Container[str], metadata: TrainingMetadata
) -> Explanation:
    """Return how many epochs of the recipes a count is, which is no whole number of them."""
    trainings = [
        trainings_by(project, name)[0]
        for name in dict.fromkeys(chain[0] for chain in recipe_chains(project))
    ]
    phrases = [
        f"{training.with_epochs(count // training.epoch_passes)}, and "
        f"{count % training.epoch_passes:,} steps"
        for training in trainings
        if training.dataset in datasets
    ]
    meaning = "no whole number of epochs by a batch of params or of what is recorded"
    if phrases:
        meaning += f": {' or '.join(phrases)}"
    epochs = metadata.epochs_done
    against = () if epochs is None else (recorded_epoch(epochs),)
    return Explanation(meaning, (), against)
