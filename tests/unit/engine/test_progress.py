"""System metrics of a training where the GPU's driver does not report them."""

import logging

import pynvml
import pytest
import torch

from smt.engine.distributed import Ranks
from smt.engine.progress import Progress

UTILIZATION, POWER = "system/gpu_utilization_percentage", "system/gpu_power_usage_watts"


def on_gpu():
    return Progress("test", epochs=1, epoch_images=8, ranks=Ranks(0, 1, torch.device("cuda", 0)))


def raising(error):
    def read(device):
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), "Not Supported"),  # a MIG slice
        (pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION), "Insufficient Permissions"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), "Function Not Found"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), "NVML Shared Library Not Found"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), "RM has detected"),
        (ModuleNotFoundError("nvidia-ml-py does not seem to be installed"), "nvidia-ml-py"),
        (RuntimeError("Can't get device UUIDs"), "Can't get device UUIDs"),
        (IndexError("list index out of range"), "list index out of range"),  # UUIDs of MIG slices
    ],
)
def test_a_metric_that_a_fake_nvml_refuses_is_left_out(monkeypatch, caplog, error, message):
    monkeypatch.setattr(torch.cuda, "utilization", raising(error))
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    progress = on_gpu()
    with caplog.at_level(logging.WARNING):
        first, second = progress.system(), progress.system()
    assert UTILIZATION not in first and UTILIZATION not in second
    assert first[POWER] == second[POWER] == 250.0
    (record,) = caplog.records
    assert UTILIZATION in record.message and message in record.message


def test_a_metric_is_recorded_again_once_a_fake_nvml_answers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    monkeypatch.setattr(torch.cuda, "utilization", raising(RuntimeError("Timeout")))
    progress = on_gpu()
    assert UTILIZATION not in progress.system()
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 97)
    assert progress.system()[UTILIZATION] == 97.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_the_nvml_library_gpu_metrics_are_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        values = on_gpu().system()
    assert UTILIZATION not in values and POWER not in values
    assert [UTILIZATION in caplog.text, POWER in caplog.text] == [True, True]
