"""Released weights that were evaluated here, as tables show them beside published numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.config.published import Row
from smt.report.format import css_class, exact, joined
from smt.report.grid import Cell
from smt.report.sizes import PAPER
from smt.runs import released
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord
from smt.runs.released import ReleasedEvaluation
from smt.runs.state import State

COLUMN = "released weights, here"

_EXPLAINED = (
    "Released weights, here: the authors' own checkpoint in the evaluation that trainings have "
    "here; no training of ours is in it. An estimate from a random sample has its interval in "
    "brackets ({interval})."
)


@dataclass(frozen=True)
class ReleasedResults:
    """The evaluations of released weights at one scale."""

    layout: Layout
    evaluations: Mapping[str, ReleasedEvaluation] = field(default_factory=dict)
    """By the experiment in whose row they stand."""
    damages: Mapping[str, DamagedRecord] = field(default_factory=dict)
    """Records that cannot be read, likewise."""

    def value(self, experiment: str, metric: str) -> float | None:
        """Return a metric in percent; None where it was not measured."""
        found = self.evaluations.get(experiment)
        return None if found is None else found.metrics.get(metric)

    def cell(self, experiment: str, metric: str) -> Cell:
        """Return what stands in the column of released weights."""
        if experiment in self.damages:
            return Cell.of(State.FAILED, kind=css_class(State.FAILED))
        found = self.evaluations.get(experiment)
        if found is None or metric not in found.metrics:
            return Cell.of("")
        return Cell.of(
            number(found, metric), title=f"{found.weights.path}, SHA-256 {found.weights.sha256}"
        )

    def record(self, experiment: str, metric: str) -> dict[str, str]:
        """Return the number and its interval for machines."""
        found = self.evaluations.get(experiment)
        low, high = found.intervals.get(metric, (None, None)) if found else (None, None)
        return {
            f"{metric}_released": exact(self.value(experiment, metric)),
            f"{metric}_released_low": exact(low),
            f"{metric}_released_high": exact(high),
        }

    def file_record(self, experiment: str) -> dict[str, str]:
        """Return the file and the images that the numbers are of, for machines."""
        found = self.evaluations.get(experiment)
        return {
            "released_sha256": found.weights.sha256 if found else "",
            "released_images": str(found.images) if found else "",
        }

    def notes(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield where the numbers of rows come from, and why others have none."""
        intervals = {self.evaluations[row.experiment].interval for row in rows
                     if row.experiment in self.evaluations}  # fmt: skip
        interval = joined(sorted(intervals - {""})) or "none here"
        yield _EXPLAINED.format(interval=interval)
        for row in rows:
            if row.experiment in self.evaluations:
                yield f"{row.label}: {source(self.evaluations[row.experiment])}."
            elif row.experiment in self.damages:
                yield f"{row.label}: {State.FAILED}: {self.damages[row.experiment]}."
        missing = [
            row.label for row in rows
            if row.experiment not in self.evaluations and row.experiment not in self.damages
        ]  # fmt: skip
        if missing:
            yield (
                f"Released weights not evaluated here: {joined(missing)}; name a file in "
                "params/released.yaml and run snakemake released, or run "
                f"{released.command(self.layout, 'EXPERIMENT')}."
            )


def number(evaluation: ReleasedEvaluation, metric: str) -> str:
    """Return a metric as text; of an estimate with its interval, of other images with their number.

    Other images are any that are not as many as the data set has.
    """
    text, data = with_interval(evaluation, metric), evaluation.data
    others = data.images != data.expected
    return f"{text} on {evaluation.images:,} other images" if others else text


def with_interval(evaluation: ReleasedEvaluation, metric: str) -> str:
    """Return a metric as text; of an estimate with its interval."""
    decimals = METRICS[metric].decimals
    text = f"{evaluation.metrics[metric]:.{decimals}f}"
    if metric in evaluation.intervals:
        low, high = evaluation.intervals[metric]
        text += f" ({low:.{decimals}f} to {high:.{decimals}f})"
    return text


def source(evaluation: ReleasedEvaluation) -> str:
    """Return file, images and preprocessing of an evaluation, in a phrase."""
    weights, data, used = evaluation.weights, evaluation.data, evaluation.preprocessing
    sample = f"a random sample of {evaluation.images:,} of " if evaluation.is_estimate else ""
    name = weights.path.rpartition("/")[2]
    return (
        f"{name} (SHA-256 {weights.sha256[:12]}), {sample}{data.images:,} images of {data.root}, "
        f"at {used.resolution}, preprocessing {used.name}"
    )


def read_released(project: Project, layout: Layout) -> dict[str, ReleasedResults]:
    """Return the evaluations at the paper's scale and at the project's own, by scale."""
    scales = dict.fromkeys((PAPER, project.scale_name))
    return {scale: _read(project, Layout(scale, layout.results, layout.data)) for scale in scales}


def _read(project: Project, layout: Layout) -> ReleasedResults:
    evaluations: dict[str, ReleasedEvaluation] = {}
    damages: dict[str, DamagedRecord] = {}
    for name in project.evaluated_classifiers:
        try:
            found = released.read(layout, name)
        except DamagedRecord as damage:
            damages[name] = damage
            continue
        if found is not None:
            evaluations[name] = found
    return ReleasedResults(layout, evaluations, damages)
