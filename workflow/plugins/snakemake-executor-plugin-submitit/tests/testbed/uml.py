"""A shared folder on real NFS: a server and two clients, each a Linux kernel in a process (UML).

A namespace has no NFS client of its own, and no cache of what is in a folder: that is the kernel's.
The server's exports are written to the kernel, which otherwise asks the programs of an NFS package:
those would also start a server on this machine. Needs root, and `user-mode-linux` and `kmod`.
"""

import base64
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from testbed.waiting import wait_for

PROGRAMS = {"linux.uml": "user-mode-linux", "modprobe": "kmod"}
"""Program -> Debian package."""

SHARED = "/mnt/shared"
"""The shared folder on each host."""

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_SERVER, _CLIENTS = "10.66.0.1", {"client1": "10.66.0.2", "client2": "10.66.0.3"}

_NETWORK = """
ip link add hosts type bridge forward_delay 0 && ip link set hosts up
for name in server client1 client2; do
  ip tuntap add $name mode tap && ip link set dev $name master hosts up || exit 1
done
echo ready && exec cat
"""
"""Pid 1 of the hosts ends with its input: however the test's process ends, they end."""

_SETUP = f"""
set -e
modprobe -d /run nfsd && mount -t nfsd nfsd /proc/fs/nfsd && mount -t tmpfs tmpfs {SHARED}
chmod 777 {SHARED} && mkdir -p /var/lib/nfs/v4recovery && cd /proc/fs/nfsd
echo -2 -3 > versions && echo 10 > nfsv4leasetime && echo 10 > nfsv4gracetime
"""

_START = f"""
set -e
for host in {" ".join(_CLIENTS.values())}; do
  echo "nfsd $host 2147483647 clients" > /proc/net/rpc/auth.unix.ip/channel
done
echo "clients {SHARED} 2147483647 {0x2402} 65534 65534 0" > /proc/net/rpc/nfsd.export/channel
printf 'clients 1 \\\\x00000000 2147483647 {SHARED}\\n' > /proc/net/rpc/nfsd.fh/channel
echo 4 > /proc/fs/nfsd/threads
"""
"""0x2402: unprivileged ports, no subtree check, fsid=0 (NFSv4's root); root is not squashed."""


SLURM_CONF = "SLURM_CONF=/run/slurm.conf"
"""What commands of SLURM need in their environment."""

_MUNGE = """
set -e
mkdir /run/munge /run/key
echo {key} > /run/key/key
chmod 600 /run/key/key
chown -R munge: /run/munge /run/key
setpriv --reuid munge --regid munge --clear-groups munged --key-file=/run/key/key \\
  --log-file=/run/key/log --seed-file=/run/key/seed --pid-file=/run/key/pid
"""

_SLURM_CONF = f"""
cat > /run/slurm.conf <<EOF
ClusterName=uml
SlurmctldHost=client1({_CLIENTS["client1"]})
SlurmUser=root
StateSaveLocation=/run/slurm
SlurmdSpoolDir=/run/slurm
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/run/slurmctld.log
SlurmdLogFile=/run/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=1,sched_min_interval=0,bf_interval=2
NodeName=client2 NodeAddr={_CLIENTS["client2"]} CPUs=8 RealMemory=8000
PartitionName=all Nodes=ALL Default=YES
EOF
echo CgroupPlugin=cgroup/v1 > /run/cgroup.conf
mkdir -p /run/slurm
{SLURM_CONF}"""


def missing_packages():
    """Return Debian's packages of the programs that are not installed."""
    return [
        package
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=_PATH) is None
    ]


class Host:
    """A running kernel. Its root is this machine's, read-only."""

    def __init__(self, name, address, room, home):
        self.name, self.address = name, address
        command = [
            "nsenter", f"--target={room}", "--net", "--pid",
            "env", "-i", f"PATH={_PATH}", f"HOME={home}", "TMPDIR=/dev/shm",
            "linux.uml", "mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
            f"init={Path(__file__).with_name('uml_init.sh')}", "quiet", "con=null",
            "con0=fd:0,fd:1", "ssl=null", f"eth0=tuntap,{name}", f"NAME={name}",
            f"ADDRESS={address}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def attempt(self, command):
        """Run a command of bash; return its exit code and its output."""
        encoded = base64.b64encode(command.encode()).decode()
        self._process.stdin.write(f'eval "$(base64 -d <<< {encoded})"\n'.encode())
        self._process.stdin.flush()
        boot = []
        for line in self._process.stdout:
            if line.startswith(b"answer "):
                _, code, *output = line.split()
                return int(code), base64.b64decode(b"".join(output)).decode()
            boot.append(line.decode(errors="replace"))
        raise AssertionError(f"{self.name} has ended:\n{''.join(boot[-20:])}")

    def run(self, command):
        """Run a command of bash, which has to succeed; return its output."""
        code, output = self.attempt(command)
        assert code == 0, f"{self.name}: {command}: exit {code}\n{output}"
        return output


class NfsNetwork:
    """A server and two clients that have mounted its folder; a context manager.

    `options` are added to NFS's default options. Everything ends with the block.
    """

    def __init__(self, options=""):
        self._options = f",{options}" if options else ""

    def __enter__(self):
        self._home = tempfile.TemporaryDirectory(prefix="uml-")  # of UML's control sockets
        self._room = subprocess.Popen(
            ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "bash", "-c", _NETWORK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert self._room.stdout.readline() == "ready\n", "no network namespace: is this root?"
            children = Path(f"/proc/{self._room.pid}/task/{self._room.pid}/children").read_text()
            room = children.split()[0]
            self.server = Host("server", _SERVER, room, self._home.name)
            self.clients = [
                Host(name, address, room, self._home.name) for name, address in _CLIENTS.items()
            ]
            self.server.run(_SETUP)
            self.start_server()
            self.server.run("echo Y > /proc/fs/nfsd/v4_end_grace")  # no client can have had locks
            for client in self.clients:
                self._mount(client)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self._room.kill()
        self._room.wait()
        self._home.cleanup()

    def _mount(self, client):
        options = f"vers=4.2,addr={_SERVER},clientaddr={client.address}{self._options}"
        client.run(f"modprobe -d /run nfsv4 && mount -i -t nfs4 -o {options} {_SERVER}:/ {SHARED}")

    def start_slurm(self):
        """Start a SLURM whose controller is the first client, and whose node is the second."""
        controller, node = self.clients
        start = _MUNGE.format(key=secrets.token_hex(64)) + _SLURM_CONF
        controller.run(f"{start} slurmctld")
        node.run(f"{start} slurmd -N {node.name}")
        wait_for(lambda: "idle" in controller.run(f"{SLURM_CONF} sinfo"), every=0.5)

    def stop_server(self):
        """Let the server answer nobody, as when its host is down; files stay."""
        self.server.run("echo 0 > /proc/fs/nfsd/threads")

    def start_server(self):
        """Let it answer again; for 10 s clients only get back what they had open or locked."""
        self.server.run(_START)
