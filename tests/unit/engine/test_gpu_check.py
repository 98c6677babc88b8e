"""The check of a node's GPUs; there is none here, so its training steps run on the CPU."""

import json
import subprocess
import sys

import pytest
import torch

from smt.engine import exchange_check, gpu_check
from smt.models.smt import SMT

CPU = torch.device("cpu")


def test_a_step_runs_in_every_precision():
    assert gpu_check.failing_step(CPU) is None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: no kernel image is available for execution on the device\nCompile with",
         "a step in bf16 fails: CUDA error: no kernel image is available for execution"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", "a step in bf16 fails: CUDA out of"),
    ],
)  # fmt: skip
def test_a_failing_step_is_named_with_its_precision(monkeypatch, message, expected):
    forward = SMT.forward

    def fails_in_bf16(self, images):
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            raise RuntimeError(message)
        return forward(self, images)

    monkeypatch.setattr(SMT, "forward", fails_in_bf16)
    problem = gpu_check.failing_step(CPU)
    assert problem is not None and problem.startswith(expected) and "\n" not in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_a_problem_only_if_one_was_granted(monkeypatch):
    for name in gpu_check.device_module._GPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    result = gpu_check.check()
    assert (result["count"], result["problem"]) == (0, None)
    assert result["shared_memory_bytes"] > 0
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    process = subprocess.run(
        [sys.executable, "-m", "smt.engine.gpu_check"], capture_output=True, text=True, check=True
    )
    assert "SLURM_JOB_GPUS=3" in json.loads(process.stdout)["problem"]


def test_two_processes_of_this_machine_exchange_gradients():
    assert exchange_check.problem() is None


def test_a_failed_gradient_exchange_is_explained_in_one_line(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    problem = exchange_check.problem()
    assert problem is not None and "no-such-interface" in problem and "\n" not in problem
