"""The formula of multiply-accumulates against counts of a forward pass of the network."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smt.config import macs
from smt.models import profile
from tests.helpers.params import project_at

PROJECTS = {scale: project_at(scale) for scale in ("paper", "demo")}
TINY = PROJECTS["demo"].models["smt_tiny"]


def resolutions(project, model):
    """Return the resolutions that a model is trained at, each with the classes there."""
    recipes = {
        experiment.recipe
        for experiment in project.experiments.values()
        if experiment.model == model
    }
    return {
        (recipe.resolution, project.datasets[recipe.dataset].classes)
        for recipe in map(project.recipes.get, recipes)
    }


def assert_equal(model, resolution, classes):
    ours = macs.forward(model, resolution, num_classes=classes)
    counts = profile.count(model, resolution, num_classes=classes)
    assert ours.convolution == counts.conv_macs
    assert ours.linear == counts.linear_macs
    assert ours.attention == counts.attention_macs
    assert ours.total == counts.attention


LARGER = ("smt_small", "smt_base", "smt_large")
"""SMT-T with more blocks and channels; counting one at paper scale takes seconds."""


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        pytest.param(
            scale, name, marks=[pytest.mark.slow] * ((scale, name in LARGER) == ("paper", True))
        )
        for name in PROJECTS["paper"].smt_models
        for scale in PROJECTS
    ],
)
def test_every_model_at_every_resolution_that_it_is_trained_at(scale, name):
    project = PROJECTS[scale]
    cases = resolutions(project, name)
    assert cases
    for resolution, classes in cases:
        assert_equal(project.models[name], resolution, classes)


def test_resolutions_of_the_large_variant_include_384():
    assert resolutions(PROJECTS["paper"], "smt_large") == {(224, 21841), (224, 1000), (384, 1000)}


@st.composite
def models(draw):
    """Return a small model with any mixers, heads and aggregation that a network can have."""
    aggregation = draw(st.sampled_from(("saa", "none", "conv1x1", "dense", "dense_expand")))
    heads = draw(st.sampled_from((1, 2, 4)) if aggregation == "none" else st.integers(1, 8))
    return TINY.model_copy(
        update={
            "widths": tuple(draw(st.sampled_from((8, 12, 16, 24))) for _ in range(4)),
            "depths": tuple(draw(st.integers(2, 3)) for _ in range(4)),
            "mlp_ratios": tuple(draw(st.sampled_from((1.0, 1.3, 2.0, 4.0))) for _ in range(4)),
            "stem_kernel": draw(st.sampled_from((3, 7))),
            "layer_scale": draw(st.sampled_from((None, 1e-4))),
            "mixers": tuple(
                draw(st.sampled_from(("sam", "msa", "alternate", "half"))) for _ in range(4)
            ),
            "mhmc_heads": heads,
            "msa_heads": tuple(draw(st.sampled_from((1, 2, 4))) for _ in range(4)),
            "aggregation": aggregation,
        }
    )


CASES = {
    "model": models(), "resolution": st.integers(32, 130), "classes": st.integers(1, 30),
}  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(**CASES)
def test_some_models_at_some_resolutions(model, resolution, classes):
    assert_equal(model, resolution, classes)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_any_model_at_any_resolution(model, resolution, classes):
    assert_equal(model, resolution, classes)


def test_one_block_of_each_kind_by_hand():
    model = TINY.model_copy(update={"mhmc_heads": 2, "aggregation": "saa"})
    # SAM on 8 channels: 3 linears of 64; heads of 4 channels with 9 and 25 weights; 2 x 8 outputs
    # of 2 weights each, then 16 x 8.
    assert macs.sam(model, 8) == macs.Macs(convolution=4 * 34 + 32 + 128, linear=192)
    # The same with 3 heads: 9 channels in heads of 3 (9, 25, 49), 18 outputs of 3, then 18 x 8.
    three = model.model_copy(update={"mhmc_heads": 3})
    assert macs.sam(three, 8) == macs.Macs(convolution=3 * 83 + 54 + 144, linear=128 + 72)
    assert macs.msa(8, 5) == macs.Macs(convolution=72, linear=256, attention=80)
    assert macs.mlp(8, 16) == macs.Macs(convolution=144, linear=256)
