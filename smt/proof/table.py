"""The outcome of proofs as tables: killed how often, equal or not; and other numbers of ranks."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smt.config.project import Project
from smt.errors import UserError
from smt.report import render
from smt.report.grid import Cell, Column, Grid
from smt.runs.atomic import read_json
from smt.runs.paths import Layout

PROOF, RANKS = "proof", "world_size"
"""Names of the two tables."""


def write(project: Project, layout: Layout) -> list[Path]:
    """Write the tables of every outcome that is there, in every format; return the files.

    Raises:
        UserError: there is no outcome, or the folder cannot be written.
    """
    outcomes = [read_json(path) for path in sorted(layout.proof.glob("*.json"))]
    if not outcomes:
        raise UserError(
            f"{layout.proof}: nothing has been proved yet; run: smt prove EXPERIMENT... --scale "
            f"{layout.scale}, or name runs in params/scales.yaml: {layout.scale}: proof"
        )
    grids = [_proof(project, outcomes)]
    several = [outcome for outcome in outcomes if "one_rank" in outcome]
    if several:
        grids.append(_ranks(project, several))
    return [path for grid in grids for path in render.write(grid, layout.proof)]


def is_equal(outcome: dict[str, Any]) -> bool:
    """Return whether an interrupted training ended as the undisturbed one, and lost no step."""
    equal: bool = (
        outcome["weights_equal"]
        and outcome["journal_equal"]
        and outcome["steps_lost_when_told"] == 0
    )
    return equal


def _proof(project: Project, outcomes: Sequence[dict[str, Any]]) -> Grid:
    kills = sum(len(each["kills"]) for each in outcomes)
    equal = sum(is_equal(each) for each in outcomes)
    return Grid(
        name=PROOF,
        title="Interrupted trainings end as undisturbed ones",
        caption=(
            f"Each run was trained twice: left alone, and killed as listed; {kills} kills in all. "
            f"{equal} of {len(outcomes)} ended with the same bytes of weights and of journal."
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
        rows=tuple(_row(each) for each in outcomes),
        notes=(
            "Signals of a kind that lets a training save come to all processes or to one; SIGKILL "
            "comes at any moment, while a checkpoint is being written, or to a data worker, whose "
            "training goes on without a stop. Attempts differ in their number of data workers.",
            "A training that is killed without warning repeats the steps since its last "
            "checkpoint; its journal is cut back to there.",
        ),
        records=tuple(_record(each) for each in outcomes),
    )


def _row(outcome: dict[str, Any]) -> tuple[Cell, ...]:
    kills = outcome["kills"]
    signals = Counter(each["kill"] for each in kills)
    listed = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in signals.items())
    lost = outcome["steps_lost_when_told"]
    return (
        Cell.of(f"{outcome['experiment']}, seed {outcome['seed']}"),
        Cell.of(f"{outcome['ranks']}{_where(outcome)}"),
        Cell.of(str(outcome["steps"])),
        Cell.of(_kills(outcome)),
        Cell.of(listed),
        Cell.of(_steps(each["at_step"] for each in kills)),
        Cell.of(_steps(each["resumed_at"] for each in kills)),
        Cell.of(str(lost), kind="" if lost == 0 else "failed"),
        Cell.of(str(outcome["most_steps_repeated"])),
        _verdict(outcome["weights_equal"], None),
        _verdict(outcome["journal_equal"], outcome["first_difference"]),
        Cell.of(outcome["fingerprint"][:12], title=outcome["fingerprint"]),
    )


def _kills(outcome: dict[str, Any]) -> str:
    """Return how many kills there were, and of how many drawn if some came too late."""
    dealt = len(outcome["kills"])
    drawn = outcome.get("kills_drawn", dealt)  # records of old do not say
    return str(dealt) if dealt == drawn else f"{dealt} of {drawn}"


def _where(outcome: dict[str, Any]) -> str:
    """Return where the processes were, unless it was on this machine as in records of old."""
    if outcome.get("launcher", "local") == "local":
        return ""
    nodes = outcome["nodes"]
    return f" on {nodes} node{'s' if nodes > 1 else ''} of {outcome['launcher'].upper()}"


def _steps(steps: Any) -> str:
    return " ".join("-" if step is None else str(step) for step in steps)


def _verdict(equal: bool, why: str | None) -> Cell:
    if equal:
        return Cell.of("equal", kind="reproduced")
    return Cell.of(f"NOT EQUAL{': ' + why if why else ''}", kind="failed")


def _record(outcome: dict[str, Any]) -> dict[str, str]:
    known = {"launcher": "local", "nodes": 1, **outcome}  # records of old do not say
    plain = {key: value for key, value in known.items() if key not in ("kills", "one_rank")}
    return {
        **{
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in plain.items()
        },
        "kills": json.dumps([each["kill"] for each in outcome["kills"]]),
        "at_step": json.dumps([each["at_step"] for each in outcome["kills"]]),
    }


def _ranks(project: Project, outcomes: Sequence[dict[str, Any]]) -> Grid:
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
        rows=tuple(_ranks_row(each) for each in outcomes),
        notes=(
            "Steps, the images of each step, their augmentation, Mixup and drop path are the same. "
            "What differs is the order in which gradients are added up over processes, and "
            "BatchNorm's running statistics, which are averaged over processes after each step "
            "instead of taken in chunk after chunk. Training amplifies these last bits.",
        ),
        records=tuple(
            {"experiment": each["experiment"], "ranks": str(each["ranks"]),
             **{key: json.dumps(value) for key, value in each["one_rank"].items()}}
            for each in outcomes
        ),
    )  # fmt: skip


def _ranks_row(outcome: dict[str, Any]) -> tuple[Cell, ...]:
    seen = outcome["one_rank"]
    same_steps, same_images = (len(set(seen[key])) == 1 for key in ("steps", "images"))
    return (
        Cell.of(f"{outcome['experiment']}, seed {outcome['seed']}"),
        Cell.of(str(outcome["ranks"])),
        Cell.of(str(seen["steps"][0]) if same_steps else f"{seen['steps']} DIFFER"),
        Cell.of(str(seen["images"][0]) if same_images else f"{seen['images']} DIFFER"),
        *(Cell.of(f"{loss:.10g}") for loss in seen["first_loss"]),
        Cell.of(f"{seen['weights_relative_l2']:.3g}"),
        *(Cell.of(_numbers(metrics)) for metrics in seen["metrics"]),
    )


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
