"""What every record read from `params/` is built of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,79}$")]
"""A name from params: it becomes part of paths, shell commands and MLflow keys."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """A frozen record in which an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
