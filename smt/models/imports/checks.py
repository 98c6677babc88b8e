"""Comparison of what a file records of its training with a hypothesis about its counters."""

from math import isclose

from smt.config.project import Project
from smt.models.imports.hypotheses import Hypothesis, epochs_phrase, recipe_chains
from smt.models.imports.metadata import TrainingMetadata

_Check = tuple[bool, str] | None
"""Whether something that is recorded agrees, and what it is; None where it is not recorded."""


def check_against(
    hypothesis: Hypothesis, project: Project, classes: int | None, metadata: TrainingMetadata
) -> tuple[list[str], list[str]]:
    """Return what is recorded that agrees with a hypothesis, and what contradicts it."""
    checks = (
        _epoch_check(hypothesis, metadata),
        _length_check(hypothesis, metadata),
        _batch_check(hypothesis, metadata),
        _rate_check(hypothesis, project, metadata),
        _accumulation_check(hypothesis, metadata),
        _schedule_check(hypothesis, metadata),
        _optimizer_check(hypothesis, metadata),
        _start_check(hypothesis, metadata),
        _dataset_check(hypothesis, metadata),
        _classes_check(classes, metadata),
    )
    results = [result for result in checks if result is not None]
    return [phrase for agrees, phrase in results if agrees], [
        phrase for agrees, phrase in results if not agrees
    ]


def _epoch_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    epochs = metadata.epochs_done
    return None if epochs is None else (epochs == hypothesis.last.epochs, recorded_epoch(epochs))


def _length_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    whole, done = metadata.epochs, metadata.epochs_done
    if whole is None:
        return None
    if done is None:
        return whole == hypothesis.last.epochs, f"the config has {epochs_phrase(whole)}"
    left = f", of which {whole - done:,} are left" if done < whole else ""
    return done <= whole, f"the config has {epochs_phrase(whole)}{left}"


def _batch_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    device_batch = metadata.device_batch
    if device_batch is None:
        return None
    last = hypothesis.last
    if any(batch % device_batch == 0 for batch in range(last.min_batch, last.max_batch + 1)):
        gpus = (
            f": {last.batch // device_batch:,} make {last.batch:,}"
            if last.batch % device_batch == 0
            else ""
        )
        return True, f"the config has {device_batch:,} images a GPU{gpus}"
    return False, f"the config has {device_batch:,} images a GPU, of which none make {last.batch:,}"


def _rate_check(hypothesis: Hypothesis, project: Project, metadata: TrainingMetadata) -> _Check:
    """The release saves its configuration with the learning rate scaled to the batch."""
    rate = metadata.setting("TRAIN", "BASE_LR")
    if metadata.text("MODEL", "TYPE") != "smt" or not isinstance(rate, float):
        return None
    length, side = metadata.epochs, metadata.configured("DATA", "IMG_SIZE")
    for name in dict.fromkeys(name for chain in recipe_chains(project) for name in chain):
        recipe = project.recipes[name]
        if (recipe.dataset, recipe.schedule.epochs, recipe.resolution) != (
            hypothesis.last.dataset, length, side
        ):  # fmt: skip
            continue
        batch = rate / recipe.optimizer.lr * recipe.optimizer.lr_batch
        agrees = isclose(batch, hypothesis.last.batch * hypothesis.last.accumulation_steps)
        return agrees, (
            f"the config's learning rate of {rate:.6g} is that of recipe {name} at batch "
            f"{batch:,.10g}"
        )
    return None


def _accumulation_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    steps = metadata.accumulation_steps
    if steps is None or (steps == 1 and hypothesis.last.accumulation_steps == 1):
        return None
    return (
        steps == hypothesis.last.accumulation_steps,
        f"the config accumulates {steps} passes a step",
    )


def _schedule_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    steps, epochs = metadata.schedule_steps, metadata.epochs
    if steps is None or epochs is None:
        return None
    last = hypothesis.last
    return steps == epochs * (last.epoch_passes // last.accumulation_steps), (
        f"the learning-rate schedule has {steps:,} steps, {steps / epochs:,.10g} an epoch"
    )


def _optimizer_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    """The scaler of mixed precision leaves out steps that overflow: there may be fewer."""
    steps = metadata.optimizer_steps
    if steps is None:
        return None
    max_steps = hypothesis.last.passes // hypothesis.last.accumulation_steps
    fewer = f", {max_steps - steps:,} fewer than the counters" if steps < max_steps else ""
    return steps <= max_steps, f"the optimizer has made {steps:,} steps{fewer}"


def _start_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    start = metadata.text("MODEL", "PRETRAINED")
    if start is None:
        return None
    continues = len(hypothesis.trainings) > 1 or hypothesis.initial_passes > 0
    if not start:
        return (False, "the config names no pretrained weights") if continues else None
    return continues, f"the config begins with the weights {start!a}, and with their counters"


def _dataset_check(hypothesis: Hypothesis, metadata: TrainingMetadata) -> _Check:
    name = metadata.text("DATA", "DATASET")
    if name is None or not name.lower().startswith("imagenet"):
        return None
    agrees = name.lower().endswith("22k") == hypothesis.last.dataset.endswith("22k")
    return None if agrees else (False, f"the config has the data set {name!a}")


def _classes_check(classes: int | None, metadata: TrainingMetadata) -> _Check:
    configured_classes = metadata.configured("MODEL", "NUM_CLASSES")
    if configured_classes is None or classes in (None, configured_classes):
        return None
    return False, f"the config has {configured_classes:,} classes, the head {classes:,}"


def recorded_epoch(epochs: int) -> str:
    """Return what a file records in which so many epochs are done."""
    return f"epoch {epochs - 1:,} is recorded, counted from 0: {epochs_phrase(epochs)} done"
