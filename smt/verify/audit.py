"""Everything that `smt verify` compares, in one pass over a scale's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from smt.cluster import states
from smt.cluster.states import States
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import require_experiments
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError, UserError
from smt.report.build import experiments_of, table_names
from smt.report.sizes import PAPER
from smt.runs import record, shared_folder
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, Environment
from smt.tracking.client import RemoteRun
from smt.tracking.view import RunView, read_views
from smt.verify import data, released, tables, tracking
from smt.verify.derive import Derived
from smt.verify.ledger import Ledger
from smt.verify.records import NUMBERS, RunAudit
from smt.verify.tracking import Receipt

RUNS = "runs"


@dataclass
class Audit:
    """Compares every recorded value of a scale's runs with the value derived from its source.

    Nothing is written, and no server is needed: where MLflow is not reachable, a note says so.
    """

    project: Project
    layout: Layout
    paper: Project
    """The same params at the paper's scale, whose sizes stand in the tables as well."""
    ledger: Ledger = field(default_factory=Ledger)
    derived: dict[Run, Derived] = field(default_factory=dict)
    """Final numbers by the journals."""
    trained_in: dict[Run, Environment | None] = field(default_factory=dict)
    """The environment of the last attempt of each run, which decides the last bits."""

    @cached_property
    def states(self) -> States:
        """The state of every run of the scale."""
        return states.read(self.project, self.layout)

    def check_run(self, run: Run) -> None:
        """Check the files of one run, if it is done."""
        if not shared_folder.exists(self.layout.metrics(run)):
            self.ledger.add_note(RUNS, f"{run} is {self.states[run].state}")
            return
        self.ledger.add_item(RUNS, run)
        content = self._content(run)
        final = self.ledger.load(NUMBERS, partial(record.read_metrics, self.layout, run))
        if final is None:
            return
        check = RunAudit(self.project, self.layout, run, final, self.ledger)
        try:
            derived = check.check(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # JSON, but not of the form that trainings write: which value, the rest cannot tell.
            what = f"records are damaged ({type(error).__name__}: {error})"
            self.ledger.add_mismatch(RUNS, self.layout.run_dir(run), f"{what}; train the run again")
            return
        if derived is None:
            return
        if not self.states[run].is_confirmed:
            self.ledger.add_note(RUNS, f"{run} is of other params or data than the present ones")
        self.derived[run] = derived
        provenance = check.provenance
        self.trained_in[run] = provenance.attempts[-1].environment if provenance else None

    def _content(self, run: Run) -> dict[str, Any] | None:
        try:
            digests = manifest.digests(self.project, self.layout, run)
        except DataError:
            return None
        return fingerprint.content(self.project, run, digests)

    def check_all(
        self, experiments: Sequence[str] = (), measure: tables.Measure | None = None
    ) -> Ledger:
        """Check these experiments' runs, or all, and whatever prints their numbers."""
        project, layout, ledger = self.project, self.layout, self.ledger
        require_experiments(project, experiments)
        names = [name for name in project.order if not experiments or name in experiments]
        runs = [run for run in project.runs if run.experiment in names]
        for run in runs:
            self.check_run(run)
        keys = dict.fromkeys(key for run in runs for key in fingerprint.inputs(project, run))
        data.check(layout, keys, ledger)
        if not experiments:
            self._check_sizes(measure)
            released.check(project, layout, ledger)
        self._check_outputs(names, experiments)
        return ledger

    def _check_sizes(self, measure: tables.Measure | None) -> None:
        scales = {self.layout.scale: self.project, PAPER: self.paper}
        for scale, project in scales.items():
            layout = Layout(scale, self.layout.results, self.layout.data)
            tables.check_sizes(project, layout, self.ledger, measure)

    def _check_outputs(self, names: Sequence[str], experiments: Sequence[str]) -> None:
        """Check tables and MLflow, unless files are in such a state that neither can be read."""
        project, layout, ledger = self.project, self.layout, self.ledger
        try:
            receipt = Receipt.read(layout)
        except DamagedRecord as damage:
            ledger.add_damaged_record(tracking.MLFLOW, damage)
            receipt = None
        try:
            run_views, damages = read_views(project, layout, project.order)
            for damaged in damages:
                ledger.add_damaged_record(RUNS, damaged)
            connection = tracking.connect(layout, ledger)
            remote = connection[1] if connection else {}
            if receipt is None and connection is not None:
                receipt = Receipt.of(*connection)
            if connection is not None:
                selected = [view for view in run_views if view.run.experiment in names]
                tracking.check(connection[0], remote, selected, receipt, ledger)
            self._check_tables(run_views, receipt, remote, experiments)
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            # The damaged record is a mismatch already; this line names what was not compared.
            ledger.add_mismatch(
                tables.TABLES, layout.tables,
                f"cannot be compared while records of runs are damaged ({type(error).__name__}: "
                f"{error})",
            )  # fmt: skip

    def _check_tables(
        self,
        run_views: Sequence[RunView],
        receipt: Receipt | None,
        remote: Mapping[str, RemoteRun],
        experiments: Sequence[str],
    ) -> None:
        project, layout = self.project, self.layout
        unselected = Audit(project, layout, self.paper, derived=self.derived)
        for run in project.runs:  # those that were not chosen are in the tables as well
            if run not in self.derived and run.experiment not in (experiments or project.order):
                unselected.check_run(run)
        here = {view.fingerprint for view in run_views}
        elsewhere = {key: run for key, run in remote.items() if key not in here}
        names = self._names(experiments)
        if experiments and not names:
            return
        results = tracking.expected_results(
            project, layout, run_views, self.derived, receipt, elsewhere
        )
        for result in results.runs.values():
            if result.fingerprint in elsewhere and result.has_numbers:
                self.ledger.add_mismatch(
                    RUNS, result.run,
                    "its files are not here, so its numbers are in MLflow alone: bring them "
                    "(dvc pull), or verify where it was trained",
                )  # fmt: skip
        tables.check(results, layout, names, self.ledger)

    def _names(self, experiments: Sequence[str]) -> tuple[str, ...]:
        """Return the tables that these experiments stand in; none stands for all."""
        if not experiments:
            return ()
        return tuple(
            name
            for name in table_names(self.project)
            if set(experiments_of(self.project, name)) & set(experiments)
        )
