"""Hosts in namespaces, and the SLURM that runs on them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from testbed.fixtures import require_hosts, require_slurm
from testbed.hosts import HostsError, Room, cgroups, requirements
from testbed.slurm import LOGIN, NODES
from testbed.waiting import wait_for

TESTS = Path(__file__).parents[1]
SERVER = "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); print(c.recv(9))"
"""Python: print what the first client sends; an empty text if it closes the connection."""
CLIENT = "import socket, sys, time; c = socket.create_connection(('{}', 7000)); time.sleep(600)"

pytestmark = pytest.mark.xdist_group("hosts")


def traces(name):
    """Return what there is on this machine of a room: processes, control groups, mounts."""
    found = [
        f"{process.pid} {process.info['cmdline']}"
        for process in psutil.process_iter(["cmdline"])
        if any(str(name) in argument for argument in process.info["cmdline"] or [])
    ]
    group = (name / "control-group").read_text()
    found += [str(it) for it in cgroups.Cgroups.named(group).folders.values() if it.exists()]
    return found + [line for line in Path("/proc/mounts").read_text().splitlines()
                    if str(name) in line]  # fmt: skip


def test_a_host_has_its_own_name_address_processes_and_folders(room):
    a, b = room["a"], room["b"]
    assert a.run("hostname").stdout == "a\n"
    assert "10.66.0.10/24" in a.run("ip", "-brief", "address").stdout
    assert str(os.getpid()) not in a.run("ls", "/proc").stdout.split()
    for folder in ("/tmp", "/run", "/dev/shm", "/etc"):
        a.run("touch", f"{folder}/mine")
        assert not Path(folder, "mine").exists()
        with pytest.raises(HostsError, match=r"b: ls .*mine: exit code 2"):
            b.run("ls", f"{folder}/mine")


def test_names_resolve_as_on_debian(room):
    lookup = "import socket; print(*[socket.gethostbyname(name) for name in 'ab'])"
    assert room["a"].run(sys.executable, "-c", lookup).stdout == "127.0.1.1 10.66.0.11\n"


def test_a_shared_folder_is_the_same_on_all_hosts_and_here(room, tmp_path):
    room["a"].run("touch", str(tmp_path / "file"))
    room["b"].run("ls", str(tmp_path / "file"))
    assert (tmp_path / "file").exists()


def test_a_power_cut_closes_no_connection_and_spares_the_disk(room):
    a, b = room["a"], room["b"]
    a.run("sh", "-c", "echo kept > /root/on-disk; echo lost > /tmp/in-memory")
    with (room.folder / "received").open("wb") as output:
        server = b.start(sys.executable, "-c", SERVER, stdout=output)
        wait_for(lambda: ":7000" in b.run("ss", "-Htnl").stdout)
        client = a.start(sys.executable, "-c", CLIENT.format("b"))
        wait_for(lambda: "ESTAB" in b.run("ss", "-Htn", "sport", "=", "7000").stdout)
        a.power_cut()
        client.wait()
        assert not a.is_on
        a.boot()
        # Its peer has not heard of it.
        assert "ESTAB" in b.run("ss", "-Htn", "sport", "=", "7000").stdout
        assert server.poll() is None
        b.kill(server, signal.SIGKILL)
        server.wait()
    assert a.run("cat", "/root/on-disk").stdout == "kept\n"
    assert a.run("ls", "/tmp/in-memory", check=False).returncode != 0


def test_an_unplugged_host_is_not_reached_until_it_is_plugged_again(room):
    connect = """
import socket
client = socket.socket()
client.settimeout(2)
print(client.connect_ex(("10.66.0.10", 9)))"""

    def answer():
        return int(room["b"].run(sys.executable, "-c", connect).stdout)

    refused = 111
    assert answer() == refused
    room["a"].unplug()
    assert answer() != refused
    room["a"].plug()
    wait_for(lambda: answer() == refused)


def test_stop_leaves_no_process_mount_or_control_group(tmp_path):
    require_hosts()
    room = Room(tmp_path / "room", ("a",), [tmp_path], tied=True)
    room.start()
    # In a session of its own, as what a job leaves behind.
    room["a"].run("sh", "-c", "setsid --fork sleep 600 > /dev/null 2>&1")
    assert traces(room.folder)
    room.stop()
    assert traces(room.folder) == []


def test_a_tied_room_ends_with_its_process_even_after_sigkill(tmp_path):
    require_hosts()
    program = (
        "import sys, time, pathlib; from testbed.hosts import Room\n"
        "folder = pathlib.Path(sys.argv[1]); Room(folder, ('a',), [folder], tied=True).start()\n"
        "print('started', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "tied")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert owner.stdout.readline() == "started\n"
    assert traces(tmp_path / "tied")
    owner.kill()
    owner.wait()
    wait_for(lambda: not traces(tmp_path / "tied"), lambda: str(traces(tmp_path / "tied")))


@pytest.fixture
def untried(monkeypatch):
    """What this machine allows is tried out again, in the test and after it."""
    requirements.missing_requirement.cache_clear()
    monkeypatch.setenv("CI", "true")
    yield monkeypatch
    requirements.missing_requirement.cache_clear()


def test_without_root_tests_of_several_hosts_are_skipped_also_in_ci(untried):
    untried.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="several hosts on one machine need root"):
        require_hosts()


def test_where_root_lacks_a_program_they_fail_in_ci(untried):
    untried.setattr(os, "geteuid", lambda: 0)
    untried.setattr(requirements.shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="apt-get install util-linux"):
        require_hosts()


def test_the_playground_is_several_hosts_with_a_shell_on_each(tmp_path, tmp_path_factory):
    require_slurm()
    require_hosts()
    folder = tmp_path_factory.mktemp("play")  # the path of a socket in it must not be long

    def testbed(*arguments, text=""):
        command = [sys.executable, "-m", "testbed.slurm", "--folder", folder, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "SHELL": "/bin/sh"}
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert "three hosts" in testbed("--no-accounting", "start")
        assert testbed("shell", text="hostname; pwd") == f"{LOGIN}\n{tmp_path}\n"
        assert testbed("shell", "--host", "n1", text="hostname") == "n1\n"
        names = testbed("shell", text="srun --nodes=2 --mem=10 hostname").split()
        assert sorted(names) == list(NODES)
    finally:
        testbed("stop")
    assert traces(folder / "hosts") == []


# --- SLURM ----------------------------------------------------------------------------------------


def test_every_node_is_a_host(hosts_cluster):
    assert hosts_cluster.node_states() == dict.fromkeys(NODES, "idle")
    assert hosts_cluster.run("hostname").stdout == f"{LOGIN}\n"
    names = hosts_cluster.run("srun", "--nodes=2", "--mem=10", "hostname").stdout.split()
    assert sorted(names) == list(NODES)


def test_a_job_that_exceeds_its_memory_is_killed_by_its_control_group(hosts_cluster):
    if not hosts_cluster.room.has_cgroups:
        pytest.skip("this machine has no control groups of version 1")
    command = ("srun", "--mem=50", sys.executable, "-c", "bytearray(500 << 20)")
    process = hosts_cluster.run(*command, check=False)
    assert process.returncode != 0
    assert "Out Of Memory" in process.stderr and "oom-kill" in process.stderr


def test_a_node_whose_power_was_cut_comes_back(hosts_cluster):
    hosts_cluster.node_down("n1")
    assert not hosts_cluster["n1"].is_on
    assert hosts_cluster.node_states()["n1"].startswith("down")
    hosts_cluster.boot("n1")
    assert hosts_cluster.run("srun", "--nodelist=n1", "--mem=10", "hostname").stdout == "n1\n"


def test_slurmctld_is_restarted(hosts_cluster):
    hosts_cluster.controller_down()
    assert hosts_cluster.run("sinfo", check=False).returncode != 0
    hosts_cluster.controller_up()
    wait_for(lambda: hosts_cluster.node_states() == dict.fromkeys(NODES, "idle"))
