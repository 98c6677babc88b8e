"""The table of claims: sentences of the paper, checked by published and by reproduced numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smt.config.claims import Claim
from smt.config.formula import Comparison
from smt.config.numbers import experiment_of
from smt.config.project import Project
from smt.report import evidence
from smt.report.collect import Results
from smt.report.evidence import Quantity
from smt.report.format import css_class, joined, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.report.spread import COVERAGE, student_t

NAME = "claims"
TITLE = "Claims"

Verdict = Literal["consistent", "reproduced", "contradicted", "undecided", "not comparable"]

MOST_SEEDS = 100
"""More seeds are not asked for."""

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
    is_true = all(comparison.holds(known) for comparison in claim.comparisons)
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
    return combined(tests)


@dataclass(frozen=True)
class ComparisonTest:
    """A comparison of numbers with spread, by the margin that it holds by."""

    comparison: Comparison
    quantities: Mapping[str, Quantity]
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether none of its numbers has a spread."""
        return all(self.quantities[name].is_exact for name in self.comparison.names)

    @property
    def margin(self) -> float:
        """By how much it holds, the tolerance included if a number was trained here."""
        margin = self.comparison.margin(self._means)
        return margin if self.is_exact else margin + self.tolerance

    def error(self, n: int | None = None) -> float:
        """Return the standard error of the margin, as if every mean were of `n` seeds if given.

        NaN where the spread of a number is not known.
        """
        variance = 0.0
        for name in self.comparison.names:
            quantity = self.quantities[name]
            scale = 1.0 if n is None or quantity.n is None else quantity.n / n
            # 0 * NaN is NaN: what the margin does not depend on has no say.
            if slope := self._slope(name):
                variance += slope**2 * quantity.variance * scale
        return math.sqrt(variance) if not math.isnan(variance) else math.nan

    @property
    def df(self) -> int:
        """Degrees of freedom of the spread that is known least."""
        spreads = (self.quantities[name].spread for name in self.comparison.names)
        return min((spread.df for spread in spreads if spread is not None), default=1)

    def holds(self) -> bool:
        """Return whether it is true, by more than chance if chance has a say."""
        if self.is_exact:
            return self.comparison.holds(self._means)
        return self.margin - student_t(self.df, _TAIL) * self.error() > 0

    def fails(self, tests: int) -> bool:
        """Return whether it is false, by more than chance where so many tests are made."""
        if self.is_exact:
            return not self.comparison.holds(self._means)
        return self.margin + student_t(self.df, _TAIL / tests) * self.error() < 0

    @property
    def seeds_needed(self) -> int | None:
        """Seeds of each mean at which this margin would decide; None if more than MOST_SEEDS."""
        quantile = student_t(self.df, _TAIL)
        for n in range(2, MOST_SEEDS + 1):
            if quantile * self.error(n) < abs(self.margin):
                return n
        return None

    @property
    def _means(self) -> dict[str, float]:
        return {name: self.quantities[name].value for name in self.comparison.names}

    def _slope(self, name: str) -> float:
        """Return how the margin changes with a number, by a difference of 1e-3 of its unit."""
        means, step = self._means, 1e-3
        moved = {**means, name: means[name] + step}
        return (self.comparison.margin(moved) - self.comparison.margin(means)) / step


_TAIL = (1 - COVERAGE) / 2
"""Probability of a wrong verdict."""


def combined(tests: Sequence[ComparisonTest]) -> Outcome:
    """Return the outcome of a claim whose comparisons are all to hold."""
    if all(test.holds() for test in tests):
        return Outcome("reproduced")
    if any(test.fails(len(tests)) for test in tests):
        return Outcome("contradicted")
    unknown = [
        name
        for test in tests
        for name in test.comparison.names
        if math.isnan(test.quantities[name].variance)
    ]
    if unknown:
        return Outcome("undecided", f"one seed: train more of {joined(dict.fromkeys(unknown))}")
    needed = [test.seeds_needed for test in tests if not test.holds()]
    if None in needed:
        return Outcome("undecided", f"too close for {MOST_SEEDS} seeds of each")
    return Outcome("undecided", f"{max(filter(None, needed))} seeds of each would decide")


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
