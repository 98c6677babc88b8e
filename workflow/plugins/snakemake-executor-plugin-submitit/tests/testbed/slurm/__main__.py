"""`python -m testbed.slurm`: start, use and stop a SLURM on this host."""

import argparse
import sys
from pathlib import Path

from .cluster import Cluster
from .configuration import Settings
from .errors import ClusterError
from .programs import missing_packages

_HOW_TO_USE = """\
cluster: nodes n1 and n2 are idle: 8 CPUs, 8000 MB and 4 GPUs each, all simulated
cluster: partitions: gpu (the default), cancel, grace, and high, which preempts them
cluster: for this shell:   export SLURM_CONF={cluster.slurm_conf}
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
        return _do(arguments.action, arguments.folder, settings)
    except ClusterError as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130


def _do(action: str, folder: Path, settings: Settings) -> int:
    cluster = Cluster(folder, settings)
    if action == "start":
        cluster.start()
        print(_HOW_TO_USE.format(cluster=cluster, folder=folder))
        return 0
    if not cluster.folder.marker.exists():
        print(f"cluster: no cluster in {cluster.folder.path}", file=sys.stderr)
        return 0 if action == "stop" else 1
    if action == "stop":
        cluster.stop()
        print(f"cluster: stopped; its logs are in {cluster.folder.path}/log/")
    elif action == "env":
        print(f"export SLURM_CONF={cluster.slurm_conf}")
    else:
        return _print_status(cluster)
    return 0


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
        choices=("start", "stop", "status", "env", "missing"),
        help="env: print the shell's variables; missing: print the Debian packages to install",
    )
    parser.add_argument("--folder", type=Path, default=Path(".cluster"), help="[.cluster]")
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
