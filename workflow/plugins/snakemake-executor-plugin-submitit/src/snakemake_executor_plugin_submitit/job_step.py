"""The job step that submitit runs on a job's first node: Snakemake's command, supervised.

It imports little, since every job waits for it, and nothing of Snakemake, which it outlives.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit import memory_kills, processes, shared_folder
from snakemake_executor_plugin_submitit.attempts import (
    ABORTED,
    BLOCKED,
    DONE,
    FAILED,
    PROGRESS_VARIABLE,
    RESUME_REQUESTED,
    RESUME_VARIABLE,
    SIGNALLED,
    TERMINATED,
    UNRESPONSIVE,
    Attempts,
    requeue_refusal,
    stalls,
)
from snakemake_executor_plugin_submitit.rendezvous import rank_environment

RESEND_INTERVAL = 10.0
"""Seconds until SIGUSR2 is sent again: one that arrives while a program starts is lost."""

ORPHAN_TIMEOUT = 20.0
"""Seconds that processes have to end once the command itself has ended."""

MAX_INPUT_ARGUMENTS = 20
"""Inputs that a job's command line may list; more are listed in a file."""

LOCAL_REQUEUE = 144
"""Exit code that makes submitit's local executor start a job again."""


@dataclass(frozen=True)
class JobStep:
    """A job of Snakemake, as the callable that submitit runs. Pickled beside the job's log."""

    command: str
    """Snakemake's command line for the job, for a shell."""
    folder: Path
    key: str
    """Names the files of the job's attempts in the folder."""
    signal_delay: float
    """Seconds before the time limit at which SLURM sends SIGUSR2."""
    max_requeues: int
    max_stalls: int
    may_requeue: bool
    """Whether slurm_extra permits requeues."""
    resumable: bool = False
    """Whether the command saves on SIGUSR2 and resumes when it is started again. Others are not
    signalled, and requeued only by SLURM: after preemption or a node failure."""
    in_process: bool = False
    """Whether it runs in Snakemake's own process, whose signals and other children are not its."""
    inputs: tuple[str, ...] = ()
    """Files for which the command waits. If there are many, it reads them from `KEY.inputs`."""
    marks: tuple[tuple[str, str], ...] = ()
    """Path and content of Snakemake's incomplete markers, written again after success.

    The command removes them, but only a Snakemake that sees the job end records how the outputs
    were made. With the markers, a Snakemake that did not run at that time requests the job again
    when it starts, and this plugin then reports it as done.
    """

    def __call__(self) -> dict[str, Any]:
        """Run the command once, and return exit code and message; exit if SLURM requeues it."""
        return _Supervisor(self).run()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Block signals as soon as submitit has unpickled the step, before it sets its handlers.

        Those would requeue the job, and fail it if SLURM is already requeueing it.
        """
        self.__dict__.update(state)
        if os.environ.get("SUBMITIT_EXECUTOR") in _JOB_ID:
            processes.block_signals()


class _Supervisor:
    """One attempt at a job step."""

    def __init__(self, step: JobStep) -> None:
        self._step = step
        self._attempts = Attempts(step.folder, step.key)
        self._job_id = _job_id()
        self._deadline: float | None = None
        """Until when the processes may save, once they were signalled (monotonic seconds)."""
        self._terminated = False
        self._number = 0
        self._unresponsive = False
        self._memory_kills = 0

    def run(self) -> dict[str, Any]:
        past = self._attempts.read()
        refusal = self._requeue_refusal()
        if refusal:
            return self._failure(1, refusal)
        self._number = len(past) + 1
        self._attempts.begin(self._job_id, socket.gethostname())
        _log(f"attempt {self._number} on {socket.gethostname()}, job {self._job_id}")
        self._write_inputs()
        code = self._run_command()
        if code == 0:
            self._write_incomplete_markers()
            self._attempts.end(self._job_id, DONE)
            return {"exit_code": 0, "message": None, "requeues": len(past)}
        return self._handle_failure(code)

    def _requeue_refusal(self) -> str | None:
        step, attempts = self._step, self._attempts
        return requeue_refusal(
            attempts.read(), attempts.progress(), step.max_requeues, step.max_stalls
        )

    # --- the command ---------------------------------------------------------------------------

    def _run_command(self) -> int:
        if self._step.in_process:
            command = ["/bin/bash", "-c", self._step.command]
            return subprocess.run(command, env=self._environment(), check=False).returncode
        processes.become_subreaper()
        processes.block_signals()
        child = processes.start(self._step.command, self._environment(), self._step.resumable)
        resend_at = 0.0
        while child.poll() is None:
            received = processes.next_signal(1.0)
            processes.reap_orphans(child)
            self._count_memory_kills()
            if received == signal.SIGTERM and not self._terminated:
                self._terminated = True
                _log("SIGTERM: SLURM ends this job")
                if self._step.resumable:
                    self._signal_processes()
            if received == signal.SIGUSR2 and self._deadline is None and self._step.resumable:
                self._request_stop()
                resend_at = time.monotonic() + RESEND_INTERVAL
            if self._deadline is not None and time.monotonic() >= resend_at:
                self._signal_processes()
                resend_at = time.monotonic() + RESEND_INTERVAL
            self._enforce_deadline()
        self._count_memory_kills()
        self._await_orphans(child)
        return child.returncode

    def _count_memory_kills(self) -> None:
        """Remember them: the count of a step of srun may go with the step."""
        self._memory_kills = max(self._memory_kills, memory_kills.count())

    def _request_stop(self) -> None:
        margin = min(15.0, self._step.signal_delay / 4)  # for the requeue itself
        seconds = self._step.signal_delay - margin
        self._deadline = time.monotonic() + seconds
        _log(
            "SIGUSR2: the time limit is near, or the job is preempted; its processes have "
            f"{seconds:.0f} s to save and stop"
        )
        self._signal_processes()

    def _signal_processes(self) -> None:
        """Send SIGUSR2 to the job's processes that handle it, on all its nodes."""
        receivers = processes.send_sigusr2()
        _log(
            f"SIGUSR2 to {', '.join(receivers)}"
            if receivers
            else "no process on this node has a handler for SIGUSR2"
        )
        if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
            processes.send_sigusr2_on_other_nodes()

    def _enforce_deadline(self) -> None:
        if self._deadline is None or self._unresponsive or time.monotonic() < self._deadline:
            return
        progress = self._attempts.progress()
        self._unresponsive = True
        if progress is None:
            _log(
                "its processes did not stop in time, and have reported no progress to resume from: "
                "they run until the time limit"
            )
            return
        _log(f"its processes did not stop in time: killed, to resume from {progress!r}")
        processes.signal_descendants(signal.SIGKILL)

    def _await_orphans(self, child: "subprocess.Popen[bytes]") -> None:
        """Wait for processes that outlive the command, such as a trainer that saves."""
        deadline = self._deadline or time.monotonic() + ORPHAN_TIMEOUT
        while processes.descendants() and time.monotonic() < deadline:
            processes.next_signal(0.2)
            processes.reap_orphans(child)
        processes.signal_descendants(signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **rank_environment()}
        environment[PROGRESS_VARIABLE] = str(self._attempts.progress_file)
        environment[RESUME_VARIABLE] = str(self._attempts.resume_file)
        environment.pop("SNAKEMAKE_PROFILE", None)  # its executor would submit the job again
        return environment

    def _write_inputs(self) -> None:
        """Write the list of inputs, now: with an earlier job of this key its list is removed.

        Other hosts have made the inputs since this one looked for them, perhaps for another job.
        """
        shared_folder.refresh(*self._step.inputs)
        if len(self._step.inputs) > MAX_INPUT_ARGUMENTS:
            text = "\n".join(self._step.inputs) + "\n"
            self._attempts.input_list.write_text(text, encoding="utf-8")

    def _write_incomplete_markers(self) -> None:
        for name, content in self._step.marks:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    # --- a command that failed -------------------------------------------------------------------

    def _handle_failure(self, code: int) -> dict[str, Any]:
        if len(self._attempts.read()) > self._number:
            # SLURM lost this host, and has started the job elsewhere: a result from here would
            # fail that attempt, and a requeue would end it.
            _log("superseded by a later attempt on another node: ends without a result")
            sys.exit(1)
        if self._terminated:
            self._attempts.end(self._job_id, TERMINATED)
            _log("ended by SLURM, which requeues it after preemption or a requeue")
            sys.exit(1)
        reason = self._resume_reason(code)
        if reason is not None:
            return self._resume(code, reason)
        self._attempts.end(self._job_id, FAILED)
        return self._failure(code, _NO_PROGRESS if self._deadline is not None else None)

    def _resume_reason(self, code: int) -> str | None:
        """Return why a command that failed is to be resumed, or None if it is not.

        A command that a signal ended could not request it: if one rank is lost, NCCL's watchdog
        ends the others by SIGABRT, minutes later.
        """
        attempts = self._attempts
        if not self._step.resumable:
            return None
        if self._deadline is None:
            if self._memory_kills:
                _log("the kernel killed a process for exceeding the job's memory: not resumed")
                return None
            if attempts.resume_requested():
                return BLOCKED if attempts.is_blocked() else RESUME_REQUESTED
            stalled = stalls(attempts.read(), attempts.progress())
            return ABORTED if not stalled and self._exit_code(code) > 128 else None
        if attempts.progress() is None and not attempts.resume_requested():
            return None
        return UNRESPONSIVE if self._unresponsive else SIGNALLED

    def _resume(self, code: int, reason: str) -> dict[str, Any]:
        """Requeue the job and exit; return a failure if that is not permitted."""
        self._attempts.end(self._job_id, reason)
        refusal = self._requeue_refusal()
        if refusal is None and not self._step.may_requeue:
            refusal = f"{reason}, and slurm_extra forbids a requeue"
        if refusal:
            return self._failure(code, refusal)
        _log(f"{reason}; resumes from {self._attempts.progress() or 'its start'}")
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            sys.exit(LOCAL_REQUEUE)
        _requeue(self._job_id)
        sys.exit(1)

    def _failure(self, code: int, message: str | None) -> dict[str, Any]:
        if message:
            _log(message)
        requeues = max(len(self._attempts.read()) - 1, 0)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            atexit.register(_exit, self._exit_code(code))
        return {"exit_code": code or 1, "message": message, "requeues": requeues}

    def _exit_code(self, code: int) -> int:
        """Return the exit code of the rule's command; Snakemake's own is always 1."""
        # Imported here: few jobs fail, and every job would wait for the import.
        from snakemake_executor_plugin_submitit import diagnosis

        log_code = diagnosis.exit_code(self._step.folder.parent / f"{self._job_id}_0_log.out")
        return int(log_code) if log_code else code if code > 0 else 128 - code if code else 1


_NO_PROGRESS = (
    "it failed after the signal to save and stop, and reported no progress to resume from "
    f"(${PROGRESS_VARIABLE} or ${RESUME_VARIABLE})"
)


def _exit(code: int) -> None:
    """Exit with a failed command's code, after submitit has written the result.

    SLURM then knows of the failure: in accounting, in mails, and for dependent jobs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _requeue(job_id: str) -> None:
    """Let SLURM requeue this job; if that fails, the plugin submits it again."""
    for pause in (1, 2, 4, 8, 0):
        process = subprocess.run(
            ["scontrol", "requeue", job_id], capture_output=True, text=True, check=False
        )
        if process.returncode == 0:
            time.sleep(60)  # SLURM ends this attempt
            return
        _log(f"scontrol requeue {job_id}: {process.stderr.strip()}")
        time.sleep(pause)


_JOB_ID = {"slurm": "SLURM_JOB_ID", "local": "SUBMITIT_LOCAL_JOB_ID"}


def _job_id() -> str:
    executor = os.environ.get("SUBMITIT_EXECUTOR", "debug")
    return os.environ.get(_JOB_ID.get(executor, "SUBMITIT_DEBUG_JOB_ID"), "unknown")


def _log(message: str) -> None:
    """Write a line to the job's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} submitit: {message}", flush=True)
