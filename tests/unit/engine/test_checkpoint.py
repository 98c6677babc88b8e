"""Checkpoints: complete or absent, checked by digest, and never executed as code."""

import errno
import os

import pytest
import torch

from smt.engine import checkpoint
from smt.engine.checkpoint import Checkpoint
from smt.engine.training_state import HostCopy
from smt.errors import TrainingError
from smt.runs.checkpoint_files import checkpoints_in


def make_checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model.w": torch.arange(6.0).reshape(2, 3) * step,
        "optimizer.0.step": torch.ones(()),
    }
    return Checkpoint(step, step // 5, tensors, {"loss_sum": 0.1 * step})


def test_a_checkpoint_round_trip_is_bit_identical(tmp_path):
    original = make_checkpoint(7)
    checkpoint.write(tmp_path, original)
    loaded = checkpoint.load_newest(tmp_path)
    assert (loaded.step, dict(loaded.facts)) == (7, {"loss_sum": 0.1 * 7})
    assert loaded.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(loaded.tensors[key], value) for key, value in original.tensors.items())


def test_channels_last_tensors_keep_their_values(tmp_path):
    value = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    copy = HostCopy()({"model.w": value})
    checkpoint.write(tmp_path, Checkpoint(1, 0, copy, {}))
    assert torch.equal(checkpoint.load_newest(tmp_path).tensors["model.w"], value)


def test_a_host_copy_reuses_the_memory_of_the_previous_one():
    copy, value = HostCopy(), torch.zeros(1000)
    first = copy({"w": value})["w"]
    value += 1
    second = copy({"w": value})["w"]
    assert second.data_ptr() == first.data_ptr() and bool((second == 1).all())
    assert copy({"w": torch.zeros(5)})["w"].shape == (5,)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoint.write(tmp_path, make_checkpoint(step))
    assert [int(path.name.split("-")[1]) for path in checkpoints_in(tmp_path)] == [10, 3]


def test_at_the_same_step_the_checkpoint_of_more_finished_epochs_is_newer(tmp_path):
    for epochs in (1, 2):
        checkpoint.write(tmp_path, Checkpoint(10, epochs, {"model.w": torch.zeros(3)}, {}))
    assert checkpoint.load_newest(tmp_path).epochs == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, damage, caplog):
    checkpoint.write(tmp_path, make_checkpoint(1))
    newest = checkpoint.write(tmp_path, make_checkpoint(2))
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    newest.write_bytes({"truncate": content[:-1], "flip": content, "empty": b""}[damage])
    assert checkpoint.load_newest(tmp_path).step == 1
    assert newest.name in caplog.text


def test_a_checkpoint_that_is_refused_falls_back_to_the_previous_one(tmp_path, caplog):
    for step in (1, 2):
        checkpoint.write(tmp_path, make_checkpoint(step))
    found = checkpoint.load_newest(
        tmp_path, lambda facts: "is of another journal" if facts["step"] == 2 else None
    )
    assert found.step == 1 and "is of another journal; trying the one before" in caplog.text
    with pytest.raises(TrainingError, match="all 2 checkpoints"):
        checkpoint.load_newest(tmp_path, lambda facts: "is of another journal")


def test_without_permission_a_checkpoint_gets_no_name_and_older_ones_stay(tmp_path):
    """The permission is asked for last: a host may have been cut off while it wrote."""
    for step in (1, 2):
        checkpoint.write(tmp_path, make_checkpoint(step))
    before = sorted(tmp_path.iterdir())

    def refuse():
        (draft,) = tmp_path.glob(".step-*.tmp")
        assert checkpoint.facts_of(draft)["step"] == 3  # it is whole by now
        raise PermissionError

    with pytest.raises(PermissionError):
        checkpoint.write(tmp_path, make_checkpoint(3), permit=refuse)
    assert sorted(tmp_path.iterdir()) == before


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none") is None


def test_a_pickle_under_a_checkpoint_name_is_not_loaded(tmp_path, caplog):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    trap = tmp_path / "trap"
    torch.save({"model": Trap()}, trap)
    digest = checkpoint.sha256(trap)
    trap.rename(tmp_path / f"step-0000000009-epoch-00001-{digest}.safetensors")
    with pytest.raises(TrainingError, match="all 1 checkpoints are damaged"):
        checkpoint.load_newest(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "cannot be read" in caplog.text


def test_a_full_disk_leaves_the_older_checkpoint_and_no_temporary_file(tmp_path, small_disk):
    small = Checkpoint(1, 0, {"model.w": torch.zeros(1000)}, {})
    large = Checkpoint(2, 0, {"model.w": torch.zeros(3_000_000)}, {})
    checkpoint.write(small_disk, small)
    with pytest.raises(OSError) as error:
        checkpoint.write(small_disk, large)
    assert error.value.errno == errno.ENOSPC
    assert checkpoint.load_newest(small_disk).step == 1
    assert [path.name for path in small_disk.iterdir()] == [checkpoints_in(small_disk)[0].name]
