"""Several hosts on one machine, in Linux namespaces: for what one host cannot show."""

from .debian import cached_root
from .errors import HostsError
from .host import Host
from .requirements import missing_requirement
from .room import Room

__all__ = ["Host", "HostsError", "Room", "cached_root", "missing_requirement"]
