"""Checkpoints whose values cannot be weights are refused, with the names of the tensors."""

import pytest
import torch

from smt.models import weights
from smt.models.imports import values
from tests.helpers.conversions import convert, refused, save, taken
from tests.helpers.in_process import smt

COUNTER = "block1.0.attn.bn.num_batches_tracked"


@pytest.mark.parametrize("value, kind", [("nan", "NaN"), ("inf", "infinite"), ("-inf", "infinite")])
def test_weights_that_are_not_finite_are_refused_with_their_names(
    tmp_path, state, target, value, kind
):
    floats = {
        n: torch.full_like(t, float(value)) for n, t in state.items() if t.is_floating_point()
    }
    source = save(tmp_path / "in.pth", {"model": {**state, **floats}})
    first = next(iter(floats))
    refused(
        convert(source, target), target, str(source),
        f"{len(floats)} of {len(state)} tensors are not finite",
        f"{first} ({floats[first].numel():,} {kind} of {floats[first].numel():,})",
        f"and {len(floats) - 4} more",
    )  # fmt: skip


def test_one_value_of_one_tensor_is_enough(tmp_path, state, target):
    broken = {**state, "norm2.bias": state["norm2.bias"].clone()}
    broken["norm2.bias"][3] = float("nan")
    broken["norm2.bias"][1] = float("inf")
    source = save(tmp_path / "in.pth", {"model": broken})
    size = broken["norm2.bias"].numel()
    refused(
        convert(source, target), target, f"1 of {len(state)} tensors",
        f"norm2.bias (1 NaN and 1 infinite of {size})",
    )  # fmt: skip
    done = smt("checkpoint", source)
    assert done.returncode == 3 and "DAMAGED" in done.stdout and "norm2.bias" in done.stdout


def test_weights_of_ours_that_are_not_finite_do_not_go_out_either(tmp_path, state, target):
    assert convert(save(tmp_path / "in.pth", {"model": state}), target).returncode == 0
    ours = weights.read(target)
    name = next(n for n, t in ours.items() if t.is_floating_point())
    ours[name] = torch.full_like(ours[name], float("nan"))
    broken = tmp_path / "broken.safetensors"
    weights.save(ours, broken, {})
    back = tmp_path / "back.pth"
    refused(convert(broken, back, "--to", "released"), back, f"{name} (")
    assert smt("checkpoint", broken).returncode == 3
    folder = smt("checkpoint", tmp_path)
    assert folder.returncode == 3 and "2 files, 1 damaged" in folder.stdout


def test_whole_numbers_empty_tensors_and_8_bit_numbers_are_no_reason_to_fail():
    state = {
        "counter": torch.tensor(2**62), "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4), "half": torch.ones(2, dtype=torch.bfloat16),
        "eight": torch.ones(2).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, device="meta"),
    }  # fmt: skip
    assert values.not_finite(state) is None
    state["eight"] = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    assert values.not_finite(state) == "1 of 7 tensors are not finite: eight (1 NaN of 2)"


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("norm1.weight", torch.ones(8, dtype=torch.int8), "norm1.weight is int8, not float32"),
        (COUNTER, torch.tensor(3.0), f"{COUNTER} is float32, not int64"),
        ("norm1.weight", torch.ones(8).to_sparse(), "norm1.weight (sparse)"),
        ("norm1.weight", torch.empty(8, device="meta"), "norm1.weight (without values"),
        ("norm1.weight", torch.empty(0), "norm1.weight is 0, not 8"),
        ("head.weight", torch.tensor(1.0), "extra head.weight"),
        ("head.weight", torch.empty(0, 64), "extra head.weight"),
    ],
)
def test_tensors_that_cannot_be_weights_are_named(tmp_path, state, target, name, tensor, words):
    source = save(tmp_path / "in.pth", {"model": {**state, name: tensor}})
    refused(convert(source, target), target, words)


def test_two_names_of_one_tensor_are_no_obstacle(tmp_path, state, target):
    state = {**state, "norm1.bias": state["norm1.weight"]}
    source = save(tmp_path / "in.pth", {"model": state})
    taken(convert(source, target), target, state)


def test_smt_checkpoint_says_which_of_several_states_is_broken(tmp_path, state):
    broken = {n: torch.full_like(t, float("inf")) for n, t in state.items() if n == "norm1.bias"}
    for keys in (("model", "model_ema"), ("student", "teacher_b", "other")):
        states = dict.fromkeys(keys[:-1], state) | {keys[-1]: {**state, **broken}}
        done = smt("checkpoint", save(tmp_path / "in.pth", states))
        assert done.returncode == 3
        (line,) = (each for each in done.stdout.splitlines() if "DAMAGED" in each)
        assert f"{keys[-1]}: 1 of {len(state)} tensors are not finite: norm1.bias" in line
