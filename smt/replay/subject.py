"""What an audit is of: a run that is done, and its stretches."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest, validation_files
from smt.errors import EXIT_UNVERIFIED, UserError, listed
from smt.runs import lock, milestones, provenance, record, workdir
from smt.runs.atomic import sha256
from smt.runs.milestones import Stretch
from smt.runs.paths import Layout
from smt.runs.record import Attempt, Provenance, RunMetrics
from smt.tasks import resume_check
from smt.verify import milestones as verified

ALL = "all"
"""In place of a number of stretches."""


class Unproved(UserError):
    """A run whose files contradict each other, or its training."""

    exit_code = EXIT_UNVERIFIED


@dataclass(frozen=True)
class Subject:
    """A run that is done and has milestones."""

    project: Project
    layout: Layout
    run: Run
    final: RunMetrics
    provenance: Provenance

    @property
    def work_dir(self) -> Path:
        return self.layout.work_dir(self.run, self.final.fingerprint)

    @cached_property
    def stretches(self) -> list[Stretch]:
        """All stretches of the training, in its order."""
        return milestones.stretches(milestones.read(self.work_dir))

    def problems(self) -> list[str]:
        """Return a line for each of its files that contradicts the others."""
        chain = [stretch.end for stretch in self.stretches]
        weights = self.layout.weights(self.run)
        return list(verified.problems(self.work_dir, chain, weights, self.final))

    def attempts(self, stretch: Stretch) -> list[Attempt]:
        """Return the attempts that a stretch was trained in: those whose steps stayed."""
        attempts = self.provenance.attempts
        ends = [*(each.resumed_at_step for each in attempts[1:]), self.final.steps]
        return [
            attempt
            for attempt, end in zip(attempts, ends, strict=True)
            if attempt.resumed_at_step < min(end, stretch.end.step) and end > stretch.start.step
        ]

    def require_inputs(self, *, start: bool) -> None:
        """Raise a UserError unless data, and for the `start` the parent's weights, are the run's.

        With others a stretch would differ, and the run be blamed for it.
        """
        dataset = self.project.dataset_of(self.run.experiment)
        validation_files.require_unchanged(self.project, self.layout, dataset)
        recorded = self.provenance.parent
        if recorded is None or not start:
            return
        parent = Run(experiment=recorded.experiment, seed=recorded.seed)
        path = self.layout.weights(parent)
        if not path.exists() or sha256(path) != recorded.weights_sha256:
            raise UserError(
                f"{self.run} started from {parent}, and {path} is not the file that it started "
                "from; bring that back (dvc checkout, or a backup)"
            )


def find(project: Project, layout: Layout, run: Run) -> Subject:
    """Return the subject of an audit.

    Raises:
        UserError: the run is being trained, is not done, is of other params, has no milestones, or
            its recipe gives up equal bytes.
        BrokenChain: its journal is not as a training writes it.
    """
    content = fingerprint.content(project, run, manifest.digests(project, layout, run))
    work_dir = layout.work_dir(run, fingerprint.digest(content))
    if workdir.is_locked(work_dir / lock.LOCK):
        holder = lock.holder(work_dir / lock.LOCK)
        raise UserError(f"{run} is being trained by {holder}; audit it once it is done")
    train = f"run: {record.train_command(layout, run)}"
    final = record.read_metrics(layout, run)
    if final is None:
        step = workdir.newest_checkpoint(work_dir)
        state = "has not been trained" if step is None else f"is unfinished, at step {step}"
        raise UserError(f"{run} {state}; {train}")
    known = provenance.require(layout.work_dir(run, final.fingerprint))
    if final.fingerprint != fingerprint.digest(content):
        changes = listed(resume_check.param_changes(known.params, content), 3)
        raise UserError(f"{run} was trained with other params: {changes}; restore them")
    recipe = project.experiments[run.experiment].recipe
    if not project.recipes[recipe].deterministic:
        raise UserError(
            f"{run}: recipe {recipe} has deterministic: false (params/"
            f"{project.recipes[recipe].FILE}), which gives up the same bytes; nothing can be "
            "compared"
        )
    subject = Subject(project, layout, run, final, known)
    if not subject.stretches:
        raise UserError(
            f"{run} has no milestones: it was trained with keep_milestones: 0, or by an earlier "
            f"version; set {layout.scale}.keep_milestones in params/scales.yaml, move "
            f"{layout.run_dir(run)} away, and train it again"
        )
    return subject


def select(stretches: Sequence[Stretch], segments: str, draw: int) -> list[Stretch]:
    """Return `segments` of the stretches, drawn from the seed `draw`, in the training's order.

    Raises:
        UserError: that is neither a number of them nor ALL.
    """
    total = len(stretches)
    if segments == ALL:
        return list(stretches)
    count = int(segments) if segments.isascii() and segments.isdigit() else 0
    if not 1 <= count <= total:
        raise UserError(f"--segments {segments}: valid: 1 to {total}, or {ALL}")
    return sorted(random.Random(draw).sample(stretches, count), key=lambda each: each.number)


def detection_probability(total: int, drawn: int, forged: int = 1) -> float:
    """Return how likely it is that `drawn` of `total` stretches have one of the `forged` ones."""
    return 1 - math.comb(total - forged, drawn) / math.comb(total, drawn)
