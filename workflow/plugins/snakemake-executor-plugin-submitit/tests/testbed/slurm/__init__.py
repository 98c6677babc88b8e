"""A real SLURM on this machine: two nodes with fake GPUs, for tests and experiments."""

from .cluster import Cluster
from .configuration import ACCOUNT, Settings
from .errors import ClusterError
from .folder import NODES
from .hosts_cluster import LOGIN, HostsCluster
from .programs import missing_packages, missing_programs

__all__ = [
    "ACCOUNT",
    "LOGIN",
    "NODES",
    "Cluster",
    "ClusterError",
    "HostsCluster",
    "Settings",
    "missing_packages",
    "missing_programs",
]
