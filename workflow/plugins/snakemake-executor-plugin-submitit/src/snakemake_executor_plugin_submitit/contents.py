"""What a job's outputs are made from, as digests: they decide whether an earlier job still fits.

There is a digest for each kind of change that Snakemake distinguishes (`--rerun-triggers`).
"""

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit.internals import snakemake as internals

RULE = "rule"
"""The rule and its wildcards, which are compared under any triggers."""

_BUILTIN = (str, bool, int, float, complex, bytes, bytearray, range, Path, type(None))


def members(job: Any) -> list[Any]:
    """Return the jobs of a group, sorted by identity, or the job itself."""
    return sorted(job.jobs, key=identity) if job.is_group() else [job]


def identity(job: Any) -> str:
    """Return a single job's rule and wildcards as JSON."""
    return json.dumps([job.rule.name, sorted(job.wildcards_dict.items())])


def outputs(job: Any) -> list[str]:
    """Return the outputs of a single job; for a job without outputs, its identity."""
    return [str(output) for output in job.output] or [identity(job)]


def contents(job: Any, workflow: Any) -> dict[str, dict[str, str]]:
    """Return, for each output of a job or group, a digest for each kind of change."""
    digests: dict[str, dict[str, str]] = {}
    for member in members(job):
        digests.update(dict.fromkeys(outputs(member), _digests(member, workflow)))
    return digests


def triggers(workflow: Any) -> frozenset[str]:
    """Return the kinds of change that make a job run again, as the user chose them."""
    return frozenset({RULE, *internals.rerun_triggers(workflow)})


def _digests(job: Any, workflow: Any) -> dict[str, str]:
    parameters = sorted(json.dumps(canonical(value)) for value in internals.params(job))
    return {
        RULE: _digest(identity(job)),
        "code": _digest([internals.code(job, workflow), _script(job)]),
        "params": _digest(parameters),
        "input": _digest([str(name) for name in internals.inputs(job, workflow)]),
        "mtime": _digest(list(_input_states(job, internals.checksum_limit(workflow)))),
        "software-env": _digest(internals.software(job, workflow)),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _script(job: Any) -> str | None:
    """Return a digest of a job's script or notebook, or its address if it is not a local file."""
    source = internals.script(job)
    if source is None:
        return None
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError:
        return source


def _input_states(job: Any, limit: int) -> Iterable[list[Any]]:
    """Yield the state of each local input: a small file's checksum, otherwise size and mtime.

    `limit` is in bytes. Inputs that are `ancient`, or no local files, count by their name only.
    """
    for name in sorted(job.input, key=str):
        if name.is_ancient:
            continue
        path = Path(str(name))
        with contextlib.suppress(OSError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                with contextlib.suppress(OSError):
                    status = (path / ".snakemake_timestamp").stat()
                yield [str(name), status.st_mtime_ns]
            elif stat.S_ISREG(status.st_mode) and status.st_size <= limit:
                yield [str(name), hashlib.sha256(path.read_bytes()).hexdigest()]
            elif stat.S_ISREG(status.st_mode):
                yield [str(name), status.st_size, status.st_mtime_ns]


def canonical(value: Any) -> Any:
    """Return a parameter as JSON that does not depend on the process.

    Objects that have no stable representation are given by their type only.
    """
    if isinstance(value, _BUILTIN):
        return [type(value).__name__, os.fspath(value) if isinstance(value, Path) else repr(value)]
    if isinstance(value, dict):
        items = [[canonical(name), canonical(content)] for name, content in value.items()]
        return ["dict", sorted(items, key=json.dumps)]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(map(canonical, value), key=json.dumps)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(canonical, value)]
    pandas = sys.modules.get("pandas")  # not imported: the value is no object of pandas
    if pandas and isinstance(value, (pandas.DataFrame, pandas.Series, pandas.Index)):
        return ["pandas", pandas.util.hash_pandas_object(value).tolist()]
    return [f"{type(value).__module__}.{type(value).__qualname__}"]
