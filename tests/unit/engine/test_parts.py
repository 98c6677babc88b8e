"""Small parts of the engine: resource warnings, nondeterminism, and the heartbeat."""

import logging
import shutil
import warnings

import pytest
import torch

from smt.engine import resources
from smt.engine.determinism import NondeterminismRecorder
from smt.engine.resources import ResourceMonitor
from smt.runs import heartbeat

CPU = torch.device("cpu")


def test_each_nondeterministic_operation_is_named_once():
    torch.use_deterministic_algorithms(True, warn_only=True)
    operations = []
    with NondeterminismRecorder(operations.append):
        for _ in range(3):
            torch.zeros(5).put_(torch.tensor([1]), torch.tensor([2.0]))
            torch.ones(5).cumsum(0)
    assert operations == [["put_"]]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Flash Attention defaults to a non-deterministic algorithm. To explicitly enable",
         "Flash Attention"),
        ("Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly",
         "Memory Efficient attention"),
        ("cuDNN Attention defaults to a non-deterministic algorithm. ", "cuDNN Attention"),
        ("Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)`"
         "\nor something else, but this operation is not deterministic because it uses CuBLAS and "
         "you have CUDA >= 10.2.", "CuBLAS"),
        ("grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set "
         "'torch.use_deterministic_algorithms(True, warn_only=True)'.",
         "grid_sampler_2d_backward_cuda"),
    ],
)  # fmt: skip
def test_every_form_of_torchs_warning_names_the_operation(message, name):
    operations = []
    with NondeterminismRecorder(operations.append):
        warnings.warn(message, UserWarning, stacklevel=1)
        warnings.warn(message, UserWarning, stacklevel=1)
    assert operations == [[name]]


def test_other_warnings_pass_through():
    operations = []
    with (
        pytest.warns(UserWarning, match="the sky is blue"),
        NondeterminismRecorder(operations.append),
    ):
        warnings.warn("the sky is blue", UserWarning, stacklevel=1)
    assert operations == []


def test_a_nearly_full_disk_is_warned_of_once(small_disk, caplog):
    monitor = ResourceMonitor(small_disk, 1_000_000, CPU)
    monitor.check()
    assert caplog.messages == []
    (small_disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 3_000_000))
    monitor.check()
    monitor.check()
    (message,) = caplog.messages
    assert (
        str(small_disk) in message and "3 MB free, less than 4 checkpoints take (4 MB)" in message
    )


def test_room_for_the_milestones_to_come_is_counted(small_disk, caplog):
    free = shutil.disk_usage(small_disk).free
    ResourceMonitor(small_disk, free // 6, CPU).check(milestones=1)
    assert caplog.messages == []
    ResourceMonitor(small_disk, free // 6, CPU).check(milestones=3)
    assert "less than 7 checkpoints take" in caplog.text


def fake_cgroup(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


VERSION_2 = {
    "own": "0::/job/step\n",
    "job/memory.max": "1000\n", "job/memory.current": "990\n",
    "job/memory.stat": "anon 900\ninactive_file 40\n",
    "job/step/memory.max": "max\n", "job/step/memory.current": "600\n",
}  # fmt: skip
VERSION_1 = {
    "own": "3:cpu:/\n4:memory:/job\n0::/\n",
    "memory/job/memory.limit_in_bytes": "1000\n", "memory/job/memory.usage_in_bytes": "990\n",
    "memory/job/memory.stat": "cache 100\ntotal_inactive_file 40\n",
}  # fmt: skip


@pytest.mark.parametrize("files", [VERSION_1, VERSION_2])
def test_the_memory_limit_of_a_job_is_read_from_fake_cgroups(tmp_path, files):
    folder = fake_cgroup(tmp_path, files)
    assert resources.memory(folder, folder / "own") == (950, 1000)


def test_without_a_cgroup_limit_the_memory_is_that_of_the_machine(tmp_path):
    used, limit = resources.memory(tmp_path, tmp_path / "none")
    assert 0 < used < limit and limit > 2**28


def test_nearly_full_memory_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(resources, "memory", lambda: (95 * 2**20, 100 * 2**20))
    with caplog.at_level(logging.WARNING):
        ResourceMonitor(None, 0, CPU).check()
    assert "95 MB of 100 MB of memory are in use" in caplog.text


def test_the_heartbeat_file_has_the_last_step(tmp_path):
    assert heartbeat.read(tmp_path) is None
    writer = heartbeat.Heartbeat(tmp_path)
    assert heartbeat.read(tmp_path) is None
    for step in (9, 10, 123456):
        writer.write(step)
        assert heartbeat.read(tmp_path).step == step
    assert len((tmp_path / heartbeat.PULSE).read_text().splitlines()) == 1
