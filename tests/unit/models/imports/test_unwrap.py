"""The state dict of an SMT in the usual structures of checkpoint files."""

import pytest
import torch

from smt.models import weights
from tests.helpers.conversions import assert_imported, assert_refused, convert, save
from tests.helpers.in_process import smt


def test_the_model_is_preferred_to_its_average_and_named(tmp_path, state, target):
    average = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
    source = save(tmp_path / "in.pth", {"model": state, "model_ema": average})
    assert_imported(
        convert(source, target), target, state,
        "it holds model, model_ema: model was taken", "release", "--state model_ema",
    )  # fmt: skip
    assert_imported(
        convert(source, target, "--state", "model_ema"), target, average,
        "it holds model, model_ema: model_ema was taken",
    )  # fmt: skip
    assert_refused(
        convert(source, tmp_path / "none.safetensors", "--state", "ema"),
        tmp_path / "none.safetensors", "--state 'ema'", "valid: model, model_ema",
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrap, expected",
    [
        (lambda state: state, "tensors of"),
        (lambda state: {"state_dict": state, "epoch": 3}, "from its key state_dict"),
        (lambda state: {"model": {"state_dict": state}}, "from its key model.state_dict"),
        (lambda state: {"checkpoint": {"model": state}}, "from its key checkpoint.model"),
        (lambda state: {"module": state, "acc": torch.tensor(0.8)}, "from its key module"),
        (lambda state: {"state_dict_ema": state}, "from its key state_dict_ema"),
        (lambda state: {"net": state, "ema": dict(state)}, "net was taken"),
        (
            lambda state: {"model": state, "optimizer": {"state": {"a": {"exp": torch.ones(1)}}}},
            "tensors of",
        ),
    ],
)
def test_a_state_is_found_under_the_keys_that_people_use(tmp_path, state, target, wrap, expected):
    source = save(tmp_path / "in.pth", wrap(state))
    assert_imported(convert(source, target), target, state, expected)


def test_two_states_without_a_usual_name_need_an_option(tmp_path, state, target):
    source = save(tmp_path / "in.pth", {"student": state, "generator": state})
    assert_refused(
        convert(source, target), target, "several states (student, generator)", "--state"
    )
    assert_imported(
        convert(source, target, "--state", "student"), target, state, "student was taken"
    )


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"epoch": 3}, "no state dict"),
        ({"model": {}}, "no state dict"),
        ([1, 2], "no state dict"),
        ({0: torch.ones(1)}, "no state dict"),
        ({"model": {"norm1.bias": torch.ones(1), "extra": 3, "a\nb": "c"}},
         "under the key model: not a tensor: extra, 'a\\nb'"),
    ],
)  # fmt: skip
def test_files_without_a_state_dict_are_refused(tmp_path, target, content, expected):
    source = save(tmp_path / "in.pth", content)
    assert_refused(convert(source, target), target, str(source), expected)


@pytest.mark.parametrize(
    "prefix, expected",
    [
        ("module.", "DistributedDataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("module._orig_mod.", "DistributedDataParallel, torch.compile"),
        ("backbone.", "'backbone.' taken off"),
        ("encoder.", "'encoder.' taken off"),
        ("model.module.", "'model.module.' taken off"),
    ],
)
def test_a_common_prefix_is_removed_and_named(tmp_path, state, target, prefix, expected):
    source = save(tmp_path / "in.pth", {"model": {prefix + n: t for n, t in state.items()}})
    assert_imported(convert(source, target), target, state, f"off all {len(state)} names", expected)


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path, state, target):
    averaged = {"n_averaged": torch.tensor(7), **{f"module.{n}": t for n, t in state.items()}}
    source = save(tmp_path / "in.pth", {"ema_state_dict": averaged})
    assert_imported(
        convert(source, target), target, state, "n_averaged left out", "'module.' taken off"
    )


def test_wrappers_of_single_layers_are_removed(tmp_path, state, target):
    wrapped = {
        n.replace("block1.0.", "block1.0._checkpoint_wrapped_module.")
        .replace("block3.1.", "block3.1._orig_mod."): t
        for n, t in state.items()
    }  # fmt: skip
    source = save(tmp_path / "in.pth", {"model": wrapped})
    assert_imported(convert(source, target), target, state, "wrappers taken out of")


def test_a_detector_is_refused_unless_its_prefix_is_named(tmp_path, state, target):
    backbone = {n: t for n, t in state.items() if not n.startswith("head.")}
    detector = {
        **{f"backbone.{n}": t for n, t in backbone.items()},
        "neck.norm1.weight": torch.ones(1),
        "bbox_head.head.weight": torch.ones(1),
    }
    source = save(tmp_path / "in.pth", {"state_dict": detector})
    assert_refused(
        convert(source, target), target, f"'backbone.' at {len(backbone)} of {len(detector)} names",
        "neck.norm1.weight, bbox_head.head.weight", "--prefix backbone.",
    )  # fmt: skip
    result = convert(source, target, "--prefix", "backbone.")
    assert_imported(
        result, target, backbone, f"2 of {len(detector)} names without 'backbone.' left out"
    )
    assert_refused(
        convert(source, tmp_path / "none.safetensors", "--prefix", "encoder."),
        tmp_path / "none.safetensors", "--prefix 'encoder.'", "valid: backbone.",
    )  # fmt: skip


def test_names_with_and_without_a_prefix_are_refused(tmp_path, state, target):
    mixed = {(f"module.{n}" if "block1" in n else n): t for n, t in state.items()}
    source = save(tmp_path / "in.pth", {"model": mixed})
    assert_refused(
        convert(source, target), target, "several prefixes", "'module.'", "none (157, such as patch"
    )
    two = {f"{p}{n}": t for p in ("model.", "ema_model.") for n, t in state.items()}
    source = save(tmp_path / "in.pth", {"state_dict": two})
    assert_refused(convert(source, target), target, "'model.'", "'ema_model.'", "--prefix model.")
    assert_imported(convert(source, target, "--prefix", "ema_model."), target, state)


def test_names_that_would_collide_are_refused(tmp_path, state, target):
    name = "block1.0.norm1.weight"
    duplicated = {**state, "block1.0._orig_mod.norm1.weight": state[name]}
    source = save(tmp_path / "in.pth", {"model": duplicated})
    assert_refused(
        convert(source, target), target, name, "block1.0._orig_mod.norm1.weight", "are one name"
    )


def test_weights_of_this_project_saved_by_torch_are_imported(tmp_path, state, target):
    assert convert(save(tmp_path / "in.pth", {"model": state}), target).returncode == 0
    source = save(tmp_path / "ours.pth", weights.read(target))
    assert_imported(convert(source, target), target, state, "this project's own already")


def test_weights_of_another_network_are_refused(tmp_path, target):
    source = save(tmp_path / "in.pth", {"layer1.0.conv1.weight": torch.ones(1)})
    assert_refused(
        convert(source, target), target, "extra layer1.0.conv1.weight", "missing patch_embed1"
    )
    result = smt("checkpoint", source)
    assert result.returncode == 0 and "not of an SMT by its names: layer1.0.conv1" in result.stdout
