"""What goes wrong with a cluster, in one line."""


class ClusterError(Exception):
    """The cluster cannot start or do what was asked; the message has one line and a remedy."""
