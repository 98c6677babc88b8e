"""Checkpoints whose values cannot be weights are refused, with the tensors' names."""

import pytest
import torch

from smt.models import weights
from smt.models.imports import values
from tests.helpers.conversions import assert_imported, assert_refused, convert, save
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
    assert_refused(
        convert(source, target), target, str(source),
        f"{len(floats)} of {len(state)} tensors are not finite",
        f"{first} ({floats[first].numel():,} {kind} of {floats[first].numel():,})",
        f"and {len(floats) - 4} more",
    )  # fmt: skip


def test_a_single_value_that_is_not_finite_is_refused(tmp_path, state, target):
    damaged = {**state, "norm2.bias": state["norm2.bias"].clone()}
    damaged["norm2.bias"][3] = float("nan")
    damaged["norm2.bias"][1] = float("inf")
    source = save(tmp_path / "in.pth", {"model": damaged})
    size = damaged["norm2.bias"].numel()
    assert_refused(
        convert(source, target), target, f"1 of {len(state)} tensors",
        f"norm2.bias (1 NaN and 1 infinite of {size})",
    )  # fmt: skip
    result = smt("checkpoint", source)
    assert result.returncode == 3 and "DAMAGED" in result.stdout and "norm2.bias" in result.stdout


def test_own_weights_that_are_not_finite_are_not_exported(tmp_path, state, target):
    assert convert(save(tmp_path / "in.pth", {"model": state}), target).returncode == 0
    ours = weights.read(target)
    name = next(n for n, t in ours.items() if t.is_floating_point())
    ours[name] = torch.full_like(ours[name], float("nan"))
    damaged = tmp_path / "broken.safetensors"
    weights.save(ours, damaged, {})
    back = tmp_path / "back.pth"
    assert_refused(convert(damaged, back, "--to", "released"), back, f"{name} (")
    assert smt("checkpoint", damaged).returncode == 3
    folder = smt("checkpoint", tmp_path)
    assert folder.returncode == 3 and "2 files, 1 damaged" in folder.stdout


def test_the_check_takes_tensors_of_every_dtype_and_layout():
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
    "name, tensor, expected",
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
def test_tensors_that_cannot_be_weights_are_named(tmp_path, state, target, name, tensor, expected):
    source = save(tmp_path / "in.pth", {"model": {**state, name: tensor}})
    assert_refused(convert(source, target), target, expected)


def test_shared_tensors_are_imported(tmp_path, state, target):
    state = {**state, "norm1.bias": state["norm1.weight"]}
    source = save(tmp_path / "in.pth", {"model": state})
    assert_imported(convert(source, target), target, state)


def test_smt_checkpoint_says_which_of_several_states_is_broken(tmp_path, state):
    damaged = {n: torch.full_like(t, float("inf")) for n, t in state.items() if n == "norm1.bias"}
    for keys in (("model", "model_ema"), ("student", "teacher_b", "other")):
        states = dict.fromkeys(keys[:-1], state) | {keys[-1]: {**state, **damaged}}
        result = smt("checkpoint", save(tmp_path / "in.pth", states))
        assert result.returncode == 3
        (line,) = (text for text in result.stdout.splitlines() if "DAMAGED" in text)
        assert f"{keys[-1]}: 1 of {len(state)} tensors are not finite: norm1.bias" in line
