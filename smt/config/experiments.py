"""What `params/experiments.yaml` holds, and the runs of it."""

from typing import Annotated, Literal

from pydantic import Field

from smt.config.types import Name, Strict

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]


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
    seeds: Seeds | None = None
    """In place of the scale's."""

    @property
    def system(self) -> str:
        """Name of its head and model, as in `mask_rcnn.smt_small`."""
        return system_name(self.head, self.model)


class Run(Strict):
    """One training: an experiment with a seed."""

    experiment: Name
    seed: int

    def __str__(self) -> str:
        return f"{self.experiment}-seed{self.seed}"
