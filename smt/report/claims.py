"""The table of claims: sentences of the paper, checked by published and by reproduced numbers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from smt.config.claims import Claim
from smt.config.numbers import experiment_of
from smt.config.project import Project
from smt.report import evidence
from smt.report.claim_seeds import MOST_SEEDS, POWER, Trial
from smt.report.collect import Results
from smt.report.comparison import ComparisonTest, verdict
from smt.report.evidence import Quantity
from smt.report.format import css_class, joined, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.report.spread import COVERAGE

NAME = "claims"
TITLE = "Claims"

Verdict = Literal["consistent", "reproduced", "contradicted", "undecided", "not comparable"]

_NOTES = (
    "Published numbers: consistent if the formula is true of the numbers as their sources print "
    "them, contradicted if not. A number that was derived from the sentence itself is none.",
    "Here: the same formula of means over the seeds that are done, and of sizes measured by smt "
    "profile. What others reached is not trained here: their published numbers stand in its place. "
    "A side may lack the claim's tolerance.",
    "Reproduced: every comparison holds by more than the uncertainty of its numbers; a claim that "
    f"is false by more than the tolerance is called so at most {50 * (1 - COVERAGE):.3g} times in "
    "100. Contradicted: some comparison fails by more than it, as often at most. Undecided: "
    "neither. The uncertainty is t * s * sqrt(sum of 1/n) with s and t as in the tables of results "
    "and n the seeds of each mean.",
    f"Seeds that would decide: so many of each give a verdict {100 * POWER:.3g} times in 100 if "
    "the true numbers are those seen; smt plan --claims has what they cost.",
)


@dataclass(frozen=True)
class Outcome:
    """What is said of a claim by one set of numbers."""

    verdict: Verdict
    reason: str = ""
    """Why it is undecided, and what would decide it."""


def check_published(project: Project, claim: Claim) -> Outcome:
    """Return whether the published numbers agree with a claim."""
    values = {name: evidence.published(project, name) for name in claim.names}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        return Outcome("undecided", f"not published: {joined(missing)}")
    known = {name: value for name, value in values.items() if value is not None}
    try:
        is_true = all(comparison.holds(known) for comparison in claim.comparisons)
    except ArithmeticError as error:
        return Outcome("undecided", str(error))
    return Outcome("consistent" if is_true else "contradicted")


def check_here(results: Results, claim: Claim) -> Outcome:
    """Return whether the numbers that were reproduced and measured here agree with a claim."""
    project = results.project
    experiments = [experiment_of(project, name) for name in claim.names]
    if project.scale.notice is not None and any(experiments):
        return Outcome("not comparable")
    quantities = {name: evidence.here(results, name) for name in claim.names}
    missing = [name for name, quantity in quantities.items() if quantity is None]
    if missing:
        return Outcome("undecided", f"to be trained or measured: {joined(missing)}")
    known = {name: quantity for name, quantity in quantities.items() if quantity is not None}
    tests = [ComparisonTest(comparison, known, claim.tolerance) for comparison in claim.comparisons]
    try:
        decision = verdict(tests)
        return _undecided(results, claim, known) if decision == "undecided" else Outcome(decision)
    except ArithmeticError as error:
        return Outcome("undecided", str(error))


def _undecided(results: Results, claim: Claim, known: Mapping[str, Quantity]) -> Outcome:
    """Return what would decide a claim if the true numbers were those seen so far."""
    unknown = [name for name in claim.names if math.isnan(known[name].variance)]
    if unknown:
        return Outcome("undecided", f"one seed: train more of {joined(unknown)}")

    def std_of(experiment: str, metric: str) -> float:
        spread = results.spread(experiment, metric)
        assert spread is not None
        return spread.std

    values = {name: quantity.value for name, quantity in known.items()}
    needed = Trial(results, claim, values, std_of).seeds_to_decide(POWER)
    if needed is None:
        return Outcome("undecided", f"too close for {MOST_SEEDS} seeds of each")
    return Outcome("undecided", f"{needed} seeds of each would decide")


def experiments(project: Project) -> tuple[str, ...]:
    """Return the experiments that claims are about, each once."""
    names = (name for claim in project.claims.values() for name in claim.names)
    owners = (experiment_of(project, name) for name in names)
    return tuple(dict.fromkeys(owner for owner in owners if owner is not None))


def claims_grid(results: Results) -> Grid:
    """Return the table of claims."""
    project = results.project
    sources = tuple(dict.fromkeys(claim.source for claim in project.claims.values()))
    outcomes = {
        name: (check_published(project, claim), check_here(results, claim))
        for name, claim in project.claims.items()
    }
    return Grid(
        name=NAME,
        title=TITLE,
        caption="What the paper says of its numbers, checked as formulas.",
        notice=project.scale.notice,
        columns=(
            Column("Claim", prose=True),
            Column("Formula", prose=True),
            Column("numbers", "Published", prose=True),
            Column("verdict", "Published"),
            Column("numbers", "Here", prose=True),
            Column("verdict", "Here"),
            Column("What would decide", prose=True),
        ),
        rows=tuple(
            (
                Cell.of(f"{claim.text} [{source_mark(sources.index(claim.source))}]"),
                Cell.of(" ".join(claim.formula.split())),
                Cell.of(_published_numbers(project, claim)),
                _verdict(outcomes[name][0]),
                Cell.of(_numbers_here(results, claim, outcomes[name][1])),
                _verdict(outcomes[name][1]),
                Cell.of(_reasons(*outcomes[name])),
            )
            for name, claim in project.claims.items()
        ),
        notes=(*source_notes(sources, project.reported.sources), *_NOTES),
        records=tuple(
            {
                "table": NAME,
                "claim": name,
                "text": claim.text,
                "source": claim.source,
                "formula": " ".join(claim.formula.split()),
                "tolerance": repr(claim.tolerance),
                "published": outcomes[name][0].verdict,
                "published_reason": outcomes[name][0].reason,
                "here": outcomes[name][1].verdict,
                "here_reason": outcomes[name][1].reason,
                "scale": project.scale_name,
                "notice": project.scale.notice or "",
            }
            for name, claim in project.claims.items()
        ),
    )


def _verdict(outcome: Outcome) -> Cell:
    return Cell.of(outcome.verdict, kind=css_class(outcome.verdict))


def _reasons(published: Outcome, here: Outcome) -> str:
    parts = {"published": published.reason, "here": here.reason}
    return "; ".join(f"{name}: {reason}" for name, reason in parts.items() if reason)


def _published_numbers(project: Project, claim: Claim) -> str:
    values = {name: evidence.published(project, name) for name in claim.names}
    return _filled(
        claim, {name: f"{value:g}" for name, value in values.items() if value is not None}
    )


def _numbers_here(results: Results, claim: Claim, outcome: Outcome) -> str:
    if outcome.verdict == "not comparable":
        return ""
    quantities = {name: evidence.here(results, name) for name in claim.names}
    texts = {
        name: f"{quantity.value:.5g}{'' if quantity.is_exact else f' (n = {quantity.n})'}"
        for name, quantity in quantities.items()
        if quantity is not None
    }
    return _filled(claim, texts)


def _filled(claim: Claim, texts: Mapping[str, str]) -> str:
    """Return the formula with numbers in place of names, ? where there is none."""
    formula = " ".join(claim.formula.split())
    for name in claim.names:
        formula = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", texts.get(name, "?"), formula)
    return formula
