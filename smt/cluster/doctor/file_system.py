"""What the shared folder's file system does between two hosts, and what that means for runs."""

from smt.cluster.doctor.check_result import CheckResult, CheckResults, error, ok, warning
from smt.cluster.doctor.file_agent import GRANTED, KINDS_OF_LOCK, REFUSED
from smt.cluster.doctor.request import PROFILE
from smt.cluster.doctor.two_hosts import Measurements

_SLOW_FSYNC = 0.1
"""Seconds; a disk takes 0.01."""
_CLOCK_TOLERANCE = 1.0
"""Seconds."""

_LOCKS_REMEDY = (
    "give a results folder on a file system with locks between hosts (SMT_RESULTS): NFS without "
    "nolock and local_lock, Lustre with flock, GlusterFS, MooseFS; sshfs has none"
)

_VISIBILITY = {
    "stat": (
        "stat",
        "sees a new file of {first}, which it had looked for,",
        "mount it with lookupcache=positive (NFS), or set latency-wait above the mount's acdirmax "
        f"(60 s by default) in {PROFILE}",
    ),
    "listing": (
        "listing",
        "lists a new file of {first}",
        "mount it with a shorter cache of folders: acdirmax=1 (NFS), dcache_timeout=1 (sshfs)",
    ),
    "replaced": (
        "replace",
        "reads the new content of a file that {first} replaced",
        "mount it with close-to-open consistency: without nocto (NFS)",
    ),
    "appended": (
        "append",
        "reads what {first} appends to an open file",
        "nothing to do: curves in smt status and MLflow are late by as much",
    ),
}
"""Change -> subject, what the second host does, and the remedy where it does so late."""


def checks(measurements: Measurements, why_these: str = "") -> CheckResults:
    """A line for each property that was measured; an error where a run could be damaged.

    `why_these` is a phrase on the choice of hosts.
    """
    if measurements.hosts is not None:
        same = (
            "they are one machine, which may hide late changes" if measurements.same_kernel else ""
        )
        remarks = "; ".join(filter(None, (why_these, same)))
        text = f"{' and '.join(measurements.hosts)} compared what they see of each other's files"
        yield ok("hosts", f"{text} ({remarks})" if remarks else text)
        yield from _measured(measurements, *measurements.hosts)
    if measurements.problem:
        yield error(
            "hosts",
            measurements.problem,
            "see that every node sees and can write the results folder (SMT_RESULTS; space, quota, "
            "permissions), and starts Python from this environment",
        )


def _measured(measurements: Measurements, first: str, second: str) -> CheckResults:
    if measurements.locks:
        yield _locks(measurements, first, second)
    for change in _VISIBILITY:
        if change in measurements.visible_seconds:
            yield _visibility(change, measurements, first, second)
    if measurements.appended_lines is not None:
        yield _append_by_both(*measurements.appended_lines)
    if measurements.fsync_seconds is not None:
        yield _fsync(measurements.fsync_seconds)
    if measurements.clock_difference is not None:
        yield _clocks(measurements.clock_difference, first, second)


def _locks(measurements: Measurements, first: str, second: str) -> CheckResult:
    both = [kind for kind, got in measurements.locks.items() if got == GRANTED]
    if both:
        return error(
            "locks",
            f"{first} and {second} got the same lock at once ({', '.join(both)}): two trainings "
            "could write to one run",
            _LOCKS_REMEDY,
        )
    failed = [f"{kind}: {got}" for kind, got in measurements.locks.items() if got != REFUSED]
    if failed:
        return error("locks", f"there are none ({', '.join(failed)})", _LOCKS_REMEDY)
    late = [kind for kind, seconds in measurements.release_seconds.items() if seconds is None]
    if late:
        return warning(
            "locks",
            f"{second} does not get a lock {measurements.patience:g} s after {first} released it "
            f"({', '.join(late)})",
            "ask who runs the file server to see to its lock service (NFSv3: rpc.statd, lockd)",
        )
    return ok("locks", f"{first} and {second} exclude each other ({', '.join(KINDS_OF_LOCK)})")


def _visibility(change: str, measurements: Measurements, first: str, second: str) -> CheckResult:
    subject, what, remedy = _VISIBILITY[change]
    seconds = measurements.visible_seconds[change]
    text = f"{second} {what.format(first=first)}"
    if seconds is not None:
        return ok(subject, f"{text} after {seconds:.1f} s")
    text = f"{text} only after {measurements.patience:g} s or more"
    # Outdated records and checkpoints would be taken for the present ones.
    return (error if change == "replaced" else warning)(subject, text, remedy)


def _append_by_both(kept: int, written: int) -> CheckResult:
    if kept == written:
        return ok("two writers", f"all {written} lines that both appended to a file are there")
    return warning(
        "two writers",
        f"{written - kept} of {written} lines that both appended to a file are lost",
        "let no two jobs append to one file there, as a log of your own; smt does not",
    )


def _fsync(seconds: float) -> CheckResult:
    text = f"a small file with fsync and rename takes {1000 * seconds:.1f} ms"
    if seconds <= _SLOW_FSYNC:
        return ok("fsync", text)
    return warning(
        "fsync", text, "give a results folder on a faster file system, or save checkpoints rarely"
    )


def _clocks(difference: float, first: str, second: str) -> CheckResult:
    text = (
        f"{second} is {abs(difference):.3f} s {'ahead of' if difference > 0 else 'behind'} {first}"
    )
    if abs(difference) <= _CLOCK_TOLERANCE:
        return ok("clocks", text)
    return warning(
        "clocks",
        f"{text}: times in smt status and MLflow are off by as much",
        "ask who runs the nodes to synchronise them: chrony, systemd-timesyncd",
    )
