"""The record of an evaluation of released weights: what was measured, of which file, on what."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import Environment, Git, Hardware, Record


class WeightsFile(Record):
    """The file that the weights came from."""

    path: str
    sha256: str
    bytes: int
    state: str
    """Key of the weights in the file; empty where they lie under none."""
    notes: Sequence[str] = ()
    """What was chosen of the file, and what was changed in its names."""
    recorded: Mapping[str, object] = {}
    """Single values that the file records beside the weights, such as epoch and max_accuracy."""


class EvaluatedImages(Record):
    """The images that there are, of which all or a sample were evaluated."""

    root: str
    images: int
    expected: int
    """Validation images that the data set has by params."""
    classes: int
    content: str
    """What the digest covers: bytes, or names and sizes."""
    digest: str
    """SHA-256 of the list of images."""
    labels: str | None = None
    """File that the order of the classes came from; None: folders sorted by name."""
    labels_sha256: str | None = None


class UsedPreprocessing(Record):
    """How an image was brought to the model."""

    name: str
    resolution: int
    resize: str
    crop_ratio: float


class ReleasedEvaluation(Record):
    """`evaluation.json` of released weights."""

    experiment: str
    model: str
    scale: str
    weights: WeightsFile
    data: EvaluatedImages
    preprocessing: UsedPreprocessing
    images: int
    """Images that were evaluated, each once."""
    sample_seed: int | None = None
    """Of the order in which images are evaluated, the first ones of which are a random sample."""
    metrics: dict[str, float]
    """top1 and top5 in percent, and the mean loss."""
    intervals: dict[str, tuple[float, float]] = {}
    """Low and high of top1 and top5, where the images are a sample."""
    interval: str = ""
    """Which interval that is."""
    predictions: str
    """Name of the file beside this one with the five best classes of every image."""
    predictions_sha256: str
    seconds: float
    """Wall time of the last call: of an evaluation that was interrupted, of its last part."""
    finished: float
    """Unix seconds."""
    environment: Environment
    hardware: Hardware
    git: Git
    packages: Mapping[str, str | None]

    @property
    def is_estimate(self) -> bool:
        """Whether it is of a sample of the images."""
        return self.images < self.data.images


def read(layout: Layout, experiment: str) -> ReleasedEvaluation | None:
    """Return the evaluation of released weights for an experiment; None while there is none.

    Raises:
        DamagedRecord: the file is damaged.
    """
    remedy = f"remove it and run: {command(layout, experiment)}"
    return record.read(ReleasedEvaluation, layout.released(experiment), remedy)


def command(layout: Layout, experiment: str, file: Path | str = "FILE") -> str:
    """Return the command that evaluates released weights for an experiment."""
    return f"smt evaluate {experiment} --released {file} --scale {layout.scale}"
