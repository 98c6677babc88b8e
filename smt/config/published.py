"""What was published, and where it is compared: `reported.yaml`, `tables.yaml`, `drift.yaml`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from smt.config.metrics import METRICS
from smt.config.types import Name, Positive, PositiveFloat, Strict
from smt.errors import suggest


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


class PublishedRate(Strict):
    """A published speed of inference."""

    images_per_second: PositiveFloat
    hardware: str
    """What it was measured on, as the source names it."""
    batch: Positive | None
    """Images of a batch; null where the source does not say."""
    source: Name

    @property
    def setting(self) -> str:
        """Hardware and batch in a phrase."""
        return self.hardware if self.batch is None else f"{self.hardware}, batch {self.batch}"


class Reported(Strict):
    """Every published number, by experiment, by model or by system, then by metric."""

    sources: dict[Name, Source]
    experiments: dict[Name, dict[Name, ReportedValue]]
    models: dict[Name, dict[Name, ReportedValue]]
    systems: dict[str, dict[Name, ReportedValue]] = {}
    """By head and model, as in `mask_rcnn.smt_small`."""
    throughput: dict[str, PublishedRate] = {}
    """By model, or by table and name of another's, as in `peers_imagenet1k.cmt_s`."""

    def sizes_of(self, name: str) -> Mapping[str, ReportedValue]:
        """Return the published sizes of a model or system; empty where none are at hand."""
        return {**self.models, **self.systems}.get(name, {})


class Discrepancy(Strict):
    """A discrepancy between the paper, the release and this project."""

    subject: str
    paper: str
    release: str
    ours: str
    """May name a measured size as {model.metric}, filled in from `smt profile`."""
    released: str = ""
    """What released weights give here; may name a result as {imagenet1k_smt_tiny.top1}."""
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
    released: bool = False
    """Whether released weights that were evaluated here have a column."""
    sizes: bool = False
    """Whether parameters and MACs of each row's head and model stand beside its results."""
    brief: bool = False
    """Whether it shows published and reproduced numbers alone: further metrics of runs that another
    table has. Its CSV file has differences and verdicts."""

    @property
    def experiments(self) -> tuple[str, ...]:
        """Its experiments in the order of the rows, each once."""
        return tuple(dict.fromkeys(row.experiment for row in self.rows))
