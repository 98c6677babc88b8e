"""The states of all runs of a scale, from their files, their data and SLURM's queue."""

import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from smt.cluster import queue
from smt.cluster.queue import Queue
from smt.cluster.slurm import SlurmUnavailable
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError
from smt.runs import shared_folder, state
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord
from smt.runs.state import Facts, RunState, State


@dataclass(frozen=True)
class States(Mapping[Run, RunState]):
    """The state of every run of a scale at one moment; parents come before children."""

    runs: Mapping[Run, RunState]
    at: float
    """Unix seconds."""
    without_slurm: str
    """Why SLURM is not reachable, in a phrase; empty if it is."""
    problems: tuple[str, ...]
    """What is wrong with data, each with its remedy."""

    def __getitem__(self, run: Run) -> RunState:
        return self.runs[run]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def damages(self) -> tuple[DamagedRecord, ...]:
        """What is wrong with records that cannot be read."""
        damages = (run_state.damage for run_state in self.runs.values())
        return tuple(damage for damage in damages if damage is not None)

    def counts(self) -> dict[State, int]:
        """Return the number of runs in each state that occurs."""
        return state.counts(run_state.state for run_state in self.runs.values())


def read(project: Project, layout: Layout, elsewhere: Container[str] = ()) -> States:
    """Return the states of the runs of a scale now.

    `elsewhere` holds fingerprints of runs whose final numbers MLflow has.
    """
    without_slurm, jobs = "", None
    try:
        jobs = queue.jobs()
    except SlurmUnavailable as problem:
        without_slurm = str(problem)
    reader = _Reader(project, layout, Queue(layout.scale, jobs), time.time(), elsewhere)
    for run in project.runs:
        reader.add(run)
    return States(reader.states, reader.now, without_slurm, tuple(reader.problems))


class _Reader:
    def __init__(
        self, project: Project, layout: Layout, jobs: Queue, now: float, elsewhere: Container[str]
    ) -> None:
        self.project, self.layout, self.queue, self.now = project, layout, jobs, now
        self.elsewhere = elsewhere
        self.states: dict[Run, RunState] = {}
        self.problems: dict[str, None] = {}
        self._digests: dict[tuple[str, ...], dict[str, str] | DataError] = {}

    def add(self, run: Run) -> None:
        """Decide the state of a run; its parent has been added before."""
        digests, parent = self._digests_of(run), self.project.parent(run)
        current, problem = None, ""
        if isinstance(digests, DataError):
            problem = str(digests)
            self.problems.setdefault(problem)
        else:
            current = fingerprint.fingerprint(self.project, run, digests)
        facts = Facts(
            fingerprint=current,
            lacking=self._lacking(run) if problem else (),
            data_problem=problem,
            parent=self.states[parent] if parent else None,
            jobs=self.queue.jobs_of(run, current),
            is_elsewhere=current in self.elsewhere,
            now=self.now,
        )
        self.states[run] = state.decide(self.layout, run, facts)

    def _digests_of(self, run: Run) -> dict[str, str] | DataError:
        needed = fingerprint.inputs(self.project, run)
        if needed not in self._digests:
            try:
                self._digests[needed] = manifest.digests(self.project, self.layout, run)
            except DataError as error:
                self._digests[needed] = error
        return self._digests[needed]

    def _lacking(self, run: Run) -> tuple[str, ...]:
        """Return the data of a run that have no manifest, or none that can be read."""
        keys = fingerprint.inputs(self.project, run)
        paths = {key: manifest.manifest_path(self.layout, key) for key in keys}
        missing = (key for key, path in paths.items() if not shared_folder.exists(path))
        return tuple(missing) or tuple(keys)
