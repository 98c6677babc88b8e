"""Networks of timm as classifiers and as backbones, and layer decay on those of SMT."""

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import smt.models.zoo  # noqa: F401 (registers the models of SMT)
from smt.config.models import TimmModel
from smt.models import timm_network, weights
from smt.models.pyramid import start_from_classifier
from smt.models.timm_network import Refusal, TimmPyramid

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4], "window_size": 4}
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
SMALL: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": SWIN,
    "resnet18": RESNET,
    "convnext_atto": CONVNEXT,
}
"""Of each way in which timm names the layers of a classifier's end."""


def model(name, **arguments):
    return TimmModel(timm=name, title=name, name=name, arguments=arguments)


def classifier(name, drop_path_rate=0.0, resolution=64, **arguments):
    torch.manual_seed(0)
    return timm_network.classifier(
        model(name, **arguments),
        num_classes=7,
        resolution=resolution,
        drop_path_rate=drop_path_rate,
    )


# --- classifiers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_of_timm_is_the_one_that_timm_makes(name):
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in SMALL[name].items()}
    if "swin" in name:
        given["img_size"] = 64
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=7, drop_path_rate=0.0, **given).eval()
    ours = classifier(name, **SMALL[name]).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), expected(images))


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_drop_path_rate_is_that_of_the_experiment_and_not_timms_default(rate):
    network = classifier("swin_tiny_patch4_window7_224", rate, **SWIN)
    rates = [block.drop_path1.drop_prob for block in network.layers[-1].blocks
             if hasattr(block.drop_path1, "drop_prob")]  # fmt: skip
    assert max(rates, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("name", "arguments", "key", "message"),
    [
        ("swin_tinny_patch4_window7_224", {}, "model.timm",
         "has no model 'swin_tinny_patch4_window7_224'; did you mean swin_tiny_patch4_window7_224"),
        ("resnet18", {"layer": [1, 1, 1, 1]}, "model.arguments.layer",
         "resnet18 takes no such argument; did you mean layers"),
        ("swin_tiny_patch4_window7_224", SWIN | {"num_heads": [1]}, "model.arguments.num_heads",
         r"cannot be made with \[1\]: tuple index out of range; give another value, or leave"),
        ("swin_tiny_patch4_window7_224", SWIN | {"num_heads": [0] * 4}, "model.arguments.num_heads",
         r"cannot be made with \[0, 0, 0, 0\]: integer division or modulo by zero"),
        ("swin_tiny_patch4_window7_224", SWIN | {"embed_dim": 0}, "model.arguments.embed_dim",
         "cannot be made with 0: "),
        ("swin_tiny_patch4_window7_224", SWIN | {"embed_dim": "lots"}, "model.arguments.embed_dim",
         'cannot be made with "lots": invalid literal'),
        ("swin_tiny_patch4_window7_224", SWIN | {"num_heads": [1], "embed_dim": "lots"},
         "model.arguments", "cannot be made: .*; give other ones, or leave them out"),
    ],
)  # fmt: skip
def test_what_timm_refuses_is_told_with_its_key_and_the_nearest_valid_name(
    name, arguments, key, message, recwarn
):
    with pytest.raises(Refusal, match=message) as refusal:
        classifier(name, **arguments)
    assert refusal.value.key == key and "\n" not in str(refusal.value)
    assert not recwarn.list


def test_a_drop_path_rate_for_a_model_without_branches_is_refused():
    assert not timm_network.has_drop_path(model("vgg11"))
    assert timm_network.has_drop_path(model("resnet18", **RESNET))
    with torch.device("meta"), pytest.raises(Refusal, match="no branches") as refusal:
        classifier("vgg11", 0.1)
    assert refusal.value.key == "drop_path"


def test_an_image_size_that_a_model_refuses_is_told_before_a_training():
    with torch.device("meta"):
        network = classifier("maxvit_tiny_tf_224", resolution=100)
        with pytest.raises(Refusal, match=r"refuses images of 100 x 100: .*change the recipe's"):
            timm_network.refuse_image(network, torch.empty(1, 3, 100, 100))
        network = classifier(
            "swin_tiny_patch4_window7_224", resolution=32, **SWIN | {"patch_size": 64}
        )
        with pytest.raises(Refusal, match=r"32 x 32: .* greater than actual input size; change"):
            timm_network.refuse_image(network, torch.empty(1, 3, 32, 32))
        timm_network.refuse_image(classifier("resnet18", **RESNET), torch.empty(1, 3, 100, 100))


# --- backbones --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_gives_the_features_that_timm_extracts(name, tmp_path):
    network = classifier(name, **SMALL[name])
    path = tmp_path / "model.safetensors"
    weights.save(network.state_dict(), path, {})
    trunk = TimmPyramid(model(name, **SMALL[name]), 0.0, resolution=64)
    start_from_classifier(trunk, path)
    info = network.feature_info
    four = [index for index in range(len(info)) if info[index]["reduction"] in (4, 8, 16, 32)]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(
            images, indices=four, intermediates_only=True
        )
        levels = trunk.eval()(images)
    assert [level.shape[1] for level in levels] == list(trunk.widths)
    assert [64 // level.shape[2] for level in levels] == [4, 8, 16, 32]
    for ours, theirs in zip(levels, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_takes_images_of_any_size_and_trains_every_weight(name):
    trunk = TimmPyramid(model(name, **SMALL[name]), 0.1, resolution=64)
    levels = trunk(torch.randn(2, 3, 96, 160))
    assert [level.shape[2:] for level in levels] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    torch.stack([level.sum() for level in levels]).sum().backward()
    assert all(value.grad is not None for value in trunk.parameters())


def test_a_model_without_features_at_four_strides_is_refused_under_a_head():
    message = "one map of features at each of the strides .* deit_small_patch16_224 has maps at 16"
    with torch.device("meta"), pytest.raises(Refusal, match=message):
        TimmPyramid(model("deit_small_patch16_224"), 0.0)


def test_dropout_takes_the_place_of_drop_path_where_the_recipe_says_so():
    trunk = TimmPyramid(model("resnet18", **RESNET), 0.2, "dropout")
    kinds = [type(module).__name__ for module in trunk.modules()]
    assert "DropPath" not in kinds and "Dropout" in kinds


# --- layer decay ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smt_tiny", "smt_small", "smt_base", "smt_large"])
def test_timms_layer_decay_rises_from_the_stem_to_the_head(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.5)
    scale_of = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    names = [name for name, _ in network.named_parameters()]
    assert sum(len(group["params"]) for group in groups) == len(names) == len(scale_of)
    scales = [scale_of[id(value)] for _, value in network.named_parameters()]
    # Parameters stand from the stem to the head, so scales never fall.
    assert scales == sorted(scales) and scales[-1] == 1.0
    blocks = sum(len(stage.blocks) for stage in network.stages)
    # The stem is a layer, the head another, each block with what leads to and from it as well.
    assert len(set(scales)) == blocks + 2
    assert scales[0] == 0.5 ** (blocks + 1)
    decayed = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    assert decayed == {id(value) for value in network.parameters() if value.ndim > 1}


def test_coarse_groups_are_the_stages():
    with torch.device("meta"):
        network = timm.create_model("smt_tiny")
    groups = timm.models.group_parameters(network, network.group_matcher(coarse=True))
    assert len(groups) == 1 + 4 + 1  # stem, stages, head
