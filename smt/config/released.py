"""What `params/released.yaml` holds: weights that others trained, which are evaluated here."""

from typing import Annotated

from pydantic import Field

from smt.config.recipes import ClassificationRecipe, Evaluation
from smt.config.types import Name, Positive, Strict

SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
"""Pixels of a square that a model sees: below it has no position left in its last stage; above,
memory for one image ends, or what the decoder of images takes for an attack."""

Resolution = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)]

RELEASE = "release"
"""The preprocessing of the experiment's recipe, which is that of the authors' release."""


class Preprocessing(Evaluation):
    """How an image is brought to the model, in place of what the recipe says."""

    resolution: Resolution | None = None
    """Side of the square that the model sees, in pixels [the recipe's]."""


class ReleasedWeights(Strict):
    """An experiment that is evaluated only: its weights come from a file that the user names.

    It has the name of the experiment in whose row of the tables it stands, whose model and data
    set it has, and whose recipe says how images are brought to the model.
    """

    file: str | None
    """Absolute, or below the data folder; null: none at hand, nothing is evaluated."""
    state: str | None = None
    """Key of the weights in a file that holds several [model, as the release evaluates them]."""
    preprocessing: Name = RELEASE
    """`release`, or an entry of `preprocessings`."""
    resolution: Resolution | None = None
    """Side of the square that the model sees, in pixels [as the preprocessing says]."""
    data: str | None = None
    """Folder with a folder of images a class, absolute or below the data folder [the validation
    images of the data set]."""
    labels: str | None = None
    """File with the name of a class folder a line, that of class 0 first; absolute or below the
    data folder [the folders sorted by name]."""
    images: Positive | None = None
    """Evaluate a random sample of so many images, for an estimate [every image]."""


def recipe_for(
    recipe: ClassificationRecipe, preprocessing: Preprocessing | None, resolution: int | None
) -> ClassificationRecipe:
    """Return a recipe that evaluates with another preprocessing, at another resolution.

    In float32, whatever the training computes in: the numbers are those of the file.
    """
    evaluation = recipe.evaluation
    side = recipe.resolution
    if preprocessing is not None:
        evaluation = Evaluation(**preprocessing.model_dump(exclude={"resolution"}))
        side = preprocessing.resolution or side
    changes = {
        "evaluation": evaluation, "resolution": resolution or side, "precision": "fp32",
        "compile": False,
    }  # fmt: skip
    return recipe.model_copy(update=changes)
