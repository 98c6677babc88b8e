"""The device of a process, and the error if it cannot be used; torch's GPUs are fakes here."""

import pytest
import torch

from smt.engine import device, distributed
from smt.errors import UserError
from tests.helpers.params import project_at

RECIPE = project_at("paper").recipes["imagenet1k"]
LOCK = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """No GPU and none granted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "DRIVER", device.DRIVER / "nowhere")
    for name in device._GPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
        ({"SLURM_STEP_GPUS": "2,3"}, "SLURM_STEP_GPUS=2,3"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE=4"),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2c"}, "CUDA_VISIBLE_DEVICES=GPU-8f2c"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
    ],
)
def test_granted_gpus_are_read_from_the_environment(environment, expected):
    assert device.granted_gpus(environment) == expected


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 0), LOCK, False),  # V100
        ((7, 5), LOCK, True),  # T4
        ((8, 0), LOCK, True),  # A100
        ((8, 9), LOCK, True),  # L40S: sm_86
        ((9, 0), LOCK, True),  # H100
        ((9, 0), ("sm_80", "sm_90a"), True),
        ((10, 0), ("sm_80", "sm_90"), False),
        ((10, 0), ("sm_80", "compute_80"), True),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((8, 0), (), False),
    ],
)
def test_an_architecture_runs_on_gpus_of_its_major_version_and_no_older(
    capability, built_for, expected
):
    assert device.supports(capability, built_for) is expected


def test_without_gpus_a_training_takes_the_cpu(monkeypatch):
    assert device.choose(3, half_precision=True) == torch.device("cpu")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")  # of a test cluster, for a recipe in float32
    assert device.choose(3, half_precision=False) == torch.device("cpu")


@pytest.mark.parametrize("reason", ["half precision", "a driver"])
def test_granted_gpus_that_cannot_be_used_are_an_error(monkeypatch, tmp_path, reason):
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    if reason == "a driver":
        version = tmp_path / "version"
        version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue\n")
        monkeypatch.setattr(device, "DRIVER", version)
    with pytest.raises(UserError) as error:
        device.choose(0, half_precision=reason == "half precision")
    message = str(error.value)
    assert "\n" not in message and "SLURM_JOB_GPUS=0,1" in message
    assert f"torch {torch.__version__}" in message and "nvidia-smi" in message
    expected = "driver 470.57.02" if reason == "a driver" else "this node has no NVIDIA driver"
    assert expected in message


def fake_gpu(monkeypatch, name, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: name)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(LOCK))


def test_a_gpu_that_torch_was_not_built_for_is_an_error(monkeypatch):
    fake_gpu(monkeypatch, "Tesla V100-SXM2-32GB", (7, 0))
    with pytest.raises(UserError, match=r"V100.*capability 7\.0.*built for sm_75, sm_80"):
        device.choose(0, half_precision=True)


def test_each_process_uses_the_gpu_of_its_local_rank(monkeypatch):
    fake_gpu(monkeypatch, "NVIDIA A100", (8, 0))
    assert [device.choose(rank, half_precision=True).index for rank in (0, 1, 2)] == [0, 1, 0]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_recipe_may_turn_determinism_off(deterministic):
    torch.use_deterministic_algorithms(False)
    distributed.start(2, RECIPE.model_copy(update={"deterministic": deterministic}))
    assert torch.are_deterministic_algorithms_enabled() is deterministic


@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("tf32", True)])
def test_tf32_is_used_only_if_the_recipe_has_it(precision, expected):
    distributed.start(1, RECIPE.model_copy(update={"precision": precision}))
    assert torch.backends.cudnn.allow_tf32 is expected
    assert torch.backends.cuda.matmul.allow_tf32 is expected
