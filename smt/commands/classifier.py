"""Shared by commands that take weights of a classifier: the file, its model and its run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smt.commands.common import load
from smt.config.experiments import Experiment
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.config.released import LARGEST_SIDE, SMALLEST_SIDE
from smt.errors import UserError, suggest
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from smt.models.smt import SMT

SIDE = click.IntRange(SMALLEST_SIDE, LARGEST_SIDE)
"""Pixels of the side of a square that a model sees."""
RELEASED_SCALE = "paper"
"""Scale of weights whose file names none."""
RELEASED_RECIPE = "imagenet1k"
"""Recipe by which images are prepared for weights whose file names no run."""


def classifier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the file of weights leaves open."""
    model = click.option(
        "--model",
        metavar="NAME",
        help="Model of params/models.yaml [default: what the file says, or the one that fits it].",
    )
    scale = click.option(
        "--scale", help="Scale that the model is of [default: what the file says, or paper]."
    )
    state = click.option("--state", metavar="KEY", help="Which weights of a file with several.")
    return model(scale(state(command)))


@dataclass(frozen=True)
class Classifier:
    """Weights in a file, built into their network."""

    network: "SMT"
    """In float32 on the CPU, set to evaluation."""
    model: str
    project: Project
    layout: Layout
    run: tuple[str, str] | None
    """Experiment and seed that the weights were exported by; None for others' weights."""

    @property
    def experiment(self) -> Experiment | None:
        """The experiment of the run, if there is one."""
        return None if self.run is None else self.project.experiments[self.run[0]]

    @property
    def title(self) -> str:
        """What the weights are, for a reader."""
        if self.run is None or self.experiment is None:
            return self.network.spec.title
        return f"{self.experiment.title}, seed {self.run[1]}"

    def recipe(self, size: int | None) -> ClassificationRecipe:
        """Return the recipe whose evaluation prepares images, at `size` pixels if given."""
        name = RELEASED_RECIPE if self.experiment is None else self.experiment.recipe
        recipe = self.project.recipes[name]
        assert isinstance(recipe, ClassificationRecipe)
        return recipe if size is None else recipe.model_copy(update={"resolution": size})


def load_classifier(
    path: Path, model: str | None, scale: str | None, state: str | None
) -> Classifier:
    """Return the classifier of a file: a run's model.safetensors, or a released checkpoint.

    What was chosen in it, and changed in its names, is said on stderr.

    Raises:
        UserError: the file cannot be read or is no classifier's, or no model fits it.
    """
    from smt.models import classifier_file

    file = classifier_file.read(path, state)
    project, layout = load(scale or str(file.metadata.get("scale", RELEASED_SCALE)))
    experiment = project.experiments.get(str(file.metadata.get("experiment", "")))
    if model is not None and model not in project.smt_models:
        valid = suggest(model, project.smt_models)
        raise UserError(f"--model: no model {model!r} in params/models.yaml; {valid}")
    if model is None:
        model = (
            experiment.model if experiment else file.find_model(project.smt_models, layout.scale)
        )
    if model not in project.smt_models:
        raise UserError(
            f"{path}: the weights of {model} are no SMT's, and this command is for SMT alone; use "
            "timm's own tools for them"
        )
    run = None
    if experiment is not None:
        run = str(file.metadata["experiment"]), str(file.metadata.get("seed", "unknown"))
    network = file.build(model, project.smt_models, layout.scale)
    for note in file.checkpoint.notes:
        click.echo(f"{path}: {note}", err=True)
    return Classifier(network, model, project, layout, run)
