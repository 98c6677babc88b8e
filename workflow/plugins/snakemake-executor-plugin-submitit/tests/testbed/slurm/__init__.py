"""A real SLURM on this host: two nodes with fake GPUs, for tests and experiments."""

from .cluster import Cluster
from .configuration import ACCOUNT, Settings
from .errors import ClusterError
from .folder import NODES
from .programs import missing_packages, missing_programs

__all__ = [
    "ACCOUNT",
    "NODES",
    "Cluster",
    "ClusterError",
    "Settings",
    "missing_packages",
    "missing_programs",
]
