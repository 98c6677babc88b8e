"""Experiments whose model is timm's: how params say so, and what is refused."""

import pytest
import yaml

from smt.cluster import cost
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import load_project, locate
from smt.config.models import TimmModel
from smt.errors import UserError
from tests.helpers import ROOT

SWIN = "swin_tiny_patch4_window7_224"
PEER = "imagenet1k_swin_tiny"


@pytest.fixture
def params(tmp_path):
    """Return a function that changes the bundled peer and returns the folder of params."""
    folder = tmp_path / "params"
    folder.mkdir()
    for path in (ROOT / "params").iterdir():
        (folder / path.name).write_text(path.read_text())

    def change(**keys):
        path = folder / "experiments.yaml"
        content = yaml.safe_load(path.read_text())
        for name, entry in keys.items():
            content["experiments"][name] = content["experiments"].get(name, {}) | entry
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return folder

    return change


def test_an_experiment_brings_its_model_of_timm_which_others_may_name(params):
    folder = params(other={"base": PEER, "model": SWIN, "title": "other", "drop_path": 0.3})
    project = load_project(folder, "paper")
    model = project.models[SWIN]
    assert isinstance(model, TimmModel) and model.text == SWIN
    assert project.experiments["other"].model == project.experiments[PEER].model == SWIN
    demo = load_project(folder, "demo").models[SWIN]
    assert demo.text == (
        f"{SWIN}(depths=[1, 1, 2, 1], embed_dim=16, num_heads=[1, 2, 4, 8], window_size=4)"
    )


def test_another_model_of_timm_inherits_neither_title_nor_arguments(params):
    entry = {"base": PEER, "model": {"timm": "resnet18"}}
    project = load_project(params(other=entry), "demo")
    assert project.models["resnet18"].title == "resnet18"
    assert project.models["resnet18"].arguments == {}


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ({"timm": "timm/swin_tiny.ms_in1k"}, "model.timm",
         "without the tag of weights after the dot: swin_tiny, found"),
        ({"timm": "Swin"}, "model.timm", "string should match pattern"),
        ({"timm": SWIN, "titel": "x"}, "model.titel", "unknown key; did you mean title"),
        ({"title": "x", "name": "x"}, "model.timm", "this key is missing"),
        ({"timm": SWIN, "arguments": {"pretrained": True}}, "model.arguments.pretrained",
         "weights come from no file"),
        ({"timm": SWIN, "arguments": {"num_classes": 5}}, "model.arguments.num_classes",
         "decided by the data set; remove it"),
        ({"timm": SWIN, "arguments": {"embed_dim": 64}}, "model",
         f"another experiment has a model {SWIN} with other keys; write model: {SWIN} here"),
        ({"timm": SWIN, "name": "smt_tiny"}, "model",
         "models.yaml has a model smt_tiny; give this one another `name`"),
    ],
)  # fmt: skip
def test_a_wrong_model_of_timm_is_named_with_file_line_and_key(params, model, key, message):
    base = {"base": "imagenet1k_smt_small", "title": "other", "model": model}
    with pytest.raises(UserError, match=message) as error:
        load_project(params(other=base), "paper")
    assert f"experiments.other.{key}: " in str(error.value)
    assert "experiments.yaml:" in str(error.value)


def test_a_peer_is_named_without_the_tag_of_its_weights(params):
    folder = params()
    path = folder / "peers.yaml"
    path.write_text(path.read_text().replace("timm: pvt_v2_b1}", "timm: pvt_v2_b1.in1k}"))
    with pytest.raises(
        UserError, match=r"peers\.yaml:14: .*\.pvt_v2_b1\.timm: .*: pvt_v2_b1, found"
    ):
        load_project(folder, "paper")


@pytest.mark.parametrize(
    ("scale", "experiment", "key", "place"),
    [
        ("smoke", PEER, "model.arguments.embed_dim", "scales.yaml smoke.experiments"),
        ("smoke", PEER, "model.arguments.window_size", "scales.yaml demo.experiments"),
        ("demo", PEER, "model.timm", "experiments.yaml experiments"),
        ("smoke", "other", "model.arguments.embed_dim", "scales.yaml smoke.experiments"),
        ("paper", "other", "drop_path", "experiments.yaml experiments"),
    ],
)
def test_a_key_of_a_model_is_found_where_it_is_given(params, scale, experiment, key, place):
    folder = params(other={"base": "imagenet1k_smt_small", "model": SWIN, "drop_path": 0.3})
    found = locate(folder, scale, experiment, tuple(key.split(".")))
    file, prefix = place.split()
    owner = "other" if key == "drop_path" else PEER
    path, line, dotted = found.split(":")
    assert (path, dotted) == (f"{folder / file}", f" {prefix}.{owner}.{key}")
    assert key.rpartition(".")[2] in (folder / file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("key", ["compile", "recompute"])
def test_what_only_an_smt_can_do_is_off_for_a_model_of_timm_in_the_same_recipe(params, key):
    folder = params()
    path = folder / "recipes.yaml"
    text = path.read_text()
    assert text.count(f"{key}: false") == 1
    path.write_text(text.replace(f"{key}: false", f"{key}: true"))
    project = load_project(folder, "paper")
    assert getattr(project.recipe_of("imagenet1k_smt_tiny"), key) is True
    assert getattr(project.recipe_of(PEER), key) is False


def test_a_model_that_was_not_counted_costs_nothing_that_is_known(params):
    project = load_project(params(**{PEER: {"model": {"timm": "resnet18"}}}), "paper")
    with pytest.raises(UserError, match=r"timm\.resnet18 at 224, 1000 classes is missing"):
        cost.forward_macs(project, PEER)


def test_drop_path_of_a_model_that_has_none_is_refused_once_it_was_counted(params):
    folder = params(**{PEER: {"model": {"timm": "vgg11"}, "drop_path": 0.1}})
    path = folder / "sizes.yaml"
    sizes = yaml.safe_load(path.read_text())
    sizes["timm"]["vgg11 at 224, 1000 classes"] = {"macs": 1, "params": 1, "drop_path": False}
    path.write_text(yaml.safe_dump(sizes))
    with pytest.raises(UserError, match=r"drop_path: vgg11 of timm has no branches.*valid: 0"):
        load_project(folder, "paper")


def test_arguments_are_of_the_fingerprint_and_titles_are_not(params):
    def of(folder):
        project = load_project(folder, "paper")
        run = Run(experiment=PEER, seed=0)
        digests = dict.fromkeys(fingerprint.inputs(project, run), "0")
        return fingerprint.fingerprint(project, run, digests)

    first = of(params())
    assert of(params(**{PEER: {"model": {"timm": SWIN, "title": "otherwise called"}}})) == first
    assert of(params(**{PEER: {"model": {"timm": SWIN, "arguments": {"window_size": 8}}}})) != first
