"""Why a job failed, in one line for whoever started it."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.attempts import Attempt
from snakemake_executor_plugin_submitit.registry import Record
from snakemake_executor_plugin_submitit.slurm import GONE, Status

LAST_LINES = 3
_READ = 16_384

_SIGNS_OF_MEMORY = (
    "Exceeded job memory limit", "oom-kill", "oom_kill", "Out Of Memory", "OOM Killed",
    "out of memory", "Killed by the OOM",
)  # fmt: skip

_NOT_OF_COMMAND = (
    "submitit INFO", " submitit: ", "Will exit after finishing currently running jobs",
)  # fmt: skip

_REMEDIES = {
    "OUT_OF_MEMORY": "raise mem_mb",
    "TIMEOUT": "raise runtime, or make the rule resumable",
    "DEADLINE": "raise runtime, or make the rule resumable",
    "CANCELLED": "start Snakemake again to run it again",
}


_USUAL = ("", "Priority", "Resources", "BeginTime", "Cleaning", "Prolog", "Licenses")
"""Reasons for which any job may wait a while."""

_HINTS = {
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
    "ReqNodeNotAvail": "wait until the nodes are back, or ask for others",
    "Limit": "it waits for a limit of its account, partition or QOS",
}
"""Part of a reason -> what can be done. The first that fits."""


def is_usual(reason: str) -> bool:
    """Return whether a job that waits for this reason is going to start by itself."""
    return reason in _USUAL


def explain_waiting(reason: str, records: Sequence[Record]) -> str:
    """Return one line on the jobs that wait for a reason: which, and what can be done."""
    numbers = [str(each.job_id) for each in records]
    shown = ", ".join(numbers[:5]) + (", ..." if len(numbers) > 5 else "")
    who = records[0].title if len(records) == 1 else f"{len(records)} jobs ({shown})"
    if "eld" in reason:  # JobHeldUser, launch failed requeued held
        is_held = "is held" if len(records) == 1 else "are held"
        return f"{who} {is_held} ({reason}); to let it go on: scontrol release {','.join(numbers)}"
    hint = next((hint for part, hint in _HINTS.items() if part in reason), None)
    waits = "waits" if len(records) == 1 else "wait"
    return f"{who} {waits}: {reason}" + (f"; {hint}" if hint else "")


def tail(log: Path) -> list[str]:
    """Return the last lines of a log that say something."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _READ, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def final_status(job_id: str, seen: Status, log: Path) -> Status | None:
    """Return how a job ended, from whoever knows more: accounting, the controller, its log.

    One that squeue no longer lists has ended only if somebody else says so too, for that may be due
    to how squeue is called. Returns None where nobody does.
    """
    known = slurm.accounted(job_id)
    if known is None or known.is_alive:
        described = slurm.described(job_id)
        if seen == GONE and (described is None or described.is_alive):
            return None
        known = described or seen
    if known.is_alive or known == GONE:
        known = seen
    if known.state in ("FAILED", "OUT_OF_MEMORY", "GONE") and _ran_out_of_memory(log):
        return Status("OUT_OF_MEMORY", known.reason, exit=known.exit)
    return known


def _ran_out_of_memory(log: Path) -> bool:
    return any(sign in line for line in tail(log)[-40:] for sign in _SIGNS_OF_MEMORY)


def of_result(result: dict[str, Any], log: Path) -> Status:
    """Return the status of a job whose command failed and was seen to."""
    state = "OUT_OF_MEMORY" if _ran_out_of_memory(log) else "FAILED"
    return Status(state, exit=exit_code(log) or str(result["exit_code"]))


def explain(
    job_id: str,
    status: Status,
    log: Path,
    message: str | None = None,
    rule_logs: Sequence[str] = (),
) -> str:
    """Return one line: SLURM's state and reason, what is to be done, the log and its end.

    Where the rule has a log of its own that says anything, it is that one's end.
    """
    state = status.state + (f" by {status.by}" if status.by else "")
    details = [status.reason] if status.reason else []
    if status.exit not in ("", "0:0"):
        details.append(f"exit {status.exit}")
    parts = [f"job {job_id}: {state}" + (f" ({', '.join(details)})" if details else "")]
    message = message or _missing_output(log)
    if message:
        parts.append(message)
    if status.state in _REMEDIES:
        parts.append(_REMEDIES[status.state])
    return "; ".join([*parts, _end_of_logs(log, rule_logs)])


def _end_of_logs(log: Path, rule_logs: Sequence[str]) -> str:
    own = [Path(each) for each in rule_logs if tail(Path(each))]
    lines = tail(own[-1]) if own else _of_command(tail(log))
    named = " and ".join(str(each) for each in [log, *own[-1:]])
    if not log.exists() and not own:
        return f"no log {log}"
    return f"log {named}: " + " | ".join(lines[-LAST_LINES:]) if lines else f"log {named} (empty)"


def _of_command(lines: list[str]) -> list[str]:
    """Return what the command itself wrote, without what submitit and Snakemake wrote around it."""
    begins = [number for number, line in enumerate(lines) if " submitit: attempt " in line]
    last = lines[begins[-1] :] if begins else lines
    heads = [number for number, line in enumerate(last) if line.startswith("resources: ")]
    body = last[heads[-1] + 1 :] if heads else last
    ends = [number for number, line in enumerate(body) if line == "RuleException:"]
    if ends:
        body = body[: ends[0]]
    return [line for line in body if not any(sign in line for sign in _NOT_OF_COMMAND)] or lines


def _missing_output(log: Path) -> str | None:
    """Return what a command that succeeded has not made, as Snakemake wrote it to the log."""
    _, found, said = "\n".join(tail(log)).rpartition("MissingOutputException")
    lines = said.partition("--latency-wait:\n")[2].splitlines()
    files = [line.partition(" (missing")[0] for line in lines if " (missing" in line]
    return f"its command succeeded, but made no {', '.join(files)}" if found and files else None


def exit_code(log: Path) -> str | None:
    """Return the exit code of the rule's command, as Snakemake wrote it to the job's log."""
    said = "\n".join(tail(log))
    ends = re.findall(r"returned non-zero exit status (\d+)|died with <Signals\.(\w+)", said)
    if not ends:
        return None
    code, name = ends[-1]
    return code or str(128 + signal.Signals[name])


def unseen_folder(job_id: str, log: Path) -> str:
    """Return what to say of a job that ended and left nothing where it was to write."""
    node = slurm.node_of(job_id) or "its node"
    return (
        f"job {job_id} ended on {node} and left no trace in {log.parent}: does {node} see this "
        "folder? Choose one that every node sees (submitit-folder), or leave the node out "
        "(slurm_extra: --exclude)"
    )


def began(attempts: list[Attempt], job_id: str) -> bool:
    """Return whether a job of this number has ever reached its first line."""
    return any(attempt.job_id == job_id for attempt in attempts)
