"""A run as MLflow shows it, read from the run's files alone."""

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
from smt.runs import journal, record, shared_folder
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
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
"""Characters that MLflow accepts in the value of a param and of a tag."""


@dataclass(frozen=True)
class RunView:
    """One work folder as MLflow shows it."""

    run: Run
    folder: Path
    provenance: Provenance
    final: RunMetrics | None
    """`metrics.json`, if it has this folder's fingerprint."""
    evaluation: RunEvaluation | None
    """`evaluation.json`, if it has the digest of the same weights."""
    failure: Failure | None
    superseded: bool
    """Whether the run was started again since, with other params."""
    description: str
    tables: tuple[str, ...]
    """Names of the paper's tables that contain it."""
    outputs: tuple[Path, ...]
    """Files of the run once it is done: weights, metrics, provenance."""

    @property
    def name(self) -> str:
        """The run's name in MLflow: model, recipe, seed."""
        names = self.provenance.names
        return f"{names.model}/{names.recipe}/seed{self.run.seed}"

    @property
    def table(self) -> str:
        """Its MLflow experiment: the first of its tables, or its group if it is in no table."""
        return self.tables[0] if self.tables else self.provenance.names.group

    @property
    def fingerprint(self) -> str:
        return self.provenance.fingerprint

    @property
    def created(self) -> float:
        """Start of the first attempt, in Unix seconds."""
        return self.provenance.created

    @property
    def status(self) -> str:
        """The run's status in MLflow."""
        if self.final is not None:
            return "FINISHED"
        if self.failure is not None:
            return "FAILED"
        return "KILLED" if self.superseded else "RUNNING"

    @cached_property
    def points(self) -> list[Point]:
        """Points of the journal, in its order; lines without a time yet are left out."""
        # Times are read first: the trainer writes the time of a journal line after the line.
        try:
            line_count = _count_timed_lines(self.folder)
            records = journal.read(self.folder, self.created)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder}: {journal.JOURNAL} or {journal.TIMES} is damaged ({error}); "
                "move the folder aside and train the run again"
            ) from None
        if self.final is None:
            records = records[:line_count]
        return [point for record in records for point in _points_of(record)]

    @property
    def final_points(self) -> list[Point]:
        """Points of `metrics.json`, at the time at which the run finished."""
        if self.final is None:
            return []
        totals = ("epochs", "steps", "images", "wall_seconds", "gpu_seconds")
        values = {key: getattr(self.final, key) for key in totals}
        values = {key: value for key, value in values.items() if value is not None}
        return self._points_at_end("final", {**self.final.metrics, **values})

    @property
    def evaluation_points(self) -> list[Point]:
        """Points of `evaluation.json`, at the time at which the run finished."""
        return self._points_at_end("evaluation", self.evaluation.metrics) if self.evaluation else []

    def _points_at_end(self, section: str, values: dict[str, float]) -> list[Point]:
        assert self.final is not None
        time, step = milliseconds(self.final.finished), self.final.steps
        return [
            Point(f"{section}/{key}", float(value), time, step)
            for key, value in sorted(values.items())
        ]

    def end(self) -> int | None:
        """Return the end of the run in milliseconds since 1970; None while it runs."""
        if self.final is not None:
            return milliseconds(self.final.finished)
        if self.failure is not None:
            return milliseconds(self.failure.time)
        if not self.superseded:
            return None
        return self.points[-1].milliseconds if self.points else milliseconds(self.created)

    def check(self) -> None:
        """Check that MLflow accepts what the files hold.

        Raises:
            UserError: the journal is damaged, or a key or value is not valid in MLflow.
        """
        for key in sorted({point.key for point in self.points}):
            _check_key(key, self.folder / journal.JOURNAL)
        for values, limit in ((self.params(), MAX_PARAM_LENGTH), (self.tags(), MAX_TAG_LENGTH)):
            for key, value in values.items():
                _check_key(key, self.folder / PROVENANCE)
                if len(value) > limit:
                    raise UserError(
                        f"{self.folder / PROVENANCE}: {key} has {len(value)} characters; MLflow "
                        f"accepts {limit} at most"
                    )

    def params(self) -> dict[str, str]:
        """Return the run's params in MLflow: what researchers compare between runs."""
        provenance = self.provenance
        left_out = ("data", "class_map", "parent", "code", "task")  # digests, which are tags
        values = {key: value for key, value in provenance.params.items() if key not in left_out}
        values |= {
            "code_version": provenance.params["code"],
            "environment": provenance.environment.as_json(),
        }
        params = {**provenance.names.as_json(), **dict(flatten(values))}
        return {key: _text(value) for key, value in sorted(params.items())}

    def tags(self) -> dict[str, str]:
        """Return the run's tags in MLflow: its provenance and its state."""
        provenance = self.provenance
        git, attempts = provenance.git, provenance.attempts
        jobs = [attempt.slurm_job_id for attempt in attempts if attempt.slurm_job_id]
        values: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "created": repr(self.created),
            "experiment": self.run.experiment,
            "seed": self.run.seed,
            "scale": provenance.scale,
            "task": provenance.names.task,
            **{f"table.{name}": True for name in self.tables},
            "state": self.status.lower(),
            "git.commit": git.commit,
            "git.dirty": git.dirty,
            "git.diff_sha256": git.diff_sha256,
            "attempts": len(attempts),
            "requeues": max(len(attempts) - 1, 0),
            "slurm_jobs": " ".join(dict.fromkeys(jobs)) or None,
            "weights_sha256": self.final.weights_sha256 if self.final else None,
            "failure": self.failure.message[:MAX_TAG_LENGTH] if self.failure else None,
        }
        parent = provenance.parent.as_json() if provenance.parent else {}
        sections = {
            "data": {key.replace(":", "."): digest for key, digest in provenance.data.items()},
            "parent": parent,
            "hardware": provenance.hardware.as_json(),
            "package": provenance.main_packages,
        }
        for section, entries in sections.items():
            values |= {f"{section}.{key}": value for key, value in entries.items()}
        tags = {f"smt.{key}": _text(value) for key, value in values.items() if value is not None}
        if git.commit:
            tags["mlflow.source.git.commit"] = git.commit
        return tags


def read_views(
    project: Project, layout: Layout, experiments: Sequence[str]
) -> tuple[list[RunView], list[DamagedRecord]]:
    """Return the runs of these experiments that have started, with all seeds on disk.

    A run that was started again with other params has a view for each, the oldest first. Work
    folders with a damaged record are left out; the second value is their errors.
    """
    views: list[RunView] = []
    damages: list[DamagedRecord] = []
    for name in experiments:
        for folder in sorted(layout.run_dir(Run(experiment=name, seed=0)).parent.glob("seed*")):
            work_dirs = _work_dirs(folder, damages)
            for position, (provenance, work_dir) in enumerate(work_dirs):
                superseded = position + 1 < len(work_dirs)
                try:
                    views.append(_view(project, layout, name, provenance, work_dir, superseded))
                except DamagedRecord as damage:
                    damages.append(damage)
    return views, damages


def _work_dirs(folder: Path, damages: list[DamagedRecord]) -> list[tuple[Provenance, Path]]:
    """Return provenance and path of each work folder of a run, the oldest first."""
    work_dirs = []
    for path in folder.glob("work-*"):
        try:
            provenance = record.read_provenance(path)
        except DamagedRecord as damage:
            damages.append(damage)
            continue
        if provenance is not None:
            work_dirs.append((provenance, path))
    return sorted(work_dirs, key=lambda pair: (pair[0].created, pair[1].name))


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
    if final is None or (evaluation is not None and not _is_of_same_weights(evaluation, final)):
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


def _is_of_same_weights(evaluation: RunEvaluation, final: RunMetrics) -> bool:
    return (
        evaluation.fingerprint == final.fingerprint
        and evaluation.weights_sha256 == final.weights_sha256
    )


def milliseconds(seconds: float) -> int:
    """Return Unix seconds as milliseconds, MLflow's unit of time."""
    return round(seconds * 1000)


def digest(points: Sequence[Point]) -> str:
    """Return the SHA-256 of points, by which a sync tells what was sent before."""
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()


def _count_timed_lines(folder: Path) -> int:
    """Return the number of journal lines whose time has been written."""
    try:
        content = shared_folder.read_bytes(folder / journal.TIMES)
    except FileNotFoundError:
        return 0
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return max((json.loads(line)["line"] + 1 for line in lines), default=0)


def _points_of(record: journal.TimedLine) -> Iterator[Point]:
    time = milliseconds(record.time)
    for key, value in sorted({**record.metrics, "epoch": record.epoch}.items()):
        yield Point(key, float(value), time, record.step)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _check_key(key: str, file: Path) -> None:
    if not _KEY.match(key):
        raise UserError(
            f"{file}: {key!r} is not a valid name in MLflow; valid: letters, digits, spaces and "
            "_ - . /, 250 at most"
        )
