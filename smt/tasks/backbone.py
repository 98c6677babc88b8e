"""The trunk of a run's detector or segmenter, with the weights that it starts from."""

import torch

from smt.data.rng import derive
from smt.layout import Layout
from smt.models.pyramid import Pyramid, start_from_classifier
from smt.spec import DownstreamRecipe, Project, Run


def seeded(run: Run) -> None:
    """Seed torch's global generator, from which the weights of a run's model are drawn."""
    torch.manual_seed(derive(run.seed, "init"))


def trunk(project: Project, layout: Layout, run: Run, *, inherit: bool) -> Pyramid:
    """Return the backbone of a run, with its parent's weights if it is to `inherit` them.

    Raises:
        UserError: the parent's weights cannot be read, or are not of this model.
    """
    experiment = project.experiments[run.experiment]
    recipe = project.recipes[experiment.recipe]
    assert isinstance(recipe, DownstreamRecipe)
    model = project.models[experiment.model]
    pyramid = Pyramid(model, project.drop_path(run.experiment), recipe.drop_path_mode)
    parent = project.parent(run)
    if parent is not None and inherit:
        start_from_classifier(pyramid, layout.weights(parent))
    return pyramid
