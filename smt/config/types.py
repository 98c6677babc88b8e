"""What every record read from `params/` is built of."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,79}$")]
"""A name from params: it becomes part of paths, shell commands and MLflow keys."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

Problem = tuple[tuple[str | int, ...], str]
"""Key and message of an inconsistency between values of a record."""


def _require_ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("range", "list should be low, then high")
    return bounds


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_require_ascending)]
"""Low and high; equal for a constant."""


def divisors(number: int) -> str:
    """Return the divisors of a number as messages list them."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


class Strict(BaseModel):
    """A frozen record in which an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent between values of the record, by key."""
        return iter(())


def problems_within(value: object, path: tuple[str | int, ...] = ()) -> Iterator[Problem]:
    """Yield the problems of a record and of every record in it, by key."""
    match value:
        case Strict():
            for key, message in value.problems():
                yield (*path, *key), message
            for name in type(value).model_fields:
                yield from problems_within(getattr(value, name), (*path, name))
        case tuple():
            for index, item in enumerate(value):
                yield from problems_within(item, (*path, index))
        case dict():
            for key, item in value.items():
                yield from problems_within(item, (*path, key))
