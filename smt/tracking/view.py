"""What MLflow shows of a run, read from the run's files alone."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from smt.config.experiments import Run
from smt.config.project import Project
from smt.errors import UserError
from smt.runs import journal, record
from smt.runs.paths import Layout
from smt.runs.provenance import flatten
from smt.runs.record import (
    PROVENANCE,
    DamagedRecord,
    Failure,
    Provenance,
    RunEvaluation,
    RunMetrics,
)
from smt.tracking.client import Point

_KEY = re.compile(r"^[\w.\- /]{1,250}$", re.ASCII)
PARAM_LENGTH = 6000
"""Characters of a parameter's value that MLflow takes."""
TAG_LENGTH = 8000
"""Characters of a tag's value that MLflow takes."""

SHOWN_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "smt-reproduction")
"""Versions that become tags; provenance.json has all of them."""


@dataclass(frozen=True)
class RunView:
    """One work folder as MLflow shows it."""

    run: Run
    folder: Path
    provenance: Provenance
    final: RunMetrics | None
    """`metrics.json`, if it is this folder's."""
    evaluation: RunEvaluation | None
    """`evaluation.json`, if it is of the same weights."""
    failure: Failure | None
    superseded: bool
    """Whether the run was begun again with other parameters since."""
    description: str
    tables: tuple[str, ...]
    """The paper's tables that show it."""
    outputs: tuple[Path, ...]
    """What belongs to the run once it is done: weights, numbers, provenance."""

    @property
    def name(self) -> str:
        """What MLflow calls the run: model, recipe, seed."""
        names = self.provenance.names
        return f"{names.model}/{names.recipe}/seed{self.run.seed}"

    @property
    def table(self) -> str:
        """The MLflow experiment it belongs to: its first table, or its group where no table is."""
        return self.tables[0] if self.tables else self.provenance.names.group

    @property
    def fingerprint(self) -> str:
        return self.provenance.fingerprint

    @property
    def created(self) -> float:
        """When the first attempt began, in Unix seconds."""
        return self.provenance.created

    @property
    def status(self) -> str:
        """MLflow's word for how the run stands."""
        if self.final is not None:
            return "FINISHED"
        if self.failure is not None:
            return "FAILED"
        return "KILLED" if self.superseded else "RUNNING"

    @cached_property
    def points(self) -> list[Point]:
        """The journal's points, in its order. A line that is being written is left out."""
        # Which times are there is read first: a journal line gets its time just after itself.
        try:
            timed = _timed_lines(self.folder)
            records = journal.read(self.folder, self.created)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder}: {journal.JOURNAL} or {journal.TIMES} is damaged ({error}); "
                "move the folder aside and train the run again"
            ) from None
        whole = records if self.final is not None else records[:timed]
        return [point for record in whole for point in _points_of(record)]

    @property
    def final_points(self) -> list[Point]:
        """The final numbers, dated by the end of the run."""
        if self.final is None:
            return []
        totals = ("epochs", "steps", "images", "wall_seconds", "gpu_seconds")
        numbers = {
            **self.final.metrics,
            **{key: each for key in totals if (each := getattr(self.final, key)) is not None},
        }
        return self._at_the_end("final", numbers)

    @property
    def evaluation_points(self) -> list[Point]:
        """The exported weights' own evaluation, dated by the end of the run."""
        return self._at_the_end("evaluation", self.evaluation.metrics) if self.evaluation else []

    def _at_the_end(self, section: str, numbers: dict[str, float]) -> list[Point]:
        assert self.final is not None
        at, step = milliseconds(self.final.finished), self.final.steps
        return [
            Point(f"{section}/{name}", float(numbers[name]), at, step) for name in sorted(numbers)
        ]

    def end(self) -> int | None:
        """Return when the run ended, in milliseconds since 1970; None while it runs."""
        if self.final is not None:
            return milliseconds(self.final.finished)
        if self.failure is not None:
            return milliseconds(self.failure.time)
        if not self.superseded:
            return None
        return self.points[-1].milliseconds if self.points else milliseconds(self.created)

    def check(self) -> None:
        """Raise a UserError if the files are damaged, or hold what MLflow would refuse."""
        for key in sorted({point.key for point in self.points}):
            _check_key(key, self.folder / journal.JOURNAL)
        limits = ((self.params(), PARAM_LENGTH), (self.tags(), TAG_LENGTH))
        for key, value, limit in ((k, v, n) for values, n in limits for k, v in values.items()):
            _check_key(key, self.folder / PROVENANCE)
            if len(value) > limit:
                raise UserError(
                    f"{self.folder / PROVENANCE}: {key} has {len(value)} characters; MLflow "
                    f"takes {limit} at most"
                )

    def params(self) -> dict[str, str]:
        """Return what a researcher compares, by readable names."""
        content, names = self.provenance.params, self.provenance.names.as_json()
        digests = ("data", "class_map", "parent", "code", "task")
        flat = {key: value for key, value in content.items() if key not in digests}
        environment = self.provenance.environment.as_json()
        flat |= {"code_version": content["code"], "environment": environment}
        flattened = {**names, **dict(flatten(flat))}
        return {key: _text(value) for key, value in sorted(flattened.items())}

    def tags(self) -> dict[str, str]:
        """Return the provenance: what tells two runs of equal parameters apart."""
        known = self.provenance
        git, attempts = known.git, known.attempts
        jobs = [attempt.slurm_job_id for attempt in attempts if attempt.slurm_job_id]
        values: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "created": repr(self.created),
            "experiment": self.run.experiment,
            "seed": self.run.seed,
            "scale": known.scale,
            "task": known.names.task,
            "tables": " ".join(self.tables) or None,
            "state": self.status.lower(),
            "git.commit": git.commit,
            "git.dirty": git.dirty,
            "git.diff_sha256": git.diff_sha256,
            "attempts": len(attempts),
            "requeues": max(len(attempts) - 1, 0),
            "slurm_jobs": " ".join(dict.fromkeys(jobs)) or None,
            "weights_sha256": self.final.weights_sha256 if self.final else None,
            "failure": self.failure.message[:TAG_LENGTH] if self.failure else None,
        }
        values |= {f"data.{key.replace(':', '.')}": value for key, value in known.data.items()}
        parent = known.parent.as_json() if known.parent else {}
        values |= {f"parent.{key}": value for key, value in parent.items()}
        values |= {f"hardware.{key}": value for key, value in known.hardware.as_json().items()}
        versions = {name.lower(): version for name, version in known.packages.items()}
        values |= {f"package.{name}": versions.get(name) for name in SHOWN_PACKAGES}
        tags = {f"smt.{key}": _text(value) for key, value in values.items() if value is not None}
        if git.commit:
            tags["mlflow.source.git.commit"] = git.commit
        return tags


def views(
    project: Project, layout: Layout, experiments: Sequence[str]
) -> tuple[list[RunView], list[DamagedRecord]]:
    """Return every run of these experiments that has begun, all seeds on disk, oldest first.

    Those with a damaged record are left out; what is wrong with each comes second.
    """
    every: list[RunView] = []
    damages: list[DamagedRecord] = []
    for name in experiments:
        for folder in sorted(layout.run_dir(Run(experiment=name, seed=0)).parent.glob("seed*")):
            begun = _begun(folder, damages)
            for position, (provenance, work_dir) in enumerate(begun):
                superseded = position + 1 < len(begun)
                try:
                    every.append(_view(project, layout, name, provenance, work_dir, superseded))
                except DamagedRecord as damage:
                    damages.append(damage)
    return every, damages


def _begun(folder: Path, damages: list[DamagedRecord]) -> list[tuple[Provenance, Path]]:
    """Return provenance and work folder of a run's fingerprints, the oldest first."""
    begun = []
    for path in folder.glob(f"work-*/{PROVENANCE}"):
        try:
            provenance = record.read_provenance(path.parent)
        except DamagedRecord as damage:
            damages.append(damage)
            continue
        if provenance is not None:
            begun.append((provenance, path.parent))
    return sorted(begun, key=lambda each: (each[0].created, each[1].name))


def _view(
    project: Project,
    layout: Layout,
    name: str,
    provenance: Provenance,
    work_dir: Path,
    superseded: bool,
) -> RunView:
    run = Run(experiment=name, seed=provenance.seed)
    final, evaluation = record.read_metrics(layout, run), record.read_evaluation(layout, run)
    if final is not None and final.fingerprint != provenance.fingerprint:
        final = None
    if final is None or evaluation is None or _is_of_others(evaluation, final):
        evaluation = None
    title, notice = project.experiments[name].title, project.scale.notice
    return RunView(
        run=run,
        folder=work_dir,
        provenance=provenance,
        final=final,
        evaluation=evaluation,
        failure=record.read_failure(work_dir),
        superseded=superseded,
        description=f"{title}. {notice}" if notice else title,
        tables=tuple(
            key
            for key, table in project.tables.items()
            if name in (row.experiment for row in table.rows)
        ),
        outputs=(layout.weights(run), layout.metrics(run), work_dir / PROVENANCE),
    )


def _is_of_others(evaluation: RunEvaluation, final: RunMetrics) -> bool:
    """Return whether an evaluation is of other weights than those of the final numbers."""
    return (evaluation.fingerprint, evaluation.weights_sha256) != (
        final.fingerprint, final.weights_sha256,
    )  # fmt: skip


def milliseconds(seconds: float) -> int:
    """Return Unix seconds as MLflow dates things."""
    return round(seconds * 1000)


def digest(points: Sequence[Point]) -> str:
    """Return the SHA-256 of points: what says that the same ones were sent."""
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()


def _timed_lines(folder: Path) -> int:
    """Return how many lines of the journal are dated for good."""
    try:
        content = (folder / journal.TIMES).read_bytes()
    except FileNotFoundError:
        return 0
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return max((json.loads(line)["line"] + 1 for line in lines), default=0)


def _points_of(record: journal.TimedLine) -> Iterator[Point]:
    at = milliseconds(record.time)
    for key, value in sorted({**record.metrics, "epoch": record.epoch}.items()):
        yield Point(key, float(value), at, record.step)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _check_key(key: str, file: Path) -> None:
    if not _KEY.match(key):
        raise UserError(
            f"{file}: {key!r} cannot be a name in MLflow; valid: letters, digits, spaces and "
            "_ - . /, 250 at most"
        )
