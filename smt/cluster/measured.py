"""How fast runs of an experiment have trained on GPUs, by their journals."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from smt.config.experiments import Run
from smt.runs import journal, record
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, Provenance
from smt.runs.state import RunState

_RATE = "system/images_per_second"


@dataclass(frozen=True)
class MeasuredRate:
    """What takes the place of an assumed efficiency."""

    run: Run
    """The one that it was measured in."""
    images_per_second: float
    """Training images on one GPU: median of the last attempt's records."""


def measured_rates(layout: Layout, states: Mapping[Run, RunState]) -> dict[str, MeasuredRate]:
    """Return the rate of each experiment of which a run was begun on GPUs, by its last such run."""
    rates: dict[str, MeasuredRate] = {}
    for run, run_state in states.items():
        rate = _rate(layout, run_state)
        if rate is not None:
            rates[run.experiment] = MeasuredRate(run, rate)
    return rates


def _rate(layout: Layout, run_state: RunState) -> float | None:
    """Return the images per second of a GPU in a run's last attempt; None if that used none."""
    if run_state.fingerprint is None:
        return None
    work_dir = layout.work_dir(run_state.run, run_state.fingerprint)
    try:
        known = record.read_provenance(work_dir)
        records = journal.read(work_dir, 0.0) if known is not None else []
    except (DamagedRecord, ValueError, KeyError):
        return None  # smt status and smt verify name what is damaged
    gpus, started = _last_attempt(known)
    rates = [
        each.metrics[_RATE] for each in records if each.time > started and _RATE in each.metrics
    ]
    return median(rates) / gpus if gpus and rates else None


def _last_attempt(known: Provenance | None) -> tuple[int, float]:
    """Return the GPUs of the last attempt at a run, and when it started (Unix seconds)."""
    if known is None or known.attempts[-1].environment is None:
        return 0, 0.0
    return known.attempts[-1].environment.gpus, known.attempts[-1].started
