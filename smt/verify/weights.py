"""What a run's weights are measured against: their digest, their evaluation, the checkpoint.

The newest checkpoint is a second source: it holds how far journal, weights and accuracy were.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smt.config.experiments import Run
from smt.config.metrics import HEADLINES, METRICS
from smt.config.project import Project
from smt.runs import journal, milestones, record, replays, shared_folder
from smt.runs.atomic import sha256
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.milestones import BrokenChain
from smt.runs.paths import Layout
from smt.runs.provenance import flatten
from smt.runs.record import Provenance, RunEvaluation, RunMetrics
from smt.verify import tensors
from smt.verify.ledger import NOTHING, OLDER, Ledger, equal, reason
from smt.verify.milestones import file_of, problem_of

WEIGHTS, EVALUATIONS, CHECKPOINTS = "weights", "evaluations", "checkpoints"
MILESTONES = "milestones"


class WeightsAudit:
    """Checks the exported weights of one run that is done, and what was measured of them."""

    def __init__(
        self,
        project: Project,
        layout: Layout,
        run: Run,
        final: RunMetrics,
        provenance: Provenance | None,
        ledger: Ledger,
        *,
        older: bool,
    ) -> None:
        self.project, self.layout, self.run = project, layout, run
        self.final, self.provenance, self.ledger = final, provenance, ledger
        self.older = older
        """Whether the record is from before records had digests of the files beside it."""
        self.path = layout.metrics(run)
        self.work_dir = layout.work_dir(run, final.fingerprint)

    def check_weights(self) -> None:
        """Compare the exported weights with the record of the run."""
        path, ledger = self.layout.weights(self.run), self.ledger
        if not shared_folder.exists(path):
            ledger.add_mismatch(WEIGHTS, path, f"is not there, but {self.path} is of it")
            return
        ledger.add_item(WEIGHTS, path)
        recorded = self.final.weights_sha256
        if not ledger.compare(WEIGHTS, f"{path}: SHA-256", sha256(path), recorded, self.path):
            return
        try:
            names = tensors.read(path).smt
        except (OSError, ValueError) as error:
            ledger.add_mismatch(WEIGHTS, path, reason(error))
            return
        for key in ("experiment", "seed", "scale", "fingerprint"):
            value = str(getattr(self.final, key))
            ledger.compare(WEIGHTS, f"{path}: {key}", names.get(key), value, self.path)

    def check_evaluation(self) -> None:
        """Compare the evaluation of the weights on their own with the record of the run."""
        path, ledger = self.layout.evaluation(self.run), self.ledger
        read = partial(record.read_evaluation, self.layout, self.run)
        evaluation = ledger.load(EVALUATIONS, read)
        if evaluation is None:
            if not shared_folder.exists(path):
                ledger.add_note(EVALUATIONS, f"{self.run} has not been evaluated on its own yet")
            return
        ledger.add_item(EVALUATIONS, path)
        for key in ("experiment", "seed", "scale", "fingerprint", "weights_sha256"):
            value, expected = getattr(evaluation, key), getattr(self.final, key)
            ledger.compare(EVALUATIONS, f"{path}: {key}", value, expected, self.path)
        if evaluation.metrics_sha256 is not None:
            digest = sha256(self.path)
            ledger.compare(
                EVALUATIONS, f"{path}: metrics_sha256", evaluation.metrics_sha256, digest, self.path
            )
        elif not self.older:
            ledger.add_mismatch(EVALUATIONS, path, f"has no digest of {self.path}: {OLDER}")
        self._agreement(path, evaluation)
        dataset = self.project.datasets[self.project.dataset_of(self.run.experiment)]
        images = f"{path}: images"
        ledger.compare(
            EVALUATIONS, images, evaluation.images, dataset.val_images, "params/data.yaml"
        )

    def _agreement(self, path: Path, evaluation: RunEvaluation) -> None:
        """Compare numbers exactly on the same machine, and within tolerances on another."""
        final = self.final.metrics
        trained_in = self.provenance.attempts[-1].environment if self.provenance else None
        exact = trained_in is not None and evaluation.environment == trained_in
        for name in sorted(set(final) & set(METRICS)):
            value, allowed = evaluation.metrics.get(name), 0.0 if exact else METRICS[name].tolerance
            agrees = value is not None and (
                equal(value, final[name]) or abs(value - final[name]) <= allowed
            )
            how = "the same machine" if exact else f"within {allowed:g} on another machine"
            self.ledger.compare(
                EVALUATIONS, f"{path}: metrics.{name}", value if not agrees else final[name],
                final[name], f"{self.path} ({how})",
            )  # fmt: skip

    def check_checkpoint(self) -> None:
        """Compare the run's files with its newest checkpoint, where that has been kept."""
        paths = checkpoints(self.work_dir)
        if not paths:
            self.ledger.add_note(CHECKPOINTS, f"{self.run} has none that was kept")
            return
        path, name = paths[0], CheckpointName.of(paths[0])
        self.ledger.add_item(CHECKPOINTS, path)
        if not self.ledger.compare(
            CHECKPOINTS, f"{path}: SHA-256", sha256(path), name.sha256, "its name"
        ):
            return
        try:
            facts = tensors.read(path).facts
        except (OSError, ValueError) as error:
            self.ledger.add_mismatch(CHECKPOINTS, path, str(error))
            return
        self._facts(path, facts)
        self._best(path, facts["best"])
        self._same_weights(path)

    def check_milestones(self) -> None:
        """Compare the milestones that are here with the journal; note what was trained again."""
        ledger = self.ledger
        try:
            chain = milestones.read(self.work_dir)
        except BrokenChain as error:
            where, _, what = str(error).partition(": ")
            ledger.add_mismatch(MILESTONES, where, what)
            return
        here = [each for each in chain if file_of(self.work_dir, each) is not None]
        for milestone in here:
            ledger.add_item(MILESTONES, (self.run, milestone))
            problem = problem_of(self.work_dir, milestone)
            if problem is None:
                ledger.comparisons[MILESTONES] += 1
            else:
                where, _, what = problem.partition(": ")
                ledger.add_mismatch(MILESTONES, where, what)
        if len(here) < len(chain):
            missing = len(chain) - len(here)
            ledger.add_note(MILESTONES, f"{missing} of {len(chain)} of {self.run} are not here")
        if chain:
            self._replays()

    def _replays(self) -> None:
        read = partial(replays.read, self.layout, self.run, self.final)
        known = self.ledger.load(MILESTONES, read)
        if known is None:
            return
        for replay in known.replays:
            if replay.outcome == "differs":
                where = f"{self.layout.audit(self.run)}: steps {replay.start_step} to "
                what = f"trained again, it differs: {replay.difference}"
                self.ledger.add_mismatch(MILESTONES, f"{where}{replay.end_step}", what)
        self.ledger.add_note(MILESTONES, f"{self.run}: {known.summary}")

    def _facts(self, path: Path, facts: Mapping[str, Any]) -> None:
        recorded = dict(flatten(self.final.as_json()))
        expected = {
            "epochs": facts["epochs"],
            "steps": facts["step"],
            "skipped_steps": facts["trend"]["skipped"],
            "wall_seconds": round(facts["seconds"], 3),
            "journal.bytes": facts["journal"]["bytes"],
            "journal.lines": facts["journal"]["lines"],
            **facts["identity"],
        }
        if self.final.journal is None:  # a mismatch of its own
            del expected["journal.bytes"], expected["journal.lines"]
        for key, value in expected.items():
            where = f"{self.path}: {key}"
            self.ledger.compare(CHECKPOINTS, where, recorded.get(key, NOTHING), value, path)

    def _best(self, path: Path, recorded: float | None) -> None:
        """Compare the best accuracy of the journal with the one that the checkpoint holds."""
        log = self.work_dir / journal.JOURNAL
        if recorded is None:
            return
        try:
            lines = [line.metrics for line in journal.lines(self.work_dir, finished=True)]
        except (OSError, ValueError):
            return  # a mismatch of its own
        evaluated = {name for metrics in lines for name in metrics}
        headlines = (f"eval/{name}" for name in HEADLINES.values())
        name = next((headline for headline in headlines if headline in evaluated), "metric")
        best = max((metrics[name] for metrics in lines if name in metrics), default=None)
        self.ledger.compare(CHECKPOINTS, f"{log}: best {name}", best, recorded, path)

    def _same_weights(self, path: Path) -> None:
        exported = self.layout.weights(self.run)
        try:
            names = tensors.differing(exported, path, "model.")
        except (OSError, ValueError):
            return  # a mismatch of its own
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            what = f"tensor {names[0]}{more} is not that of {path}"
            self.ledger.add_mismatch(CHECKPOINTS, exported, what)
        else:
            self.ledger.comparisons[CHECKPOINTS] += 1
