"""What a job is made from: by it a job of an earlier start is the one that is wanted now, or not.

Told apart are the kinds of change that Snakemake knows (`--rerun-triggers`), each by a digest.
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
"""The rule and its wildcards, which are compared whatever the triggers are."""

_BUILTIN = (str, bool, int, float, complex, bytes, bytearray, range, Path, type(None))


def members(job: Any) -> list[Any]:
    """Return the jobs of a group in the order of their identities, or the job itself."""
    return sorted(job.jobs, key=identity) if job.is_group() else [job]


def identity(job: Any) -> str:
    """Return what names a single job: its rule and wildcards."""
    return json.dumps([job.rule.name, sorted(job.wildcards_dict.items())])


def made_by(job: Any) -> list[str]:
    """Return what a single job makes; of one that makes no file, its identity."""
    return [str(each) for each in job.output] or [identity(job)]


def contents(job: Any, workflow: Any) -> dict[str, dict[str, str]]:
    """Return, for all that a job or group makes, the digests of what it is made from."""
    found = {}
    for member in members(job):
        digests = _digests(member, workflow)
        found.update(dict.fromkeys(made_by(member), digests))
    return found


def triggers(workflow: Any) -> frozenset[str]:
    """Return the kinds whose change has a job run again, as the user chose them."""
    return frozenset({RULE, *internals.rerun_triggers(workflow)})


def _digests(job: Any, workflow: Any) -> dict[str, str]:
    return {
        RULE: _digest(identity(job)),
        "code": _digest([internals.code(job, workflow), _script(job)]),
        "params": _digest(sorted(json.dumps(canonical(each)) for each in internals.params(job))),
        "input": _digest([str(each) for each in internals.inputs(job, workflow)]),
        "mtime": _digest(list(_states(job, internals.checksum_limit(workflow)))),
        "software-env": _digest(internals.software(job, workflow)),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _script(job: Any) -> str | None:
    """Return a digest of the script or notebook of a job, or where it is if it is elsewhere."""
    source = internals.script(job)
    if source is None:
        return None
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError:
        return source


def _states(job: Any, limit: int) -> Iterable[list[Any]]:
    """Yield the state of each input that is here: a checksum of a small file, else size and time.

    Of an input that is `ancient` only its name counts, and so it is with one that is not a file.
    """
    for each in sorted(job.input, key=str):
        if each.is_ancient:
            continue
        path = Path(str(each))
        with contextlib.suppress(OSError):
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                with contextlib.suppress(OSError):
                    found = (path / ".snakemake_timestamp").stat()
                yield [str(each), found.st_mtime_ns]
            elif stat.S_ISREG(found.st_mode) and found.st_size <= limit:
                yield [str(each), hashlib.sha256(path.read_bytes()).hexdigest()]
            elif stat.S_ISREG(found.st_mode):
                yield [str(each), found.st_size, found.st_mtime_ns]


def canonical(value: Any) -> Any:
    """Return a parameter as JSON that is the same in every process for the same parameter.

    Objects that Snakemake cannot represent either stand there by their type alone.
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
    pandas = sys.modules.get("pandas")  # an object of it is none if it was never imported
    if pandas and isinstance(value, (pandas.DataFrame, pandas.Series, pandas.Index)):
        return ["pandas", pandas.util.hash_pandas_object(value).tolist()]
    return [f"{type(value).__module__}.{type(value).__qualname__}"]
