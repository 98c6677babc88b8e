"""Which operations of a training are not deterministic on its device: torch says, this listens."""

import re
import warnings
from collections.abc import Callable
from typing import Any

_MESSAGE = re.compile(
    r"(?P<operation>\S.*?) (does not have a deterministic implementation"
    r"|defaults to a non-deterministic algorithm)"  # attention, flash or memory-efficient
    r"|.*not deterministic because it uses (?P<library>CuBLAS)",  # CUBLAS_WORKSPACE_CONFIG
    re.DOTALL,
)
"""The forms in which torch says that an operation has no deterministic form."""


class NotDeterministic:
    """Gathers the names of such operations while it is in force; a context manager.

    `smt.engine.distributed.start` asks torch for deterministic algorithms where there are any, and
    for a warning elsewhere. `found` is called with all names so far whenever there is a new one.
    """

    def __init__(self, found: Callable[[list[str]], None]) -> None:
        self._found = found
        self._names: set[str] = set()
        self._catch = warnings.catch_warnings()

    def __enter__(self) -> "NotDeterministic":
        self._catch.__enter__()
        warnings.filterwarnings("default", _MESSAGE.pattern)
        self._show = warnings.showwarning
        warnings.showwarning = self._listen
        return self

    def __exit__(self, *exception: object) -> None:
        self._catch.__exit__(None, None, None)

    def _listen(self, message: Warning | str, *rest: Any, **more: Any) -> None:
        match = _MESSAGE.match(str(message))
        if match is None:
            self._show(message, *rest, **more)
            return
        name = match["operation"] or match["library"]
        if name not in self._names:
            self._names.add(name)
            self._found(sorted(self._names))
