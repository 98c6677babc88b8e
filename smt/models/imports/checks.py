"""What a file records of its training, held against one reading of its counters."""

from math import isclose

from smt.config.project import Project
from smt.models.imports.facts import Facts
from smt.models.imports.readings import Reading, counted, recipe_chains

_Check = tuple[bool, str] | None
"""Whether something that is recorded agrees, and what it is; None where it is not recorded."""


def held_against(
    reading: Reading, project: Project, classes: int | None, facts: Facts
) -> tuple[list[str], list[str]]:
    """Return what is recorded that agrees with a reading, and what contradicts it."""
    checks = (
        _epoch_check(reading, facts),
        _length_check(reading, facts),
        _batch_check(reading, facts),
        _rate_check(reading, project, facts),
        _accumulation_check(reading, facts),
        _schedule_check(reading, facts),
        _optimizer_check(reading, facts),
        _start_check(reading, facts),
        _dataset_check(reading, facts),
        _classes_check(classes, facts),
    )
    held = [each for each in checks if each is not None]
    return [said for agrees, said in held if agrees], [said for agrees, said in held if not agrees]


def _epoch_check(reading: Reading, facts: Facts) -> _Check:
    epochs = facts.epochs_done
    return None if epochs is None else (epochs == reading.last.epochs, recorded_epoch(epochs))


def _length_check(reading: Reading, facts: Facts) -> _Check:
    whole, done = facts.epochs, facts.epochs_done
    if whole is None:
        return None
    if done is None:
        return whole == reading.last.epochs, f"the config has {counted(whole)}"
    left = f", of which {whole - done:,} are left" if done < whole else ""
    return done <= whole, f"the config has {counted(whole)}{left}"


def _batch_check(reading: Reading, facts: Facts) -> _Check:
    each = facts.device_batch
    if each is None:
        return None
    last = reading.last
    if any(batch % each == 0 for batch in range(last.fewest, last.most + 1)):
        gpus = f": {last.batch // each:,} make {last.batch:,}" if last.batch % each == 0 else ""
        return True, f"the config has {each:,} images a GPU{gpus}"
    return False, f"the config has {each:,} images a GPU, of which none make {last.batch:,}"


def _rate_check(reading: Reading, project: Project, facts: Facts) -> _Check:
    """The release saves its configuration with the learning rate scaled to the batch."""
    rate = facts.setting("TRAIN", "BASE_LR")
    if facts.text("MODEL", "TYPE") != "smt" or not isinstance(rate, float):
        return None
    length, side = facts.epochs, facts.configured("DATA", "IMG_SIZE")
    for name in dict.fromkeys(name for chain in recipe_chains(project) for name in chain):
        recipe = project.recipes[name]
        if (recipe.dataset, recipe.schedule.epochs, recipe.resolution) != (
            reading.last.dataset, length, side
        ):  # fmt: skip
            continue
        batch = rate / recipe.optimizer.lr * recipe.optimizer.lr_batch
        agrees = isclose(batch, reading.last.batch * reading.last.accumulation)
        return agrees, (
            f"the config's learning rate of {rate:.6g} is that of recipe {name} at batch "
            f"{batch:,.10g}"
        )
    return None


def _accumulation_check(reading: Reading, facts: Facts) -> _Check:
    steps = facts.accumulation
    if steps is None or (steps == 1 and reading.last.accumulation == 1):
        return None
    return steps == reading.last.accumulation, f"the config accumulates {steps} passes a step"


def _schedule_check(reading: Reading, facts: Facts) -> _Check:
    steps, epochs = facts.schedule_steps, facts.epochs
    if steps is None or epochs is None:
        return None
    last = reading.last
    return steps == epochs * (last.epoch_passes // last.accumulation), (
        f"the learning-rate schedule has {steps:,} steps, {steps / epochs:,.10g} an epoch"
    )


def _optimizer_check(reading: Reading, facts: Facts) -> _Check:
    """The scaler of mixed precision leaves out steps that overflow: there may be fewer."""
    steps = facts.optimizer_steps
    if steps is None:
        return None
    most = reading.last.passes // reading.last.accumulation
    fewer = f", {most - steps:,} fewer than the counters" if steps < most else ""
    return steps <= most, f"the optimizer has made {steps:,} steps{fewer}"


def _start_check(reading: Reading, facts: Facts) -> _Check:
    start = facts.text("MODEL", "PRETRAINED")
    if start is None:
        return None
    continues = len(reading.trainings) > 1 or reading.carried > 0
    if not start:
        return (False, "the config names no pretrained weights") if continues else None
    return continues, f"the config begins with the weights {start!a}, and with their counters"


def _dataset_check(reading: Reading, facts: Facts) -> _Check:
    name = facts.text("DATA", "DATASET")
    if name is None or not name.lower().startswith("imagenet"):
        return None
    agrees = name.lower().endswith("22k") == reading.last.dataset.endswith("22k")
    return None if agrees else (False, f"the config has the data set {name!a}")


def _classes_check(classes: int | None, facts: Facts) -> _Check:
    said = facts.configured("MODEL", "NUM_CLASSES")
    if said is None or classes in (None, said):
        return None
    return False, f"the config has {said:,} classes, the head {classes:,}"


def recorded_epoch(epochs: int) -> str:
    """Return what a file records in which so many epochs are done."""
    return f"epoch {epochs - 1:,} is recorded, counted from 0: {counted(epochs)} done"
