"""The last checkpoint of a run as a witness: it says how far journal, weights and accuracy were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smt.config.experiments import Run
from smt.config.metrics import HEADLINES
from smt.runs import journal
from smt.runs.atomic import sha256
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.paths import Layout
from smt.runs.provenance import flatten
from smt.runs.record import RunMetrics
from smt.verify import derive, tensors
from smt.verify.ledger import NOTHING, Ledger

CHECKPOINTS = "checkpoints"


def check(layout: Layout, run: Run, final: RunMetrics, work_dir: Path, ledger: Ledger) -> None:
    """Compare a run's files with its newest checkpoint, where that has been kept."""
    paths = checkpoints(work_dir)
    if not paths:
        ledger.note(CHECKPOINTS, f"{run} has none that was kept")
        return
    path = paths[0]
    ledger.look(CHECKPOINTS, path)
    if not ledger.expect(
        CHECKPOINTS, f"{path}: SHA-256", sha256(path), CheckpointName.of(path).sha256, "its name"
    ):
        return
    try:
        facts = tensors.read(path).facts
    except (OSError, ValueError) as error:
        ledger.find(CHECKPOINTS, path, str(error))
        return
    _facts(layout, run, final, work_dir, ledger, path, facts)
    _weights(layout.weights(run), path, ledger)


def _facts(
    layout: Layout, run: Run, final: RunMetrics, work_dir: Path, ledger: Ledger,
    path: Path, facts: Mapping[str, Any],
) -> None:  # fmt: skip
    where = layout.metrics(run)
    said = dict(flatten(final.as_json()))
    follows = {
        "epochs": facts["epochs"],
        "steps": facts["step"],
        "skipped_steps": facts["trend"]["skipped"],
        "wall_seconds": round(facts["seconds"], 3),
        "journal.bytes": facts["journal"]["bytes"],
        "journal.lines": facts["journal"]["lines"],
        **facts["identity"],
    }
    if final.journal is None:  # a finding of its own
        del follows["journal.bytes"], follows["journal.lines"]
    for key, value in follows.items():
        ledger.expect(CHECKPOINTS, f"{where}: {key}", said.get(key, NOTHING), value, path)
    if facts["best"] is None:
        return
    try:
        lines = [line.metrics for line in derive.lines(work_dir / journal.JOURNAL)]
    except (OSError, ValueError):
        return  # a finding of its own
    evaluated = {name for metrics in lines for name in metrics}
    compared = (f"eval/{name}" for name in HEADLINES.values())
    name = next((each for each in compared if each in evaluated), "metric")
    best = max((metrics[name] for metrics in lines if name in metrics), default=None)
    source = f"{work_dir / journal.JOURNAL}: best {name}"
    ledger.expect(CHECKPOINTS, source, best, facts["best"], path)


def _weights(exported: Path, path: Path, ledger: Ledger) -> None:
    try:
        other = tensors.differing(exported, path, "model.")
    except (OSError, ValueError):
        return  # a finding of its own
    if other:
        more = f" and {len(other) - 1} more" if other[1:] else ""
        ledger.find(CHECKPOINTS, exported, f"tensor {other[0]}{more} is not that of {path}")
    else:
        ledger.checked[CHECKPOINTS] += 1
