"""Errors of a cluster."""


class ClusterError(Exception):
    """A cluster cannot be started or used; the message is one line with the cause."""
