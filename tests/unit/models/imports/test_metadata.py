"""Training metadata of a released file is kept with its weights and shown by smt checkpoint."""

import json
import sys

import pytest
import torch

from smt.models import weights
from smt.models.imports.metadata import TrainingMetadata
from tests.helpers import released_files
from tests.helpers.conversions import assert_imported, convert, save
from tests.helpers.in_process import smt


def printed_rows(path):
    """Return the key and value of each line of smt checkpoint."""
    result = smt("checkpoint", path)
    assert result.returncode == 0, result.stdout + result.stderr
    first, *lines = result.stdout.splitlines()
    assert first == str(path)
    pairs = [line.strip().partition(" ") for line in lines]
    return [(key, value.strip()) for key, _, value in pairs]


def test_epoch_accuracy_rate_and_configuration_are_kept_and_shown(tmp_path, state, target):
    source = released_files.write(tmp_path / "smt_tiny.pth", state)
    assert "yacs" not in sys.modules
    result = convert(source, target)
    assert "also has of smt_tiny.pth: max_accuracy, epoch, config" in result.stdout
    assert_imported(result, target, state)
    metadata = weights.metadata(target)
    assert metadata["converted_from"] == "smt_tiny.pth" and metadata["state"] == "model"
    assert metadata["source"]["recorded"] == {"epoch": 299, "max_accuracy": 82.19}
    assert metadata["source"]["optimizer"] == {"lr": 2e-6, "steps": 375_290}
    assert metadata["source"]["config"] == json.loads(json.dumps(released_files.configuration()))
    for path in (source, target):
        lines = printed_rows(path)
        assert ("epoch", "299 (counted from 0: 300 done)") in lines
        (accuracy,) = (value for key, value in lines if key == "max_accuracy")
        assert accuracy.startswith("82.19 (")
        assert ("lr", "2e-06 (the last of the optimizer)") in lines
        assert any(key == "config.TRAIN" and "EPOCHS=300" in value for key, value in lines)
        layers = sum(name.endswith("num_batches_tracked") for name in state)
        passes = f"forward passes in training, by num_batches_tracked of {layers} BatchNorm layers"
        assert ("counters", f"375,300 {passes}") in lines
        assert any(
            value.startswith("means  300 epochs of 1,251 steps of batch 1,024")
            for key, value in lines if key == "which"
        )  # fmt: skip
        assert [key for key, _ in lines].count("agrees") == 6
        assert not any(key in ("CONTRADICTS", "DIFFERS") for key, _ in lines)


def test_training_metadata_is_exported_under_its_keys(tmp_path, state, target):
    source, back = released_files.write(tmp_path / "in.pth", state), tmp_path / "back.pth"
    assert convert(source, target).returncode == 0
    assert convert(target, back, "--to", "released").returncode == 0
    exported = torch.load(back, weights_only=True)
    assert exported.keys() == {"model", "epoch", "max_accuracy", "config"}
    assert (exported["epoch"], exported["max_accuracy"]) == (299, 82.19)
    assert exported["config"]["TRAIN"]["EPOCHS"] == 300


def test_weights_with_a_reduced_head_lose_the_accuracy_of_the_full_one(tmp_path, state, target):
    source, back = released_files.write(tmp_path / "in.pth", state), tmp_path / "back.pth"
    (tmp_path / "map.txt").write_text("7\n3\n")
    assert convert(source, target, "--class-map", tmp_path / "map.txt").returncode == 0
    assert ("class_map", "map.txt") in printed_rows(target)
    assert not any(key == "CONTRADICTS" for key, _ in printed_rows(target))
    assert convert(target, back, "--to", "released").returncode == 0
    assert torch.load(back, weights_only=True).keys() == {"model"}


def test_contradictions_of_the_counters_are_shown(tmp_path, state):
    source = released_files.write(tmp_path / "in.pth", state, epoch=149)
    contradictions = [value for key, value in printed_rows(source) if key == "CONTRADICTS"]
    assert contradictions == ["epoch 149 is recorded, counted from 0: 150 epochs done"]


def test_batch_norm_layers_with_other_counters_are_named(tmp_path, state):
    name = "block1.0.attn.bn"
    odd = {**state, f"{name}.num_batches_tracked": torch.tensor(12)}
    lines = printed_rows(released_files.write(tmp_path / "in.pth", odd))
    passes = "forward passes in training, by num_batches_tracked of"
    assert ("DIFFERS", f"12 {passes} {name}") in lines


def test_every_state_of_a_file_is_shown(tmp_path, state):
    source = save(tmp_path / "in.pth", {"student": state, "generator": state, "epoch": 4})
    lines = printed_rows(source)
    assert {"student", "generator", "epoch"} <= {key for key, _ in lines}
    assert any(key == "kind" and "several states" in value for key, value in lines)


def test_weights_without_metadata_show_their_counters(tmp_path, state):
    keys = [key for key, _ in printed_rows(save(tmp_path / "in.pth", state))]
    assert keys == ["kind", "model", "counters", "which"]


def test_values_that_json_or_a_terminal_cannot_show_are_handled(tmp_path, state, target):
    loop = {"EPOCHS": 3}
    loop["self"] = loop
    source = save(
        tmp_path / "in.pth",
        {
            "model": state, "big": 2**80, "nan": float("nan"), "line": "a\x1b[31m\nb",
            "half": "\ud83d", "none": None, "long": "x" * 20_000, "set": {1, 2}, "config": loop,
            "best": torch.tensor(0.5), "optimizer": {"state": 3, "param_groups": "none"},
        },
    )  # fmt: skip
    assert_imported(convert(source, target), target, state)
    for path in (source, target):
        lines = dict(printed_rows(path))
        assert (lines["nan"], lines["line"], lines["half"]) == ("nan", "'a\\x1b[31m\\nb'", "?")
        assert lines["best"] == "0.5"
        assert not {"big", "none", "long", "set"} & lines.keys()


def test_learning_rates_that_differ_are_all_kept():
    optimizer = {"param_groups": [{"lr": 1e-3}, {"lr": 1e-4}, {"lr": torch.tensor(1.0)}]}
    assert TrainingMetadata.of({"optimizer": optimizer}).optimizer == {"lr": [0.0001, 0.001, 1.0]}


@pytest.mark.parametrize("tree", [None, [], {}, {"config": 3, "optimizer": [], "epoch": True}])
def test_a_file_without_metadata(tree):
    facts = TrainingMetadata.of(tree)
    assert facts.epochs_done is None and facts.epochs is None and facts.schedule_steps is None
    assert facts.optimizer_steps is None and facts.setting("TRAIN", "EPOCHS") is None


def test_metadata_round_trip_through_json():
    facts = TrainingMetadata.of({"epoch": 0, "config": {"TRAIN": {"EPOCHS": 5}}})
    assert TrainingMetadata.from_json(facts.to_json()) == facts
    assert (facts.epochs_done, facts.epochs) == (1, 5)
    assert (
        TrainingMetadata.from_json("anything")
        == TrainingMetadata.from_json({"config": 3})
        == TrainingMetadata()
    )
