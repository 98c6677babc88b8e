"""`smt verify`: is every printed number consistent with its run?"""

import sys
from collections.abc import Iterator

import click

from smt.commands import profile
from smt.commands.common import load, scale_option
from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.metrics import METRICS
from smt.errors import EXIT_UNVERIFIED, UserError
from smt.report.sizes import PAPER
from smt.runs.paths import default_params
from smt.verify.audit import Audit
from smt.verify.ledger import Ledger, equal

AGAIN = "evaluated again"
NOTES = 3
"""Maximum of notes of one kind that are printed; the rest are counted."""


@click.command()
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="Only this one; repeatable."
)
@click.option(
    "--evaluate", is_flag=True, help="Evaluate all weights and count all sizes again (torch)."
)
@scale_option
def command(experiments: tuple[str, ...], evaluate: bool, scale: str) -> None:
    """Derive every printed number again, from journals, weights, params and data.

    Compares with them: numbers, provenance and evaluation of each run, its last checkpoint, every
    cell of every table in every format, manifests, sizes, and MLflow if it is reachable. Writes
    nothing. One line for each inconsistency, and exit code 5; docs/verify.md lists what cannot be
    detected.
    """
    project, layout = load(scale)
    paper = load_project(default_params(), PAPER)
    audit = Audit(project, layout, paper)
    ledger = audit.check_all(experiments, profile.measure if evaluate else None)
    if evaluate:
        _evaluate(audit)
    for line in summary(ledger):
        click.echo(line)
    sys.exit(EXIT_UNVERIFIED if ledger.mismatches else 0)


def _evaluate(audit: Audit) -> None:
    """Compare the numbers of every run with an evaluation of its weights on this machine."""
    from smt.engine import distributed
    from smt.tasks import environment, evaluation

    ranks = distributed.start(audit.project.scale.threads)
    try:
        for run in audit.derived:
            try:
                metrics = evaluation.measure(audit.project, audit.layout, run, ranks)
            except UserError as error:
                audit.ledger.add_mismatch(AGAIN, run, str(error))
                continue
            here = environment.of(ranks, audit.project.recipe_of(run.experiment))
            _compare(audit, run, metrics, exact=audit.trained_in.get(run) == here)
    finally:
        distributed.stop()


def _compare(audit: Audit, run: Run, metrics: dict[str, float], *, exact: bool) -> None:
    ledger, path = audit.ledger, audit.layout.weights(run)
    ledger.add_item(AGAIN, run)
    for name, value in metrics.items():
        recorded = audit.derived[run].metrics.get(name, float("nan"))
        agrees = equal(recorded, value) or abs(recorded - value) <= (
            0.0 if exact else METRICS[name].tolerance
        )
        where = f"{audit.derived[run].source}: {name}"
        ledger.compare(
            AGAIN, where, recorded, recorded if agrees else value, f"{path}, evaluated again"
        )


def summary(ledger: Ledger) -> Iterator[str]:
    """Yield a line for each mismatch, then for each kind of thing that was compared."""
    for mismatch in ledger.mismatches:
        yield str(mismatch)
    kinds = list(dict.fromkeys([*ledger.items, *ledger.comparisons, *ledger.notes]))
    width = max(map(len, kinds), default=0)
    for kind in kinds:
        items = len(ledger.items.get(kind, ()))
        count = f"{ledger.comparisons[kind]:,} values of " if ledger.comparisons[kind] else ""
        yield f"{kind:<{width}}  {count}{items:,} {_THINGS.get(kind, 'files')}"
        notes = ledger.notes.get(kind, [])
        yield from (f"{'':<{width}}  {note}" for note in notes[:NOTES])
        if notes[NOTES:]:
            yield f"{'':<{width}}  and {len(notes) - NOTES} more like it"
    total = ledger.comparisons.total()
    if ledger.mismatches:
        yield f"{len(ledger.mismatches)} of {total:,} values are inconsistent with their sources"
    else:
        yield f"everything is consistent: {total:,} values compared"


_THINGS = {"runs": "runs that are done", "MLflow": "runs", AGAIN: "runs"}
