"""params/released.yaml: references are checked, and a recipe evaluates by another preprocessing."""

from typing import cast

import pytest

from smt.config.load import load_project
from smt.config.recipes import ClassificationRecipe
from smt.config.released import Preprocessing, recipe_for
from smt.errors import UserError
from tests.helpers.params import project_at
from tests.helpers.project_copy import ProjectCopy

RECIPE = cast(ClassificationRecipe, project_at("paper").recipes["imagenet1k"])


@pytest.fixture
def project(tmp_path):
    return ProjectCopy(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("imagenet1k_smt_small: {file", "imagenet1k_smt_smal: {file",
         "released.imagenet1k_smt_smal: no experiment"),
        ("imagenet1k_smt_small: {file", "imagenet22k_smt_large: {file",
         "imagenet22k_smt_large is no SMT that classifies validation images"),
        ("imagenet1k_smt_small: {file", "coco_dino_smt_small: {file",
         "coco_dino_smt_small is no SMT that classifies validation images"),
        ("imagenet1k_smt_small: {file: null}",
         "imagenet1k_smt_small: {file: a.pth, preprocessing: center90}",
         "preprocessing: no preprocessing 'center90'; did you mean center_90"),
        ("imagenet1k_smt_small: {file: null}", "imagenet1k_smt_small: {}", "missing"),
        ("imagenet1k_smt_small: {file: null}", "imagenet1k_smt_small: {file: null, images: 0}",
         "greater than 0"),
        ("  squash: {", "  release: {", "this name stands for the recipe's own"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_and_key(project, old, new, words):
    project.edit("released.yaml", old, new)
    with pytest.raises(UserError) as error:
        load_project(project.folder / "params", "paper")
    message = str(error.value)
    assert "released.yaml:" in message and words in message and "\n" not in message


def test_the_recipe_is_the_releases_own_preprocessing():
    recipe = recipe_for(RECIPE, None, None)
    assert recipe.evaluation == RECIPE.evaluation and recipe.resolution == 224
    assert (recipe.precision, recipe.compile) == ("fp32", False)


def test_another_preprocessing_or_resolution_takes_its_place():
    squash = Preprocessing(resize="squash", crop_ratio=1.0, resolution=288)
    recipe = recipe_for(RECIPE, squash, None)
    assert (recipe.evaluation.resize, recipe.resolution) == ("squash", 288)
    assert recipe_for(RECIPE, squash, 320).resolution == 320
    assert recipe_for(RECIPE, None, 256).resolution == 256
