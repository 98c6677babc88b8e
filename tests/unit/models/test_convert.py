"""`smt convert`: released checkpoints are imported and exported completely, or not at all."""

import argparse
import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch

from smt.errors import UserError
from smt.models import released, weights, zoo
from tests.helpers import golden_fill, released_files
from tests.helpers.conversions import assert_refused
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

GOLDEN = Path(__file__).parent / "golden"
TINY = project_at("paper").models["smt_tiny"]


@pytest.fixture(scope="module")
def released_state():
    keys = json.loads((GOLDEN / "smt_t.json").read_text())["keys"]
    state = golden_fill.weights(keys)
    return {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def write(path, state, **entries):
    torch.save({"model": state, **entries}, path)
    return path


def convert(*arguments):
    return smt("convert", *arguments, "--model", "smt_tiny")


def test_a_released_checkpoint_comes_in_and_goes_out_to_the_bit(tmp_path, released_state):
    # As the release writes them: beside optimizer, epoch and configuration.
    source = write(
        tmp_path / "in.pth", released_state, optimizer={"state": {}}, epoch=299,
        args=argparse.Namespace(lr=1e-3),
    )  # fmt: skip
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    result = convert(source, ours)
    assert result.returncode == 0, result.stderr
    assert f"{len(released_state)} tensors" in result.stdout
    assert convert(ours, back, "--to", "released").returncode == 0
    state = torch.load(back, weights_only=True)["model"]
    assert state.keys() == released_state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in released_state.items())

    model = zoo.build(TINY, num_classes=1000)
    weights.load(model, ours)


def test_a_release_with_a_yacs_configuration_is_read(tmp_path, released_state):
    # The release pickles its yacs configuration: a mapping class of a module not installed here.
    source = released_files.write(tmp_path / "in.pth", released_state)
    assert "yacs" not in sys.modules
    assert released.read(source).state.keys() == released_state.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_always_one_line(tmp_path, zipped):
    state = {f"norm{stage}.weight": torch.ones(3) for stage in range(1, 5)}
    whole = tmp_path / "whole.pth"
    torch.save({"model": state}, whole, _use_new_zipfile_serialization=zipped)
    content, path = whole.read_bytes(), tmp_path / "damaged.pth"
    generator = random.Random(0)
    refusals = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(min(len(content), 900))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            released.read(path)  # damage to a tensor's values or name cannot be seen here
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refusals > 50


def test_both_names_of_the_depthwise_convolution_give_the_same(tmp_path, released_state):
    renamed = {name.replace("local_conv.", "dw_conv."): t for name, t in released_state.items()}
    assert renamed.keys() != released_state.keys()
    outputs = []
    for number, state in enumerate((released_state, renamed)):
        target = tmp_path / f"{number}.safetensors"
        result = convert(write(tmp_path / "in.pth", state), target)
        assert result.returncode == 0, result.stderr
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1]


def test_a_class_map_picks_the_rows_of_the_new_head(tmp_path, released_state):
    (tmp_path / "map.txt").write_text("7\n3\n999\n")
    target = tmp_path / "out.safetensors"
    result = convert(
        write(tmp_path / "in.pth", released_state), target, "--class-map", tmp_path / "map.txt"
    )
    assert result.returncode == 0, result.stderr
    head = weights.read(target)["head.weight"]
    assert torch.equal(head, released_state["head.weight"][[7, 3, 999]])
    assert torch.equal(weights.read(target)["head.bias"], released_state["head.bias"][[7, 3, 999]])


def test_a_class_map_out_of_range_is_refused(tmp_path, released_state):
    (tmp_path / "map.txt").write_text("7\n1000\n")
    target = tmp_path / "out.safetensors"
    source = write(tmp_path / "in.pth", released_state)
    result = convert(source, target, "--class-map", tmp_path / "map.txt")
    assert result.returncode == 3 and not target.exists()
    assert "line 2 is '1000'; valid: a class number of 0 to 999" in result.stderr


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, released_state):
    state = dict(released_state)
    del state["block1.0.attn.v.weight"]
    state["block9.stranger"] = torch.zeros(1)
    state["norm1.bias"] = torch.zeros(65)
    target = tmp_path / "out.safetensors"
    assert_refused(
        convert(write(tmp_path / "in.pth", state), target),
        target,
        "missing block1.0.attn.v.weight",
        "extra block9.stranger",
        "norm1.bias is 65, not 64",
    )


def test_a_missing_class_map_is_refused(tmp_path, released_state):
    target, absent = tmp_path / "out.safetensors", tmp_path / "absent.txt"
    source = write(tmp_path / "in.pth", released_state)
    assert_refused(
        convert(source, target, "--class-map", absent), target, str(absent), "a line each"
    )


def test_an_existing_output_survives_an_error(tmp_path, released_state):
    state = dict(released_state)
    state.pop("norm1.bias")
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"kept")
    assert convert(write(tmp_path / "in.pth", state), target).returncode == 2
    assert target.read_bytes() == b"kept"


def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path, released_state):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    target = tmp_path / "out.safetensors"
    source = write(tmp_path / "in.pth", released_state, config=Trap())
    assert_refused(convert(source, target), target, "mkdir", "could run as code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    if content is not None:
        source.write_bytes(content)
    assert_refused(convert(source, target), target, str(source))


def test_weights_are_loaded_completely_or_not_at_all(tmp_path):
    torch.manual_seed(0)
    model = zoo.build(TINY, num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = zoo.build(TINY, num_classes=11).state_dict()
    weights.save(other, tmp_path / "w.safetensors", {})
    with pytest.raises(weights.UserError, match=r"head.weight is 11 x 512, not 10 x 512"):
        weights.load(model, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_weights_give_the_same_bytes(tmp_path):
    state = zoo.build(TINY, num_classes=2).state_dict()
    facts = {f"key{number}": str(number) for number in range(9)}
    digests = {
        weights.save(state, tmp_path / "a", facts),
        weights.save(dict(reversed(state.items())), tmp_path / "b", dict(reversed(facts.items()))),
    }
    assert len(digests) == 1
