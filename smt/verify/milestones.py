"""The milestones of a run that is done: its journal, checkpoints and weights, compared."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from smt.runs import journal, milestones, shared_folder
from smt.runs.atomic import sha256
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.milestones import Milestone
from smt.runs.record import RunMetrics
from smt.verify import tensors
from smt.verify.ledger import reason


def problems(
    work_dir: Path, chain: Sequence[Milestone], weights: Path, final: RunMetrics
) -> Iterator[str]:
    """Yield a line for each thing that is inconsistent; reads every milestone.

    `chain` is what the journal holds, one milestone at least, `weights` the file that the run
    exported, and `final` its record.
    """
    log = work_dir / journal.JOURNAL
    if final.journal is None or journal.extent(log)["sha256"] != final.journal.sha256:
        yield f"{log}: is not the file that metrics.json names: its SHA-256 differs"
    step, is_end = chain[-1].step, (chain[-1].step, chain[-1].epochs) == (final.steps, final.epochs)
    if not is_end:
        yield f"{log}: its last milestone is of step {step}, not of the end, {final.steps}"
    last = file_of(work_dir, chain[-1]) if is_end else None
    every = [*(problem_of(work_dir, each) for each in chain), _problem_of(weights, final, last)]
    yield from (problem for problem in every if problem is not None)


def file_of(work_dir: Path, milestone: Milestone) -> Path | None:
    """Return the checkpoint of a milestone, or None if it is not there."""
    for path in checkpoints(work_dir):
        name = CheckpointName.of(path)
        if (name.step, name.epochs) == (milestone.step, milestone.epochs):
            return path
    return None


def problem_of(work_dir: Path, milestone: Milestone) -> str | None:
    """Return what is wrong with the checkpoint of a milestone, with its file, or None."""
    path = file_of(work_dir, milestone)
    recorded = f"line {milestone.line} of {journal.JOURNAL}"
    if path is None:
        return (
            f"{work_dir}: the checkpoint of step {milestone.step}, a milestone by {recorded}, is "
            "not there; bring it back from a backup"
        )
    if sha256(path) != CheckpointName.of(path).sha256:
        return f"{path}: is damaged or was changed: its SHA-256 is not its name's"
    try:
        digest = _digest(path)
    except (OSError, ValueError) as error:
        return f"{path}: cannot be read ({reason(error)})"
    if digest != milestone.state_sha256:
        return f"{path}: was replaced: its state is not the one that {recorded} names"
    return None


def _digest(path: Path) -> str:
    """Return the digest of the state in a checkpoint."""
    header = tensors.read(path)
    with tensors.mapped(path) as content:
        return milestones.state_digest(
            (
                milestones.TensorBytes(name, each.dtype, each.shape, content[each.start : each.end])
                for name, each in header.tensors.items()
            ),
            header.facts,
        )


def _problem_of(path: Path, final: RunMetrics, last: Path | None) -> str | None:
    """Return how the exported weights differ from the record and the last checkpoint, or None.

    `last` is None where that is not there, which is a problem of its own.
    """
    if not shared_folder.exists(path):
        return f"{path}: is not there, but the run is done"
    if sha256(path) != final.weights_sha256:
        return f"{path}: is not the file that metrics.json names: its SHA-256 differs"
    try:
        names = [] if last is None else tensors.differing(path, last, "model.")
    except (OSError, ValueError) as error:
        return f"{path}: cannot be compared with {last} ({reason(error)})"
    return f"{path}: tensor {names[0]} is not that of {last}" if names else None
