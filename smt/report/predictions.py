"""Sheets of predictions of detectors and segmenters, which their evaluations write."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smt.config.experiments import Run
from smt.config.metrics import METRICS, headline
from smt.config.project import Project
from smt.report.agreement import places
from smt.report.collect import Results, RunResult
from smt.runs import record, shared_folder
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord


@dataclass(frozen=True)
class Picture:
    """Some validation images as annotated and as one run predicts them."""

    caption: str
    alt: str
    source: str
    """The file itself, as a page holds it."""


@dataclass(frozen=True)
class Predictions:
    """The sheets of a page."""

    pictures: tuple[Picture, ...]
    note: str
    """What there is no picture of yet, and why; empty where all are there."""
    damages: tuple[DamagedRecord, ...] = ()
    """Evaluations that cannot be read."""


def predictions(results: Results, layout: Layout) -> Predictions | None:
    """Return the picture of every run that is done and evaluated; None where no run has a head."""
    project = results.project
    runs = [run for run in results.runs.values() if _has_head(project, run)]
    if not runs:
        return None
    done = [run for run in runs if run.has_numbers]
    damages: dict[Run, DamagedRecord] = {}
    available = [run for run in done if _has_picture(layout, run, damages)]
    names = places(project)
    pictures = tuple(_picture(layout, run, _caption(project, names, run)) for run in available)
    missing = [run.run for run in done if run not in available]
    note = _missing_note(len(runs) - len(done), missing, damages)
    return Predictions(pictures, note, tuple(damages.values()))


def _has_head(project: Project, run: RunResult) -> bool:
    return project.experiments[run.run.experiment].head is not None


def _has_picture(layout: Layout, run: RunResult, damages: dict[Run, DamagedRecord]) -> bool:
    """Whether the picture is there, and of the run as it is now."""
    try:
        evaluation = record.read_evaluation(layout, run.run)
    except DamagedRecord as damage:
        damages[run.run] = damage
        return False
    current = evaluation is not None and evaluation.fingerprint == run.fingerprint
    return current and shared_folder.exists(layout.samples(run.run))


def _caption(project: Project, names: dict[str, str], run: RunResult) -> str:
    experiment = run.run.experiment
    name = names.get(experiment, project.experiments[experiment].title)
    if len(project.seeds(experiment)) > 1:
        name += f", seed {run.run.seed}"
    metric = headline(run.metrics)
    return f"{name}: {METRICS[metric].format(run.metrics[metric])}" if metric else name


def _picture(layout: Layout, run: RunResult, caption: str) -> Picture:
    content = base64.b64encode(layout.samples(run.run).read_bytes()).decode("ascii")
    alt = f"Validation images, as annotated above and as predicted below, of {caption}"
    return Picture(caption, alt, f"data:image/jpeg;base64,{content}")


def _missing_note(
    unfinished: int, missing: Iterable[Run], damages: Mapping[Run, DamagedRecord]
) -> str:
    parts = [f"of {unfinished} runs, which are not done"] if unfinished else []
    for run in missing:
        parts.append(f"of {run}: {damages[run]}" if run in damages else f"of {run}, which smt "
                     "evaluate makes")  # fmt: skip
    return f"No picture yet {'; '.join(parts)}." if parts else ""
