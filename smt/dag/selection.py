"""The runs of one scale that the DAG is made for."""

from collections.abc import Iterable
from dataclasses import dataclass

from smt.config.experiments import Run
from smt.config.project import Project
from smt.runs.paths import Layout


@dataclass(frozen=True)
class Selection:
    """The chosen runs of one scale. Every path is a string, as Snakemake compares them."""

    project: Project
    layout: Layout
    only_seeds: tuple[int, ...] | None = None
    """Where given, runs of other seeds are left out."""

    def group(self, name: str) -> tuple[str, ...]:
        """Return the experiments of a group, parents before children."""
        experiments = self.project.experiments
        return tuple(
            experiment for experiment in self.project.order if experiments[experiment].group == name
        )

    def with_head(self, has_head: bool) -> tuple[str, ...]:
        """Return the detectors and segmenters, or the classifiers, which have no head of theirs."""
        experiments = self.project.experiments
        return tuple(
            name for name in self.project.order if (experiments[name].head is not None) is has_head
        )

    def runs(self, experiments: Iterable[str] | None = None) -> tuple[Run, ...]:
        """Return the chosen runs of `experiments` (default: all), parents before children."""
        names = set(self.project.order if experiments is None else experiments)
        return tuple(
            run for run in self.project.runs if run.experiment in names and self._has_seed(run.seed)
        )

    def _has_seed(self, seed: int) -> bool:
        return self.only_seeds is None or seed in self.only_seeds

    @property
    def released(self) -> tuple[str, ...]:
        """Experiments for which params name a file of released weights."""
        return tuple(name for name, entry in self.project.released.items() if entry.file)

    def released_results(self, experiments: Iterable[str] | None = None) -> list[str]:
        """Return the evaluations of released weights for `experiments` (default: all)."""
        names = set(self.released if experiments is None else experiments)
        return [str(self.layout.released(name)) for name in self.released if name in names]

    def results(self, experiments: Iterable[str] | None = None) -> list[str]:
        """Return the inputs of tables from each run: final numbers and independent evaluation."""
        return [
            str(path)
            for run in self.runs(experiments)
            for path in (self.layout.metrics(run), self.layout.evaluation(run))
        ]
