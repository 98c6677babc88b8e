"""The claim of a training on its run: real locks of real processes, and the token that fences."""

import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from smt.errors import EXIT_RESUME, TrainingError
from smt.runs import claim, lock
from smt.runs.claim import ClaimLost, RunHeld, claimed
from smt.runs.heartbeat import PULSE, Heartbeat
from testbed.waiting import wait_for

HOLD = """
import sys, time
from pathlib import Path
from smt.runs.claim import claimed
from smt.runs.heartbeat import Heartbeat
folder = Path(sys.argv[1])
with claimed(folder):
    heartbeat = Heartbeat(folder)
    print("held", flush=True)
    step = 0
    while True:
        step += 1
        heartbeat.write(step)
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "POLL_INTERVAL", 0.01)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@contextmanager
def training(folder):
    """A process that has claimed the run and takes a step every 10 ms."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_without_waiting_a_run_that_is_held_is_refused(tmp_path):
    with training(tmp_path) as process:
        with pytest.raises(TrainingError) as error, claimed(tmp_path):
            pass
        expected = f"process {process.pid} on {os.uname().nodename} trains this run already"
        assert expected in str(error.value)


def test_who_waits_says_which_host_trains_and_claims_the_run_after_it(tmp_path, caplog):
    def wait():
        with claimed(tmp_path, 300.0) as mine:
            mine.require()

    with training(tmp_path) as process, ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait)
        who = f"process {process.pid} on {os.uname().nodename}"
        wait_for(lambda: f"{who} trains this run, at step" in caplog.text, lambda: caplog.text)
        assert f"{who} holds this run's lock, no heartbeat seen for 0 s; waits" in caplog.text
        assert not waiting.done()
        process.kill()
        waiting.result()
    assert len(caplog.records) == 2, "once when it begins to wait, once when it sees a step"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_holder_without_a_heartbeat_ends_the_wait_as_resumable(tmp_path):
    """As a host that is off or cut off, whose lock stays: NFS 3, MooseFS, a lease."""
    with training(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        before = (tmp_path / PULSE).read_bytes()
        with pytest.raises(RunHeld) as error, claimed(tmp_path, 0.05):
            pass
        assert error.value.exit_code == EXIT_RESUME
        message = str(error.value)
        assert f"process {process.pid} on {os.uname().nodename} holds this run's lock" in message
        assert "no heartbeat seen for" in message and f"rm {tmp_path / 'lock'}" in message
        assert (tmp_path / PULSE).read_bytes() == before


def test_a_holder_that_trains_is_named_when_the_wait_ends(tmp_path):
    beat = Heartbeat(tmp_path)
    beat.write(7)
    watch = claim._HolderWatch(tmp_path)
    watch.look()
    assert "no heartbeat seen" in watch.state(), "one of before the first look says nothing"
    beat.write(8)
    watch.look()
    assert watch.state() == "another process trains this run, at step 8 0 s ago"
    assert "rm " not in watch.remedy()


def test_a_heartbeat_counts_by_its_change_whatever_its_clock(tmp_path):
    (tmp_path / PULSE).write_text("000000000007 9999999999.000000\n")  # a clock far ahead
    watch = claim._HolderWatch(tmp_path)
    watch.look()
    assert "no heartbeat seen" in watch.state()
    (tmp_path / PULSE).write_text("000000000008 0000000001.000000\n")  # one far behind
    watch.look()
    assert "at step 8" in watch.state()


def test_a_killed_holder_leaves_no_lock(tmp_path):
    with training(tmp_path) as process:
        process.kill()
        process.wait()
        with claimed(tmp_path) as mine:
            mine.require()


def test_a_holder_whose_lock_file_is_removed_has_lost_its_claim(tmp_path):
    """The remedy of a lock that stays; and what a lease that expires comes to."""
    with claimed(tmp_path) as mine:
        mine.require()
        (tmp_path / "lock").unlink()
        with training(tmp_path) as process:
            with pytest.raises(ClaimLost) as error:
                mine.require()
            assert error.value.exit_code == EXIT_RESUME
            who = f"process {process.pid} on {os.uname().nodename}"
            assert f"{who} has taken over this run" in str(error.value)
            with pytest.raises(TrainingError, match="trains this run already"), claimed(tmp_path):
                pass


def test_a_claim_without_its_token_is_lost(tmp_path):
    with claimed(tmp_path) as mine:
        (tmp_path / claim.TOKEN).unlink()
        with pytest.raises(ClaimLost):
            mine.require()


def test_a_lock_file_that_is_removed_while_it_is_locked_is_locked_again(tmp_path, monkeypatch):
    """Else two processes could hold a lock: one of the removed file, one of the new."""
    path, original, removed = tmp_path / "lock", lock._try, []

    def remove_once(file):
        if not removed:
            path.unlink()
            removed.append(True)
        return original(file)

    monkeypatch.setattr(lock, "_try", remove_once)
    file = lock.acquire(tmp_path)
    assert file is not None and removed
    with file:
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())
