"""Proofs as tables: kills and equality of each; events; and several ranks compared with one."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from smt.config.project import Project
from smt.errors import UserError
from smt.proof import record
from smt.proof.record import EventRecord, ProofRecord, RankComparison
from smt.report import render
from smt.report.grid import Cell, Column, Grid
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord

PROOF, EVENTS, RANKS = "proof", "proof_events", "world_size"
"""Names of the tables."""


def write(project: Project, layout: Layout) -> tuple[list[Path], list[DamagedRecord]]:
    """Write the tables of all proofs, in every format.

    Returns the files, and the records that cannot be read: a note below the table names them.

    Raises:
        UserError: there is no record that can be read, or the folder cannot be written.
    """
    proofs, damages = record.read_all(layout)
    if not proofs and damages:
        raise damages[0]
    if not proofs:
        raise UserError(
            f"{layout.proof}: nothing has been proved yet; run: smt prove EXPERIMENT... --scale "
            f"{layout.scale}, or name runs in params/scales.yaml: {layout.scale}: proof"
        )
    grids = [_proof_grid(project, proofs, damages)]
    if any(proof.events for proof in proofs):
        grids.append(_events_grid(project, proofs))
    pairs = [(proof, proof.one_rank) for proof in proofs if proof.one_rank is not None]
    if pairs:
        grids.append(_ranks_grid(project, pairs))
    return [path for grid in grids for path in render.write(grid, layout.proof)], damages


def _proof_grid(
    project: Project, proofs: Sequence[ProofRecord], damages: Iterable[DamagedRecord]
) -> Grid:
    kills = sum(len(proof.kills) for proof in proofs)
    equal = sum(proof.is_equal for proof in proofs)
    return Grid(
        name=PROOF,
        title="Interrupted trainings end as undisturbed ones",
        caption=(
            f"Each run was trained twice: left alone, and killed as listed; {kills} kills in all. "
            f"{equal} of {len(proofs)} ended with the same bytes of weights and of journal."
        ),
        notice=project.scale.notice,
        columns=(
            Column("Run"),
            Column("Processes", numeric=True),
            Column("Steps", numeric=True),
            Column("Kills", numeric=True),
            Column("Killed by"),
            Column("At step"),
            Column("Went on from"),
            Column("Steps lost when told to stop", numeric=True),
            Column("Most steps repeated", numeric=True),
            Column("Weights"),
            Column("Journal"),
            Column("Fingerprint", provenance=True),
        ),
        rows=tuple(_row(proof) for proof in proofs),
        notes=(
            "Signals of a kind that lets a training save come to all processes or to one; SIGKILL "
            "comes at any moment, while a checkpoint is being written, or to a data worker, whose "
            "training goes on without a stop. Attempts differ in their number of data workers.",
            "A training that is killed without warning repeats the steps since its last "
            "checkpoint; its journal is cut back to there.",
            *_notes_on_events(proofs),
            *(f"Not in this table: {damage}." for damage in damages),
        ),
        records=tuple(_csv_row(proof) for proof in proofs),
    )


def _row(proof: ProofRecord) -> tuple[Cell, ...]:
    signals = Counter(kill.kill for kill in proof.kills)
    listed = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in signals.items())
    lost = proof.steps_lost_when_told
    return (
        Cell.of(f"{proof.experiment}, seed {proof.seed}"),
        Cell.of(f"{proof.ranks}{_where(proof)}"),
        Cell.of(str(proof.steps)),
        Cell.of(_kills(proof)),
        Cell.of(listed),
        Cell.of(_steps(kill.at_step for kill in proof.kills)),
        Cell.of(_steps(kill.resumed_at for kill in proof.kills)),
        Cell.of(str(lost), kind="" if lost == 0 else "failed"),
        Cell.of(str(proof.most_steps_repeated)),
        _verdict(proof.weights_equal, None),
        _verdict(proof.journal_equal, proof.first_difference),
        Cell.of(proof.fingerprint[:12], title=proof.fingerprint),
    )


def _kills(proof: ProofRecord) -> str:
    """Return how many kills there were, and of how many drawn if some came too late."""
    sent = len(proof.kills)
    return f"{sent} of {proof.kills_drawn}" if proof.kills_missed else str(sent)


def _where(proof: ProofRecord) -> str:
    """Return where the processes ran, unless it was this machine."""
    if proof.launcher == "local":
        return ""
    return f" on {proof.nodes} node{'s' if proof.nodes > 1 else ''} of {proof.launcher.upper()}"


def _steps(steps: Iterable[int | None]) -> str:
    return " ".join("-" if step is None else str(step) for step in steps)


def _verdict(equal: bool, why: str | None) -> Cell:
    if equal:
        return Cell.of("equal", kind="reproduced")
    return Cell.of(f"NOT EQUAL{': ' + why if why else ''}", kind="failed")


def _notes_on_events(proofs: Sequence[ProofRecord]) -> tuple[str, ...]:
    drawn = sum(proof.events_drawn for proof in proofs)
    if not drawn:
        return ()
    missed = sum(proof.events_missed for proof in proofs)
    return (
        f"Beside the kills there were {drawn - missed} events: see the table {EVENTS}. "
        f"{f'For {missed} more no time was left. ' if missed else ''}"
        "A signal after an event in the same attempt does not count as one at which no step is "
        "lost.",
    )


def _csv_row(proof: ProofRecord) -> dict[str, str]:
    """Return every value of a record for machines, its kills as two lists."""
    own = dict(sorted(proof.as_json().items()))
    values = {"launcher": proof.launcher, "nodes": proof.nodes, **own}
    return {
        **{
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
            if key not in ("kills", "events", "events_drawn", "one_rank")
        },
        "kills": json.dumps([kill.kill for kill in proof.kills]),
        "at_step": json.dumps([kill.at_step for kill in proof.kills]),
    }


def _events_grid(project: Project, proofs: Sequence[ProofRecord]) -> Grid:
    events = [(proof, event) for proof in proofs for event in proof.events]
    return Grid(
        name=EVENTS,
        title="Events during interrupted trainings",
        caption=(
            "Commands that were run while a training ran. Each was told a rank and its node. The "
            f"table {PROOF} says whether the training ended as the undisturbed one."
        ),
        notice=project.scale.notice,
        columns=(
            Column("Run"),
            Column("Processes", numeric=True),
            Column("Command", prose=True),
            Column("Rank", numeric=True),
            Column("Node"),
            Column("At step", numeric=True),
            Column("Outcome"),
            Column("Resumed at step", numeric=True),
            Column("Steps repeated", numeric=True),
        ),
        rows=tuple(_event_row(*each) for each in events),
        notes=(
            "Exit code 75: the process has saved its state, or has lost another process and can be "
            "resumed. A negative code is the signal that ended it; -9 also stands for a process "
            "that ended with its node.",
        ),
        records=tuple(
            {"experiment": proof.experiment, "seed": str(proof.seed), "ranks": str(proof.ranks),
             **{key: value if isinstance(value, str) else json.dumps(value)
                for key, value in sorted(event.as_json().items())}}
            for proof, event in events
        ),
    )  # fmt: skip


def _event_row(proof: ProofRecord, event: EventRecord) -> tuple[Cell, ...]:
    codes = ", ".join(map(str, event.exit_codes))
    went_on = event.ended_at is None
    return (
        Cell.of(f"{proof.experiment}, seed {proof.seed}"),
        Cell.of(f"{proof.ranks}{_where(proof)}"),
        Cell.of(event.command),
        Cell.of(str(event.rank)),
        Cell.of(event.node),
        Cell.of(str(event.at_step)),
        Cell.of("went on" if went_on else f"ended at step {event.ended_at}: {codes}"),
        Cell.of(_steps([event.resumed_at])),
        Cell.of(str(event.repeated)),
    )


def _ranks_grid(project: Project, pairs: Sequence[tuple[ProofRecord, RankComparison]]) -> Grid:
    return Grid(
        name=RANKS,
        title="The same run on another number of processes",
        caption="Undisturbed on several processes, and on one, at the same global batch.",
        notice=project.scale.notice,
        columns=(
            Column("Run"),
            Column("Processes", numeric=True),
            Column("Steps", numeric=True),
            Column("Images", numeric=True),
            Column("First loss, several", numeric=True),
            Column("First loss, one", numeric=True),
            Column("Weights, relative L2 distance", numeric=True),
            Column("Final numbers, several"),
            Column("Final numbers, one"),
        ),
        rows=tuple(_ranks_row(*pair) for pair in pairs),
        notes=(
            "Steps, the images of each step, their augmentation, Mixup and drop path are the same. "
            "What differs is the order in which gradients are added up over processes, and "
            "BatchNorm's running statistics, which are averaged over processes after each step "
            "instead of taken in chunk after chunk. Training amplifies these last bits.",
        ),
        records=tuple(
            {"experiment": proof.experiment, "ranks": str(proof.ranks),
             **{key: json.dumps(value) for key, value in sorted(pair.as_json().items())}}
            for proof, pair in pairs
        ),
    )  # fmt: skip


def _ranks_row(proof: ProofRecord, pair: RankComparison) -> tuple[Cell, ...]:
    return (
        Cell.of(f"{proof.experiment}, seed {proof.seed}"),
        Cell.of(str(proof.ranks)),
        Cell.of(_both(pair.steps)),
        Cell.of(_both(pair.images)),
        *(Cell.of(f"{loss:.10g}") for loss in pair.first_loss),
        Cell.of(f"{pair.weights_relative_l2:.3g}"),
        *(Cell.of(_numbers(metrics)) for metrics in pair.metrics),
    )


def _both(pair: tuple[int, int]) -> str:
    """Return the value that both trainings have to have, or both values."""
    return str(pair[0]) if pair[0] == pair[1] else f"{list(pair)} DIFFER"


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
