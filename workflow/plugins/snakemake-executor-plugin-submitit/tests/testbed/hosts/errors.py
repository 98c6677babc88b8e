"""Errors of hosts."""


class HostsError(Exception):
    """A host cannot be started or used; the message is one line with the cause."""
