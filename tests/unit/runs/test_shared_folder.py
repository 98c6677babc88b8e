"""What decides by a file's absence, where the file system remembers what was absent."""

import json

import pytest

from smt.runs import heartbeat, journal, record, shared_folder, workdir
from smt.runs.checkpoint_files import FOLDER, checkpoints
from testbed.lookup_cache import FakeLookupCache, write_on_another_host

CHECKPOINT = f"step-{7:010d}-epoch-{0:05d}-{'0' * 64}.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    FakeLookupCache(tmp_path).install(monkeypatch)
    return tmp_path / "runs" / "work"


def test_a_file_in_a_folder_that_a_fake_lookup_cache_hides_exists(folder):
    assert not shared_folder.exists(folder / "file")
    write_on_another_host(folder / "file", "text")
    assert shared_folder.exists(folder / "file")
    assert shared_folder.read_bytes(folder / "file") == b"text"


def test_a_training_that_a_fake_lookup_cache_hides_is_seen_by_status(folder):
    assert workdir.read(folder).checkpoint_step is None and heartbeat.read(folder) is None
    assert list(journal.lines(folder)) == [] and record.read_failure(folder) is None
    write_on_another_host(folder / FOLDER / CHECKPOINT)
    write_on_another_host(folder / heartbeat.PULSE, "000000000007 0000000001.000000\n")
    line = {"step": 7, "epoch": 0, "metrics": {"loss": 1.0}}
    write_on_another_host(folder / journal.JOURNAL, json.dumps(line) + "\n")
    assert workdir.read(folder).checkpoint_step == 7
    assert heartbeat.read(folder).step == 7
    assert [line.step for line in journal.lines(folder)] == [7]


def test_checkpoints_that_a_fake_lookup_cache_hides_are_resumed_from(folder):
    assert checkpoints(folder) == []
    write_on_another_host(folder / FOLDER / CHECKPOINT)
    assert [path.name for path in checkpoints(folder)] == [CHECKPOINT]
