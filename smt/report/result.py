"""One metric of one row: what was reported, what came out, and how far chance goes."""

from dataclasses import dataclass

from smt.report.spread import Spread
from smt.report.verdict import Summary, Verdict, delta
from smt.spec import ReportedValue


@dataclass(frozen=True)
class MetricResult:
    """One metric of one row."""

    experiment: str
    metric: str
    reported: ReportedValue | None
    summary: Summary | None
    spread: Spread | None
    verdict: Verdict

    @property
    def interval(self) -> float | None:
        """Half the width of the prediction interval around the mean, if it is known."""
        if self.summary is None or self.spread is None:
            return None
        return self.spread.interval(self.summary.n)

    @property
    def is_of_others(self) -> bool:
        """Whether the interval rests on other experiments of the recipe alone."""
        return self.spread is not None and self.experiment not in self.spread.experiments

    @property
    def basis(self) -> str:
        """What the interval rests on, in a phrase; empty without one."""
        if self.interval is None or self.spread is None:
            return ""
        count = len(self.spread.experiments)
        if self.is_of_others:
            return f"{count} other experiment{'s' if count > 1 else ''}"
        return f"this and {count - 1} more" if count > 1 else "its own seeds"

    @property
    def delta(self) -> float | None:
        if self.reported is None or self.summary is None:
            return None
        return delta(self.summary.mean, self.reported.value)
