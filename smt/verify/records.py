"""The files of one run: each value is derived again from the others.

`smt.verify.weights` has those of its weights.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.project import Project
from smt.runs import journal, record, shared_folder
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from smt.runs.provenance import diff_file, gpu_seconds
from smt.runs.record import PROVENANCE, Extent, Provenance, RunMetrics
from smt.verify import derive
from smt.verify.derive import Derived
from smt.verify.ledger import NOTHING, OLDER, Ledger, reason, value_or_nothing
from smt.verify.weights import WeightsAudit

_DIGEST = re.compile(r"^[0-9a-f]{64}$")

JOURNALS, NUMBERS, PROVENANCES = "journals", "numbers", "provenance"

DIGESTS = ("journal", "times", "provenance_sha256")
"""What a record holds of the files beside it."""


class RunAudit:
    """Checks the files of one run that is done, whether with the present params or with others."""

    def __init__(
        self, project: Project, layout: Layout, run: Run, final: RunMetrics, ledger: Ledger
    ) -> None:
        self.project, self.layout, self.run = project, layout, run
        self.final, self.ledger = final, ledger
        self.path = layout.metrics(run)
        self.older = not set(DIGESTS) & final.model_fields_set
        """Whether the record has none of the digests: one mismatch, instead of one for each."""
        self.work_dir = layout.work_dir(run, final.fingerprint)
        self.provenance: Provenance | None = None

    def check(self, content: Mapping[str, Any] | None) -> Derived | None:
        """Check everything and return the final numbers as the journal gives them, if it does.

        `content` is what the run's fingerprint is taken of now; None where data have no manifest.
        """
        if self.older:
            self.ledger.add_mismatch(
                NUMBERS, self.path, f"has no digest of the files beside it: {OLDER}"
            )
        if not _DIGEST.match(self.final.fingerprint):
            self.ledger.add_mismatch(
                NUMBERS, self.path, "has no fingerprint, so no run is behind it"
            )
            return None
        read = partial(record.read_provenance, self.work_dir)
        self.provenance = self.ledger.load(PROVENANCES, read)
        if not shared_folder.exists(self.work_dir / PROVENANCE):
            self.ledger.add_mismatch(PROVENANCES, self.work_dir / PROVENANCE, "is not there")
        derived = self._journal()
        self._numbers(derived)
        if self.provenance is not None:
            self._provenance(self.provenance, content)
        weights = WeightsAudit(
            self.project, self.layout, self.run, self.final, self.provenance, self.ledger,
            older=self.older,
        )  # fmt: skip
        weights.check_weights()
        weights.check_evaluation()
        if derived is not None:
            weights.check_checkpoint()
            weights.check_milestones()
        return derived

    # --- journal and numbers -------------------------------------------------------------------

    def _journal(self) -> Derived | None:
        path = self.work_dir / journal.JOURNAL
        self._extent(self.final.journal, path)
        self._extent(self.final.times, self.work_dir / journal.TIMES)
        self.ledger.add_item(JOURNALS, path)
        try:
            return derive.derive(self.work_dir)
        except (OSError, ValueError) as error:
            self.ledger.add_mismatch(JOURNALS, path, f"gives no final numbers: {reason(error)}")
            return None

    def _extent(self, recorded: Extent | None, path: Path) -> None:
        if recorded is None:
            if not self.older:
                self.ledger.add_mismatch(JOURNALS, self.path, f"has no digest of {path}: {OLDER}")
            return
        try:
            actual = journal.extent(path)
        except OSError as error:
            self.ledger.add_mismatch(JOURNALS, path, f"cannot be read ({reason(error)})")
            return
        source = f"{self.path}, written when the run was done"
        for part in ("sha256", "bytes", "lines"):
            own, value = actual[part], getattr(recorded, part)
            self.ledger.compare(JOURNALS, f"{path}: {part}", own, value, source)

    def _numbers(self, derived: Derived | None) -> None:
        ledger, final, path = self.ledger, self.final, self.path
        ledger.add_item(NUMBERS, path)
        place = {
            "experiment": self.run.experiment, "seed": self.run.seed, "scale": self.layout.scale
        }  # fmt: skip
        for key, value in place.items():
            ledger.compare(NUMBERS, f"{path}: {key}", getattr(final, key), value, "where it lies")
        if derived is not None:
            self._metrics(derived)
        if self.provenance is None:
            return
        attempts = self.provenance.attempts
        expected: dict[str, Any] = {
            "task": self.provenance.params.get("task"),
            "changes": [change for attempt in attempts for change in attempt.changes],
            "deviations": list(self.provenance.deviations),
        }
        if not self.older:
            expected["finished"] = value_or_nothing(attempts[-1].ended)
            expected["gpu_seconds"] = gpu_seconds(attempts)
        for key, value in expected.items():
            recorded = value_or_nothing(getattr(final, key))
            ledger.compare(NUMBERS, f"{path}: {key}", recorded, value, self.work_dir / PROVENANCE)

    def _metrics(self, derived: Derived) -> None:
        ledger, path = self.ledger, self.path
        ledger.compare_all(
            NUMBERS, path, {"metrics": self.final.metrics}, {"metrics": derived.metrics},
            derived.source,
        )  # fmt: skip
        ends = f"{self.work_dir / journal.JOURNAL}, its last line"
        expected = {
            "epochs": (derived.epochs, ends),
            "steps": (derived.steps, ends),
            "skipped_steps": (derived.skipped_steps, self.work_dir / journal.JOURNAL),
        }
        for key, (value, source) in expected.items():
            recorded = value_or_nothing(getattr(self.final, key))
            ledger.compare(NUMBERS, f"{path}: {key}", recorded, value, source)
        if self.provenance is not None:
            self._length(derived, self.provenance.params.get("recipe", {}))

    def _length(self, derived: Derived, recipe: Mapping[str, Any]) -> None:
        """Compare images and epochs with the recipe that provenance records."""
        log = self.work_dir / journal.JOURNAL
        self.ledger.compare(
            NUMBERS, f"{self.path}: images", self.final.images,
            derived.steps * recipe.get("global_batch", 0),
            f"the steps in {log} and the global batch",
        )  # fmt: skip
        self.ledger.compare(
            JOURNALS, f"{log}: epochs of its last line", derived.epochs,
            _epochs(recipe.get("schedule", {})),
            f"{self.work_dir / PROVENANCE}: params.recipe.schedule",
        )  # fmt: skip

    # --- provenance ----------------------------------------------------------------------------

    def _provenance(self, provenance: Provenance, content: Mapping[str, Any] | None) -> None:
        path, ledger, final = self.work_dir / PROVENANCE, self.ledger, self.final
        ledger.add_item(PROVENANCES, path)
        if final.provenance_sha256 is None and not self.older:
            ledger.add_mismatch(PROVENANCES, self.path, f"has no digest of {path}: {OLDER}")
        if final.provenance_sha256 is not None:
            ledger.compare(
                PROVENANCES, f"{path}: SHA-256", sha256(path), final.provenance_sha256,
                f"{self.path}, written when the run was done",
            )  # fmt: skip
        digest = fingerprint.digest(provenance.params)
        for where, value in ((path, provenance.fingerprint), (self.path, final.fingerprint)):
            ledger.compare(
                PROVENANCES, f"{where}: fingerprint", value, digest, f"the params in {path}"
            )
        for key in ("experiment", "seed", "scale"):
            value, expected = getattr(provenance, key), getattr(final, key)
            ledger.compare(PROVENANCES, f"{path}: {key}", value, expected, self.path)
        self._present(provenance, content)
        self._parent(provenance)
        self._differences(provenance)

    def _present(self, provenance: Provenance, content: Mapping[str, Any] | None) -> None:
        """Compare with params and manifests as they are now, if the run is of them."""
        path, ledger = self.work_dir / PROVENANCE, self.ledger
        if content is None or fingerprint.digest(content) != self.final.fingerprint:
            return
        experiment = self.project.experiments[self.run.experiment]
        ledger.compare_all(
            PROVENANCES, path, {"params": provenance.params}, {"params": content},
            "params/ and the manifests",
        )  # fmt: skip
        expected = {
            "task": experiment.task,
            "model": experiment.model,
            "recipe": experiment.recipe,
            "dataset": self.project.dataset_of(self.run.experiment),
            "group": experiment.group,
        }
        names = {"names": provenance.names.as_json()}
        ledger.compare_all(PROVENANCES, path, names, {"names": expected}, "params/experiments.yaml")
        dataset = expected["dataset"]
        ledger.compare(
            PROVENANCES, f"{path}: data.{dataset}", provenance.data.get(dataset), content["data"],
            self.layout.manifest(dataset),
        )  # fmt: skip
        recipe = self.project.recipes[experiment.recipe]
        steps = self.project.steps_per_epoch(self.run.experiment) * recipe.schedule.epochs
        ledger.compare(
            NUMBERS, f"{self.path}: steps", self.final.steps, steps,
            "epochs, images and global batch in params/",
        )  # fmt: skip

    def _parent(self, provenance: Provenance) -> None:
        """Compare the parent that the run started from with the one that is there."""
        path, ledger, recorded = self.work_dir / PROVENANCE, self.ledger, provenance.parent
        ledger.compare(
            PROVENANCES, f"{path}: parent.fingerprint", recorded.fingerprint if recorded else None,
            provenance.params.get("parent"), f"{path}: params.parent",
        )  # fmt: skip
        if recorded is None:
            return
        parent = Run(experiment=recorded.experiment, seed=recorded.seed)
        metrics = ledger.load(PROVENANCES, partial(record.read_metrics, self.layout, parent))
        if metrics is None or metrics.fingerprint != recorded.fingerprint:
            state = "is not there" if metrics is None else "has been trained again since"
            ledger.add_note(PROVENANCES, f"{self.run} started from {parent}, which {state}")
            return
        ledger.compare(
            PROVENANCES, f"{path}: parent.weights_sha256", recorded.weights_sha256,
            metrics.weights_sha256, self.layout.metrics(parent),
        )  # fmt: skip

    def _differences(self, provenance: Provenance) -> None:
        """Compare each stored difference from a commit with its digest."""
        for digest in provenance.diffs:
            path = diff_file(self.work_dir, digest)
            actual = sha256(path) if shared_folder.exists(path) else NOTHING
            self.ledger.compare(
                PROVENANCES, f"{path}: SHA-256", actual, digest, self.work_dir / PROVENANCE
            )


def _epochs(recorded: Mapping[str, Any]) -> Any:
    """Return the epochs of a recorded schedule, or NOTHING where it states none."""
    try:
        return derive.schedule_epochs(recorded)
    except (KeyError, TypeError, ValueError):
        return NOTHING
