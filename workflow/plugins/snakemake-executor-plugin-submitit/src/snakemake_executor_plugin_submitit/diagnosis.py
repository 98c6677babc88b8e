"""Why a job failed or is pending, in one line for the user."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit import shared_folder, slurm
from snakemake_executor_plugin_submitit.attempts import Attempt
from snakemake_executor_plugin_submitit.registry import Record
from snakemake_executor_plugin_submitit.slurm import GONE, Status

LAST_LINES = 3
"""Lines of a log that a message quotes."""

_TAIL_BYTES = 16_384

_OUT_OF_MEMORY_PATTERNS = (
    "Exceeded job memory limit", "oom-kill", "oom_kill", "Out Of Memory", "OOM Killed",
    "out of memory", "Killed by the OOM",
)  # fmt: skip

_EXECUTOR_LINES = (
    "submitit INFO", " submitit: ", "Will exit after finishing currently running jobs",
)  # fmt: skip
"""Parts of lines that submitit, this plugin and Snakemake write, not the rule's command."""

_REMEDIES = {
    "OUT_OF_MEMORY": "raise mem_mb",
    "TIMEOUT": "raise runtime, or make the rule resumable",
    "DEADLINE": "raise runtime, or make the rule resumable",
    "CANCELLED": "start Snakemake again to run it again",
}

_TRANSIENT_REASONS = ("", "Priority", "Resources", "BeginTime", "Cleaning", "Prolog", "Licenses")

_REASON_HINTS = {
    "PartitionTimeLimit": "lower runtime, or choose another slurm_partition",
    "WallDurationPerJob": "lower runtime, or choose another slurm_qos",
    "PartitionNodeLimit": "lower nodes, or choose another slurm_partition",
    "NodePerJob": "lower nodes, or choose another slurm_qos",
    "CpuPerJob": "lower threads or cpus_per_task, or choose another slurm_qos",
    "MemPerJob": "lower mem_mb, or choose another slurm_qos",
    "GRESPerJob": "lower gpus, or choose another slurm_qos",
    "PartitionDown": "choose another slurm_partition, or wait until it is up",
    "PartitionInactive": "choose another slurm_partition, or wait until it is active",
    "AccountNotAllowed": "choose another slurm_account or slurm_partition",
    "InvalidAccount": "choose another slurm_account",
    "QOSNotAllowed": "choose another slurm_qos or slurm_partition",
    "InvalidQOS": "choose another slurm_qos",
    "BadConstraints": "choose another slurm_constraint",
    "Reservation": "choose another slurm_reservation, or wait until it begins",
    "DependencyNeverSatisfied": "leave the dependency out of slurm_extra",
    "ReqNodeNotAvail": "wait until the nodes are back, or request others",
    "Limit": "a limit of its account, partition or QOS is reached",
}
"""Part of a reason -> what the user can do. The first match counts."""


def is_transient_reason(reason: str) -> bool:
    """Return whether a job that is pending for this reason will start by itself."""
    return reason in _TRANSIENT_REASONS


def explain_pending(reason: str, records: Sequence[Record]) -> str:
    """Return one line on the jobs that are pending for a reason: which, and what can be done."""
    ids = [str(record.job_id) for record in records]
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    jobs = records[0].title if len(records) == 1 else f"{len(records)} jobs ({shown})"
    verb = "is" if len(records) == 1 else "are"
    if "eld" in reason:  # JobHeldUser, launch failed requeued held
        return f"{jobs} {verb} held ({reason}); to release: scontrol release {','.join(ids)}"
    hint = next((hint for part, hint in _REASON_HINTS.items() if part in reason), None)
    return f"{jobs} {verb} pending: {reason}" + (f"; {hint}" if hint else "")


def tail(log: Path) -> list[str]:
    """Return the last non-empty lines of a log."""
    try:
        if not shared_folder.exists(log):
            return []
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def final_status(job_id: str, squeue: Status, log: Path) -> Status | None:
    """Return how a job ended, from accounting, the controller, squeue's status, or its log.

    A job that squeue does not list has ended only if another source confirms it: squeue may be
    configured to hide jobs. Returns None if none does.
    """
    status = slurm.sacct_status(job_id)
    if status is None or status.is_active:
        controller = slurm.scontrol_status(job_id)
        if squeue == GONE and (controller is None or controller.is_active):
            return None
        status = controller or squeue
    if status.is_active or status == GONE:
        status = squeue
    if status.state in ("FAILED", "OUT_OF_MEMORY", "GONE") and _is_out_of_memory(log):
        return Status("OUT_OF_MEMORY", status.reason, exit=status.exit)
    return status


def _is_out_of_memory(log: Path) -> bool:
    return any(pattern in line for line in tail(log)[-40:] for pattern in _OUT_OF_MEMORY_PATTERNS)


def result_status(result: dict[str, Any], log: Path) -> Status:
    """Return the status of a job whose step returned a result with a failure."""
    state = "OUT_OF_MEMORY" if _is_out_of_memory(log) else "FAILED"
    return Status(state, exit=exit_code(log) or str(result["exit_code"]))


def explain_failure(
    job_id: str,
    status: Status,
    log: Path,
    message: str | None = None,
    rule_logs: Sequence[str] = (),
) -> str:
    """Return one line: SLURM's state and reason, what to do, the log and its last lines.

    The lines are those of the rule's own log, if it has one that is not empty.
    """
    state = status.state + (f" by {status.cancelled_by}" if status.cancelled_by else "")
    details = [status.reason] if status.reason else []
    if status.exit not in ("", "0:0"):
        details.append(f"exit {status.exit}")
    parts = [f"job {job_id}: {state}" + (f" ({', '.join(details)})" if details else "")]
    message = message or _missing_output(log)
    if message:
        parts.append(message)
    if status.state in _REMEDIES:
        parts.append(_REMEDIES[status.state])
    return "; ".join([*parts, _last_lines(log, rule_logs)])


def _last_lines(log: Path, rule_logs: Sequence[str]) -> str:
    rule_log = [Path(name) for name in rule_logs if tail(Path(name))][-1:]
    lines = tail(rule_log[0]) if rule_log else _command_output(tail(log))
    names = " and ".join(str(path) for path in [log, *rule_log])
    if not lines and not rule_log and not log.exists():
        return f"no log {log}"
    return f"log {names}: " + " | ".join(lines[-LAST_LINES:]) if lines else f"log {names} (empty)"


def _command_output(lines: list[str]) -> list[str]:
    """Return the lines of the command itself in the last attempt, without those around them."""
    starts = [number for number, line in enumerate(lines) if " submitit: attempt " in line]
    attempt = lines[starts[-1] :] if starts else lines
    headers = [number for number, line in enumerate(attempt) if line.startswith("resources: ")]
    body = attempt[headers[-1] + 1 :] if headers else attempt
    if "RuleException:" in body:
        body = body[: body.index("RuleException:")]
    return [line for line in body if not any(part in line for part in _EXECUTOR_LINES)] or lines


def _missing_output(log: Path) -> str | None:
    """Return which outputs a successful command did not make, as Snakemake logged them."""
    _, exception, text = "\n".join(tail(log)).rpartition("MissingOutputException")
    lines = text.partition("--latency-wait:\n")[2].splitlines()
    files = [line.partition(" (missing")[0] for line in lines if " (missing" in line]
    if not exception or not files:
        return None
    return f"its command succeeded, but did not make {', '.join(files)}"


def exit_code(log: Path) -> str | None:
    """Return the exit code of the rule's command, as Snakemake wrote it to the job's log."""
    ends = re.findall(
        r"returned non-zero exit status (\d+)|died with <Signals\.(\w+)", "\n".join(tail(log))
    )
    if not ends:
        return None
    code, name = ends[-1]
    return code or str(128 + signal.Signals[name])


def folder_not_visible(job_id: str, log: Path) -> str:
    """Return the message for a job that ended without writing its log."""
    node = slurm.batch_node(job_id) or "its node"
    return (
        f"job {job_id} ended on {node} and wrote no log in {log.parent}: is this folder visible on "
        f"{node}? Choose a folder that every node sees (submitit-folder), or exclude the node "
        "(slurm_extra: --exclude)"
    )


def has_started(attempts: list[Attempt], job_id: str) -> bool:
    """Return whether the job step of a job has ever run."""
    return any(attempt.job_id == job_id for attempt in attempts)
