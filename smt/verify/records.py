"""The files of one run: each value of them worked out again from the others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.runs import journal, provenance
from smt.runs.atomic import read_json, sha256
from smt.runs.paths import Layout
from smt.runs.provenance import PROVENANCE
from smt.verify import schedule, tensors
from smt.verify.derive import Derived, derive
from smt.verify.ledger import NOTHING, Ledger, same

_DIGEST = re.compile(r"^[0-9a-f]{64}$")

JOURNALS, NUMBERS, PROVENANCES = "journals", "numbers", "provenance"
WEIGHTS, EVALUATIONS = "weights", "evaluations"

OLDER = (
    "trained before records held this, or it was taken out: a change would not be seen; train the "
    "run again"
)

DIGESTS = ("journal", "times", "provenance_sha256")
"""What a record holds of the files beside it."""


def load(ledger: Ledger, kind: str, path: Path) -> dict[str, Any] | None:
    """Return a JSON file's mapping; None without such a file, or with a finding if it is none."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        ledger.find(kind, path, f"cannot be read ({error}); {_again(path)}")
        return None
    if content is not None and not isinstance(content, dict):
        ledger.find(kind, path, f"holds no record; {_again(path)}")
        return None
    return content


def _again(path: Path) -> str:
    return f"move {path.parent} aside and train the run again"


class RunAudit:
    """Checks the files of one run that is done, whether with the present params or with others."""

    def __init__(self, project: Project, layout: Layout, run: Run, ledger: Ledger) -> None:
        self.project, self.layout, self.run, self.ledger = project, layout, run, ledger
        self.path = layout.metrics(run)
        self.final: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.older = False
        """Whether the record has none of the digests, which is one finding and not many."""
        self.work_dir = self.path.parent

    def check(self, content: Mapping[str, Any] | None) -> Derived | None:
        """Check everything and return the final numbers as the journal gives them, if it does.

        `content` is what the run's fingerprint is taken of now; None where data have no manifest.
        """
        final = load(self.ledger, NUMBERS, self.path)
        if final is None:
            return None
        self.final = final
        self.older = not set(DIGESTS) & final.keys()
        if self.older:
            self.ledger.find(NUMBERS, self.path, f"has no digest of the files beside it: {OLDER}")
        if not _DIGEST.match(str(final.get("fingerprint"))):
            self.ledger.find(NUMBERS, self.path, "has no fingerprint, so no run is behind it")
            return None
        self.work_dir = self.layout.work_dir(self.run, final["fingerprint"])
        known = load(self.ledger, PROVENANCES, self.work_dir / PROVENANCE)
        if known is None:
            self.ledger.find(PROVENANCES, self.work_dir / PROVENANCE, "is not there")
        self.provenance = known or {}
        derived = self._journal()
        self._numbers(derived)
        self._provenance(content)
        self._weights()
        self._evaluation()
        return derived

    # --- journal and numbers -------------------------------------------------------------------

    def _journal(self) -> Derived | None:
        for key, name in (("journal", journal.JOURNAL), ("times", journal.TIMES)):
            self._extent(key, self.work_dir / name)
        path = self.work_dir / journal.JOURNAL
        self.ledger.look(JOURNALS, path)
        try:
            return derive(self.work_dir)
        except (OSError, ValueError) as error:
            self.ledger.find(JOURNALS, path, f"gives no final numbers: {_reason(error)}")
            return None

    def _extent(self, key: str, path: Path) -> None:
        said = self.final.get(key)
        if said is None:
            if self.older:
                return
            self.ledger.find(JOURNALS, self.path, f"has no digest of {path}: {OLDER}")
            return
        try:
            found = journal.extent(path)
        except OSError as error:
            self.ledger.find(JOURNALS, path, f"cannot be read ({_reason(error)})")
            return
        said = dict(said) if isinstance(said, dict) else {"sha256": said}
        source = f"{self.path}, written when the run was done"
        for part in ("sha256", "bytes", "lines"):
            self.ledger.expect(
                JOURNALS, f"{path}: {part}", found[part], said.get(part, NOTHING), source
            )

    def _numbers(self, derived: Derived | None) -> None:
        ledger, final, path = self.ledger, self.final, self.path
        ledger.look(NUMBERS, path)
        place = {
            "experiment": self.run.experiment, "seed": self.run.seed, "scale": self.layout.scale
        }  # fmt: skip
        for key, value in place.items():
            ledger.expect(NUMBERS, f"{path}: {key}", final.get(key), value, "where it lies")
        if derived is not None:
            self._metrics(derived)
        attempts = self.provenance.get("attempts") or []
        if not attempts:
            return
        source = self.work_dir / PROVENANCE
        changes = [each for attempt in attempts for each in attempt.get("changes", [])]
        follows = {
            "task": self.provenance.get("params", {}).get("task"),
            "changes": changes,
        }
        if not self.older:
            follows["finished"] = attempts[-1].get("ended", NOTHING)
            follows["gpu_seconds"] = provenance.gpu_seconds(attempts)
        for key, value in follows.items():
            ledger.expect(NUMBERS, f"{path}: {key}", final.get(key, NOTHING), value, source)

    def _metrics(self, derived: Derived) -> None:
        ledger, final, path = self.ledger, self.final, self.path
        said = final.get("metrics", {})
        ledger.expect_all(
            NUMBERS, path, {"metrics": said}, {"metrics": derived.metrics}, derived.source
        )
        recipe = self.provenance.get("params", {}).get("recipe", {})
        ends = f"{self.work_dir / journal.JOURNAL}, its last line"
        follows = {
            "epochs": (derived.epochs, ends),
            "steps": (derived.steps, ends),
            "skipped_steps": (derived.skipped_steps, self.work_dir / journal.JOURNAL),
            "images": (
                derived.steps * recipe.get("global_batch", 0),
                f"the steps in {self.work_dir / journal.JOURNAL} and the global batch",
            ),
        }
        for key, (value, source) in follows.items():
            ledger.expect(NUMBERS, f"{path}: {key}", final.get(key, NOTHING), value, source)
        ledger.expect(
            JOURNALS, f"{self.work_dir / journal.JOURNAL}: epochs of its last line",
            derived.epochs, _epochs(recipe.get("schedule", {})),
            f"{self.work_dir / PROVENANCE}: params.recipe.schedule",
        )  # fmt: skip

    # --- provenance ----------------------------------------------------------------------------

    def _provenance(self, content: Mapping[str, Any] | None) -> None:
        known, path = self.provenance, self.work_dir / PROVENANCE
        if not known:
            return
        ledger = self.ledger
        ledger.look(PROVENANCES, path)
        said = self.final.get("provenance_sha256")
        if said is None and not self.older:
            ledger.find(PROVENANCES, self.path, f"has no digest of {path}: {OLDER}")
        if said is not None:
            ledger.expect(
                PROVENANCES, f"{path}: SHA-256", sha256(path), said,
                f"{self.path}, written when the run was done",
            )  # fmt: skip
        taken = fingerprint.digest(known.get("params", {}))
        for where, value in ((path, known.get("fingerprint")),
                             (self.path, self.final["fingerprint"])):  # fmt: skip
            ledger.expect(
                PROVENANCES, f"{where}: fingerprint", value, taken, f"the params in {path}"
            )
        for key in ("experiment", "seed", "scale"):
            ledger.expect(
                PROVENANCES, f"{path}: {key}", known.get(key), self.final.get(key), self.path
            )
        self._present(content)
        self._parent()
        self._differences()

    def _present(self, content: Mapping[str, Any] | None) -> None:
        """Compare with params and manifests as they are now, if the run is of them."""
        known, path, ledger = self.provenance, self.work_dir / PROVENANCE, self.ledger
        if content is None or fingerprint.digest(content) != self.final["fingerprint"]:
            return
        experiment = self.project.experiments[self.run.experiment]
        ledger.expect_all(
            PROVENANCES, path, {"params": known.get("params", {})}, {"params": content},
            "params/ and the manifests",
        )  # fmt: skip
        follows = {
            "task": experiment.task,
            "model": experiment.model,
            "recipe": experiment.recipe,
            "dataset": self.project.dataset_of(self.run.experiment),
            "group": experiment.group,
        }
        names = {"names": known.get("names", {})}
        ledger.expect_all(PROVENANCES, path, names, {"names": follows}, "params/experiments.yaml")
        data = known.get("data", {}).get(follows["dataset"])
        ledger.expect(
            PROVENANCES, f"{path}: data.{follows['dataset']}", data, content["data"],
            self.layout.manifest(follows["dataset"]),
        )  # fmt: skip
        recipe = self.project.recipes[experiment.recipe]
        steps = self.project.steps_per_epoch(self.run.experiment) * recipe.schedule.epochs
        ledger.expect(
            NUMBERS, f"{self.path}: steps", self.final.get("steps"), steps,
            "epochs, images and global batch in params/",
        )  # fmt: skip

    def _parent(self) -> None:
        """The parent that the run started from is the one that is there."""
        path, ledger, said = self.work_dir / PROVENANCE, self.ledger, self.provenance.get("parent")
        fingerprinted = self.provenance.get("params", {}).get("parent")
        ledger.expect(
            PROVENANCES, f"{path}: parent.fingerprint", (said or {}).get("fingerprint"),
            fingerprinted, f"{path}: params.parent",
        )  # fmt: skip
        if not said:
            return
        parent = Run(experiment=said["experiment"], seed=said["seed"])
        where = self.layout.metrics(parent)
        theirs = load(self.ledger, PROVENANCES, where)
        if theirs is None or theirs.get("fingerprint") != said["fingerprint"]:
            state = "is not there" if theirs is None else "has been trained again since"
            ledger.note(PROVENANCES, f"{self.run} started from {parent}, which {state}")
            return
        ledger.expect(
            PROVENANCES, f"{path}: parent.weights_sha256", said["weights_sha256"],
            theirs.get("weights_sha256"), where,
        )  # fmt: skip

    def _differences(self) -> None:
        """What was not committed is kept, and is what its digest says."""
        states = [self.provenance.get("git", {}), *self.provenance.get("attempts", [])]
        digests = dict.fromkeys(state.get("diff_sha256") for state in states)
        for digest in digests:
            if digest is None:
                continue
            path = provenance.diff_file(self.work_dir, digest)
            found = sha256(path) if path.exists() else NOTHING
            self.ledger.expect(
                PROVENANCES, f"{path}: SHA-256", found, digest, self.work_dir / PROVENANCE
            )

    # --- weights and their evaluation ----------------------------------------------------------

    def _weights(self) -> None:
        path, ledger = self.layout.weights(self.run), self.ledger
        if not path.exists():
            ledger.find(WEIGHTS, path, f"is not there, but {self.path} is of it")
            return
        ledger.look(WEIGHTS, path)
        said = self.final.get("weights_sha256")
        if not ledger.expect(WEIGHTS, f"{path}: SHA-256", sha256(path), said, self.path):
            return
        try:
            names = tensors.read(path).smt
        except (OSError, ValueError) as error:
            ledger.find(WEIGHTS, path, _reason(error))
            return
        for key in ("experiment", "seed", "scale", "fingerprint"):
            value = self.final.get(key)
            ledger.expect(WEIGHTS, f"{path}: {key}", names.get(key), str(value), self.path)

    def _evaluation(self) -> None:
        path, ledger = self.layout.evaluation(self.run), self.ledger
        said = load(ledger, EVALUATIONS, path)
        if said is None:
            if not path.exists():
                ledger.note(EVALUATIONS, f"{self.run} has not been evaluated on its own yet")
            return
        ledger.look(EVALUATIONS, path)
        for key in ("experiment", "seed", "scale", "fingerprint", "weights_sha256"):
            ledger.expect(
                EVALUATIONS, f"{path}: {key}", said.get(key), self.final.get(key), self.path
            )
        if "metrics_sha256" in said:
            ledger.expect(
                EVALUATIONS, f"{path}: metrics_sha256", said["metrics_sha256"], sha256(self.path),
                self.path,
            )  # fmt: skip
        elif not self.older:
            ledger.find(EVALUATIONS, path, f"has no digest of {self.path}: {OLDER}")
        self._agreement(path, said)
        dataset = self.project.datasets[self.project.dataset_of(self.run.experiment)]
        ledger.expect(
            EVALUATIONS, f"{path}: images", said.get("images"), dataset.val_images,
            "params/data.yaml",
        )  # fmt: skip

    def _agreement(self, path: Path, said: Mapping[str, Any]) -> None:
        """Equal numbers where the machine was the same; near ones where it was another."""
        ledger = self.ledger
        final, ours = self.final.get("metrics", {}), said.get("metrics", {})
        attempts = self.provenance.get("attempts") or [{}]
        exact = said.get("environment") == attempts[-1].get("environment", NOTHING)
        for name in sorted(set(final) & set(METRICS)):
            value, allowed = ours.get(name), 0.0 if exact else METRICS[name].tolerance
            agrees = value is not None and (
                same(value, final[name]) or abs(value - final[name]) <= allowed
            )
            how = "the same machine" if exact else f"within {allowed:g} on another machine"
            ledger.expect(
                EVALUATIONS, f"{path}: metrics.{name}", value if not agrees else final[name],
                final[name], f"{self.path} ({how})",
            )  # fmt: skip


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _epochs(recorded: Mapping[str, Any]) -> Any:
    """Return the epochs of a recorded schedule, or NOTHING where it states none."""
    try:
        return schedule.epochs(recorded)
    except (KeyError, TypeError, ValueError):
        return NOTHING
