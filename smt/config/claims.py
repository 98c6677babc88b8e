"""What `params/claims.yaml` holds: sentences of the paper as formulas, and assumed spreads."""

from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, Field

from smt.config.formula import Comparison, parse
from smt.config.types import Name, PositiveFloat, Strict


def _require_formula(text: str) -> str:
    parse(text)
    return text


class AssumedSpread(Strict):
    """By how much a metric differs from seed to seed, for plans made before any seed is done."""

    std: PositiveFloat
    """Standard deviation over seeds, in the metric's unit."""
    source: str
    """What it follows from."""


class Claim(Strict):
    """A sentence, and what has to be true of numbers for it to hold."""

    text: str
    source: Name
    """One of the sources of reported.yaml."""
    formula: Annotated[str, AfterValidator(_require_formula)]
    """All of its comparisons have to hold; see `smt.config.formula`."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """What a side may lack of numbers that were reproduced, in the unit of its comparison."""

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons of the formula."""
        return parse(self.formula)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all numbers of the formula, each once."""
        return tuple(dict.fromkeys(name for part in self.comparisons for name in part.names))
