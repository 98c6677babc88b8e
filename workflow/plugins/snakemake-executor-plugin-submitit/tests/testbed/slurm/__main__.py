"""`python -m testbed.slurm`: start, use and stop a SLURM on this machine."""

import argparse
import os
import sys
from pathlib import Path

from testbed.hosts import HostsError, missing_requirement

from .cluster import Cluster
from .configuration import Settings
from .errors import ClusterError
from .folder import NODES
from .hosts_cluster import LOGIN, HostsCluster
from .programs import missing_packages

_NODES = """\
cluster: nodes n1 and n2 are idle: 8 CPUs, 8000 MB and 4 GPUs each, all simulated
cluster: partitions: gpu (the default), cancel, grace, and high, which preempts them"""

_ON_ONE_HOST = """\
cluster: all on this host, and not on several: {reason}
cluster: for this shell:   export SLURM_CONF={cluster.slurm_conf}"""

_ON_HOSTS = """\
cluster: three hosts with a network of their own: login, n1 and n2; what they share is {shared}
cluster: a shell there:    python -m testbed.slurm --folder {folder} shell  [--host n1]"""

_THEN = """\
cluster: then as always:   sinfo; srun --gpus=1 env; sbatch ...; squeue; sacct
cluster: to end it:        python -m testbed.slurm --folder {folder} stop"""


def main() -> int:
    """Do what the arguments say; return the exit code: 0 done, 1 not running, 2 failed."""
    arguments = _parser().parse_args()
    settings = Settings(
        accounting=arguments.accounting, signal_on_preemption=arguments.signal_on_preemption
    )
    if arguments.action == "missing":
        print(" ".join(missing_packages(settings.accounting)))
        return 0
    try:
        return _do(arguments, settings)
    except (ClusterError, HostsError) as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130


def _do(arguments: argparse.Namespace, settings: Settings) -> int:
    action, folder = arguments.action, arguments.folder
    if action == "start":
        _start(arguments, settings)
        return 0
    cluster = _existing(folder, settings)
    if not cluster.folder.marker.exists():
        print(f"cluster: no cluster in {cluster.folder.path}", file=sys.stderr)
        return 0 if action == "stop" else 1
    if action == "stop":
        cluster.stop()
        print(f"cluster: stopped; its logs are in {cluster.folder.path}/log/")
    elif action == "shell":
        _become_shell(cluster, arguments.host)
    elif action == "env":
        print(f"export SLURM_CONF={cluster.slurm_conf}")
    else:
        return _print_status(cluster)
    return 0


def _start(arguments: argparse.Namespace, settings: Settings) -> None:
    """Start a cluster of several hosts where this machine allows it, and say how to use it."""
    folder = arguments.folder
    reason = "--one-host" if arguments.one_host else missing_requirement()
    _existing(folder, settings).stop()
    if reason:
        cluster = Cluster(folder, settings)
        cluster.start()
        print(_NODES, _ON_ONE_HOST.format(reason=reason, cluster=cluster), sep="\n")
    else:
        own = [Path.cwd(), Path(sys.prefix), Path(sys.base_prefix)]
        shared = [path.resolve() for path in (*own, *arguments.share)]
        HostsCluster(folder, settings, shared=shared).start()
        names = ", ".join(dict.fromkeys(map(str, shared)))
        print(_NODES, _ON_HOSTS.format(shared=names, folder=folder), sep="\n")
    print(_THEN.format(folder=folder))


def _existing(folder: Path, settings: Settings) -> Cluster:
    """Return the cluster that was started in a folder, on several hosts or on this one."""
    cluster = HostsCluster(folder, settings)
    return cluster if cluster.room.folder.exists() else Cluster(folder, settings)


def _become_shell(cluster: Cluster, host: str) -> None:
    """Replace this process by a shell on a host, in this folder.

    Raises:
        ClusterError: the cluster is all on this host.
    """
    if not isinstance(cluster, HostsCluster):
        raise ClusterError(f"it is all on this host: export SLURM_CONF={cluster.slurm_conf}")
    command = cluster.command(os.environ.get("SHELL", "/bin/sh"), host=host, folder=Path.cwd())
    os.execvpe(command[0], command, cluster.environment())


def _print_status(cluster: Cluster) -> int:
    running, states = cluster.pids(), cluster.node_states()
    for name, pid in running.items():
        print(f"{name:<10} process {pid:<8} {states.get(name, '')}".rstrip())
    if not cluster.is_running():
        print(f"cluster: {'only these run' if running else 'not running'}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testbed.slurm", description=__doc__)
    parser.add_argument(
        "action",
        choices=("start", "stop", "status", "env", "shell", "missing"),
        help="env: print the shell's variables; shell: open a shell on a host; missing: print the "
        "Debian packages to install",
    )
    parser.add_argument("--folder", type=Path, default=Path(".cluster"), help="[.cluster]")
    parser.add_argument(
        "--one-host",
        action="store_true",
        help="start all of it on this host, also where several hosts are possible",
    )
    parser.add_argument("--host", choices=(LOGIN, *NODES), default=LOGIN, help="of shell [login]")
    parser.add_argument(
        "--share",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that all hosts share, beside this one and the environment's",
    )
    parser.add_argument(
        "--no-accounting",
        dest="accounting",
        action="store_false",
        help="start without MariaDB and slurmdbd: no sacct, any account",
    )
    parser.add_argument(
        "--no-preempt-signal",
        dest="signal_on_preemption",
        action="store_false",
        help="start without SlurmctldParameters=preempt_send_user_signal",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
