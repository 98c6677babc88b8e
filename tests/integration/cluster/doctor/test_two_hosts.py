"""File agents on real file systems; two mounts of one folder are the clients of two hosts."""

import shutil
import signal
import subprocess
import sys

import pytest

from smt.cluster.doctor import file_system
from smt.cluster.doctor.two_hosts import AgentCommand, agent_command, agents, measure
from tests.helpers import debian, sshfs

LATE = 1.0
"""Seconds after which a change counts as not visible, where a test makes it so for minutes."""


def compare(first, second, **options):
    """Return what an agent in each folder measures."""
    with agents(agent_command(first, "host 1"), agent_command(second, "host 2")) as pair:
        return measure(*pair, **options)


def checks_of(measurements):
    """Return level, text and remedy of each check by its subject."""
    return {
        check.subject: (check.level, check.text, check.remedy)
        for check in file_system.checks(measurements)
    }


def test_processes_of_one_machine_agree_on_everything_and_leave_nothing(tmp_path):
    measurements = compare(tmp_path, tmp_path)
    assert measurements.problem == ""
    assert measurements.same_kernel
    assert measurements.locks == {"lockf": "refused", "flock": "refused"}
    assert None not in measurements.release_seconds.values()
    assert set(measurements.visible_seconds) == {"stat", "listing", "replaced", "appended"}
    assert None not in measurements.visible_seconds.values()
    assert measurements.appended_lines == (200, 200)
    assert measurements.fsync_seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_sshfs_grants_one_lock_to_two_hosts_which_is_an_error(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with (
        sshfs.mounted(shared, tmp_path / "host1", "dcache_timeout=3600") as first,
        sshfs.mounted(shared, tmp_path / "host2", "dcache_timeout=3600") as second,
    ):
        measurements = compare(first, second, patience=LATE)
    checks = checks_of(measurements)
    level, text, remedy = checks["locks"]
    assert level == "error"
    assert "got the same lock at once (lockf, flock)" in text
    assert "sshfs has none" in remedy
    assert checks["listing"][0] == "warning"  # sshfs caches the listing
    assert "lists a new file of" in checks["listing"][1]
    assert checks["listing"][1].endswith("only after 1 s or more")
    assert "dcache_timeout=1 (sshfs)" in checks["listing"][2]
    assert list(shared.iterdir()) == []


def test_a_folder_that_is_not_shared_is_an_error(tmp_path):
    for name in ("host1", "host2"):
        (tmp_path / name).mkdir()
    level, text, _ = checks_of(compare(tmp_path / "host1", tmp_path / "host2"))["hosts"]
    assert level == "error"
    assert f"{tmp_path}/host2/" in text and "No such file or directory" in text


def test_a_full_file_system_is_named(small_disk):
    with (small_disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(small_disk).free))
    measurements = compare(small_disk, small_disk)
    assert "No space left on device" in measurements.problem
    assert checks_of(measurements)["hosts"][0] == "error"


def test_a_file_system_without_inodes_is_named(small_disk):
    remount = ["mount", "-o", "remount,nr_inodes=3", small_disk]
    subprocess.run(remount, check=True)
    measurements = compare(small_disk, small_disk)
    assert "No space left on device" in measurements.problem


def test_a_read_only_file_system_is_named(read_only_folder):
    measurements = compare(read_only_folder, read_only_folder)
    assert str(read_only_folder) in measurements.problem


def test_the_difference_of_clocks_is_measured(tmp_path):
    ahead = [debian.require("faketime"), "-f", "+600s"]
    commands = agent_command(tmp_path, "host 1"), agent_command(tmp_path, "host 2", ahead)
    with agents(*commands) as pair:
        measurements = measure(*pair)
    assert measurements.clock_difference == pytest.approx(600, abs=60)
    assert checks_of(measurements)["clocks"][0] == "warning"


def test_output_of_a_prolog_is_skipped(tmp_path):
    noisy = ["sh", "-c", 'echo "Welcome to n2"; exec "$@"', "sh"]
    commands = agent_command(tmp_path, "host 1"), agent_command(tmp_path, "host 2", noisy)
    with agents(*commands) as pair:
        assert measure(*pair).problem == ""


def test_an_agent_that_cannot_start_is_named_with_its_last_message(tmp_path):
    broken = AgentCommand([sys.executable, "-c", "raise SystemExit('no such module')"], "host 2")
    with agents(agent_command(tmp_path, "host 1"), broken) as pair:
        assert measure(*pair).problem == "host 2: no such module"


def test_an_agent_that_hangs_is_named_and_ended(tmp_path):
    hanging = AgentCommand(["sleep", "3600"], "host 2")
    with agents(agent_command(tmp_path, "host 1"), hanging) as pair:
        measurements = measure(*pair, start_timeout=LATE)
    assert measurements.problem == "host 2 does not answer for 1 s"
    assert pair[1].exit_code == -signal.SIGTERM
