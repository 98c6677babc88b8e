"""Cost estimates aggregated per experiment, table and total: what is done, and what is to do."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from smt.cluster.cost import Estimate, estimate
from smt.cluster.measured import MeasuredRate
from smt.config.experiments import Run
from smt.config.project import Project
from smt.runs.state import State


@dataclass(frozen=True)
class Part:
    """Some runs of a budget."""

    runs: tuple[Run, ...]
    done: int
    gpu_hours: float
    gpu_hours_to_do: float
    longest_hours: float
    """Of what is to do: the longest chain of runs that wait for each other, on GPUs of its own."""

    @property
    def to_do(self) -> int:
        return len(self.runs) - self.done


class Budget:
    """The chosen runs of a project, and those that they start from."""

    def __init__(
        self,
        project: Project,
        chosen: Iterable[Run],
        states: Mapping[Run, State],
        rates: Mapping[str, MeasuredRate] | None = None,
    ) -> None:
        """`rates` are those that runs of an experiment have reached on GPUs."""
        self.project = project
        self.rates = rates or {}
        self.runs = self._with_parents(chosen)
        self.states = {run: states.get(run, State.NOT_STARTED) for run in self.runs}
        self._done = {run for run, state in self.states.items() if state is State.DONE}

    def _with_parents(self, chosen: Iterable[Run]) -> tuple[Run, ...]:
        found: dict[Run, None] = {}
        for run in chosen:
            lineage = [run]
            while (parent := self.project.parent(lineage[-1])) is not None:
                lineage.append(parent)
            found.update(dict.fromkeys(reversed(lineage)))
        return tuple(found)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """What each run costs, by its experiment."""
        names = dict.fromkeys(run.experiment for run in self.runs)
        return {name: estimate(self.project, name, self._rate(name)) for name in names}

    def _rate(self, name: str) -> float | None:
        return self.rates[name].images_per_second if name in self.rates else None

    @property
    def total(self) -> Part:
        """All of it, each run once."""
        return self._part(self.runs)

    def experiment(self, name: str) -> Part:
        """Return the runs of one experiment alone."""
        return self._part(run for run in self.runs if run.experiment == name)

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables without those that show further metrics of another's runs."""
        return tuple(name for name, table in self.project.tables.items() if not table.brief)

    def table(self, name: str) -> Part:
        """Return the runs whose results stand in a table, and those that they start from."""
        rows = {row.experiment for row in self.project.tables[name].rows}
        return self._part(self._with_parents(run for run in self.runs if run.experiment in rows))

    @property
    def shared(self) -> tuple[str, ...]:
        """Experiments that more than one table needs."""
        counts = Counter(
            experiment
            for table in self.tables
            for experiment in {run.experiment for run in self.table(table).runs}
        )
        return tuple(name for name in self.estimates if counts[name] > 1)

    def _part(self, runs: Iterable[Run]) -> Part:
        runs = tuple(runs)
        to_do = [run for run in runs if run not in self._done]
        return Part(
            runs=runs,
            done=len(runs) - len(to_do),
            gpu_hours=self._gpu_hours(runs),
            gpu_hours_to_do=self._gpu_hours(to_do),
            longest_hours=max((self._chain_hours(run) for run in to_do), default=0.0),
        )

    def _gpu_hours(self, runs: Iterable[Run]) -> float:
        return sum(self.estimates[run.experiment].gpu_hours for run in runs)

    def _chain_hours(self, run: Run) -> float:
        """Return the hours until `run` is evaluated, if everything that is free to start does."""
        hours, current = self.estimates[run.experiment].evaluation_hours, run
        while current not in self._done:
            hours += self.estimates[current.experiment].wall_hours
            parent = self.project.parent(current)
            if parent is None:
                break
            current = parent
        return hours
