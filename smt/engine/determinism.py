"""Which operations of a training are nondeterministic on its device, from torch's warnings."""

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


class NondeterminismRecorder:
    """Collects the names of such operations while it is entered; a context manager.

    `smt.engine.distributed.start` asks torch for deterministic algorithms where there are any, and
    for a warning elsewhere. `on_new_operations` is called with all names whenever one is new.
    """

    def __init__(self, on_new_operations: Callable[[list[str]], None]) -> None:
        self._on_new = on_new_operations
        self._names: set[str] = set()
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> "NondeterminismRecorder":
        self._warnings.__enter__()
        warnings.filterwarnings("default", _MESSAGE.pattern)
        self._show = warnings.showwarning
        warnings.showwarning = self._showwarning
        return self

    def __exit__(self, *exception: object) -> None:
        self._warnings.__exit__(None, None, None)

    def _showwarning(self, message: Warning | str, *rest: Any, **more: Any) -> None:
        match = _MESSAGE.match(str(message))
        if match is None:
            self._show(message, *rest, **more)
            return
        name = match["operation"] or match["library"]
        if name not in self._names:
            self._names.add(name)
            self._on_new(sorted(self._names))
