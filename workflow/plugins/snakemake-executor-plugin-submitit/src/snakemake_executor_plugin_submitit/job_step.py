"""What submitit runs on the first node of a job: Snakemake's command for it, watched over.

It imports little, since every job waits for it, and nothing of Snakemake, since it outlives it.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_submitit import processes
from snakemake_executor_plugin_submitit.attempts import (
    ABORTED,
    ASKED,
    DONE,
    FAILED,
    PROGRESS,
    RESUME,
    SIGNALLED,
    TERMINATED,
    UNRESPONSIVE,
    Attempts,
    refusal,
    stalls,
)
from snakemake_executor_plugin_submitit.rendezvous import environment_of_ranks

RESEND = 10.0
"""Seconds until a signal is sent again, for one that comes while a program starts is lost."""

FAREWELL = 20.0
"""Seconds that processes have to end once the command itself has ended."""

LOCAL_REQUEUE = 144
"""Exit code that makes submitit's local executor start a job again."""


@dataclass(frozen=True)
class JobStep:
    """A job of Snakemake, as submitit calls it."""

    command: str
    """Snakemake's command line for the job, for a shell."""
    folder: Path
    key: str
    """Names the job, and the files of its attempts in the folder."""
    signal_delay: float
    max_requeues: int
    max_stalls: int
    may_requeue: bool
    """Whether SLURM would requeue it, or was told not to."""
    resumable: bool = False
    """Whether its command saves when it is told to, and goes on from there. Others are never told,
    nor started again but for what SLURM or a node has ended."""
    inputs: tuple[str, ...] = ()
    """Files for which the command waits, if there are many: it finds them in `KEY.inputs`."""
    marks: tuple[tuple[str, str], ...] = ()
    """Path and content of files that are written again once the command has succeeded.

    Snakemake's marks of unfinished outputs: the command removes them, but only a Snakemake that
    sees the job end records what the outputs were made with. With the marks back, one that was not
    there asks for the job again when it starts, and is told that it is done.
    """

    def __call__(self) -> dict[str, Any]:
        """Run the command once. Return exit code and message; do not return where SLURM goes on."""
        return _Supervisor(self).run()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hold signals as soon as submitit has read the step, just before it sets its handlers.

        They would ask SLURM for a requeue that it may be at already, and fail the job if it is.
        """
        self.__dict__.update(state)
        if os.environ.get("SUBMITIT_EXECUTOR") in _JOB_ID:
            processes.hold_signals()


class _Supervisor:
    """One attempt at a job step."""

    def __init__(self, step: JobStep) -> None:
        self._step = step
        self._attempts = Attempts(step.folder, step.key)
        self._job_id = _job_id()
        self._deadline: float | None = None
        """When a command that was told to stop has had its time (monotonic seconds)."""
        self._terminated = False
        self._unresponsive = False

    def run(self) -> dict[str, Any]:
        past = self._attempts.read()
        refused = self._refusal()
        if refused:
            return self._failure(1, refused)
        self._attempts.begin(self._job_id, socket.gethostname())
        _say(f"attempt {len(past) + 1} on {socket.gethostname()}, job {self._job_id}")
        self._write_inputs()
        code = self._run_command()
        if code == 0:
            self._write_marks()
            self._attempts.end(self._job_id, DONE)
            return {"exit_code": 0, "message": None, "requeues": len(past)}
        return self._after_failure(code)

    def _refusal(self) -> str | None:
        step, attempts = self._step, self._attempts
        return refusal(attempts.read(), attempts.progress(), step.max_requeues, step.max_stalls)

    # --- the command ---------------------------------------------------------------------------

    def _run_command(self) -> int:
        if threading.current_thread() is not threading.main_thread():  # submitit's debug executor
            command = ["/bin/bash", "-c", self._step.command]
            return subprocess.run(command, env=self._environment(), check=False).returncode
        processes.adopt_orphans()
        processes.hold_signals()
        child = processes.start(self._step.command, self._environment(), self._step.resumable)
        resend = 0.0
        while child.poll() is None:
            taken = processes.next_signal(1.0)
            processes.reap_orphans(child)
            if taken == signal.SIGTERM and not self._terminated:
                self._terminated = True
                _say("SIGTERM: SLURM ends this job")
                if self._step.resumable:
                    self._signal()
            if taken == signal.SIGUSR2 and self._deadline is None and self._step.resumable:
                self._tell_to_stop()
                resend = time.monotonic() + RESEND
            if self._deadline is not None and time.monotonic() >= resend:
                self._signal()
                resend = time.monotonic() + RESEND
            self._enforce_deadline()
        self._await_orphans(child)
        return child.returncode

    def _tell_to_stop(self) -> None:
        spare = min(15.0, self._step.signal_delay / 4)  # for the requeue itself
        self._deadline = time.monotonic() + self._step.signal_delay - spare
        _say(
            "SIGUSR2: the time limit is near, or the job is preempted; its processes are told to "
            f"save and stop, and have {self._step.signal_delay - spare:.0f} s"
        )
        self._signal()

    def _signal(self) -> None:
        """Tell the processes of the job that can be told, on all its nodes."""
        told = processes.tell()
        _say(f"SIGUSR2 to {', '.join(told)}" if told else "no process here takes SIGUSR2")
        if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
            processes.tell_other_nodes()

    def _enforce_deadline(self) -> None:
        if self._deadline is None or self._unresponsive or time.monotonic() < self._deadline:
            return
        progress = self._attempts.progress()
        self._unresponsive = True
        if progress is None:
            _say(
                "its processes did not stop, and never said that they could go on from somewhere: "
                "they are left to run until the time limit"
            )
            return
        _say(f"its processes did not stop in time: they are killed, to go on from {progress!r}")
        processes.signal_all(signal.SIGKILL)

    def _await_orphans(self, child: "subprocess.Popen[bytes]") -> None:
        """Wait for processes that outlive the command: a trainer that saves, as a rule."""
        deadline = self._deadline or time.monotonic() + FAREWELL
        while processes.descendants() and time.monotonic() < deadline:
            processes.next_signal(0.2)
            processes.reap_orphans(child)
        processes.signal_all(signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **environment_of_ranks()}
        environment[PROGRESS] = str(self._attempts.progress_file)
        environment[RESUME] = str(self._attempts.resume_file)
        environment.pop("SNAKEMAKE_PROFILE", None)  # it would submit the job once more
        return environment

    def _write_inputs(self) -> None:
        """Write the list now: what an earlier job of this key had goes with it."""
        if self._step.inputs:
            path = self._step.folder / f"{self._step.key}.inputs"
            path.write_text("\n".join(self._step.inputs) + "\n", encoding="utf-8")

    def _write_marks(self) -> None:
        for path, content in self._step.marks:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")

    # --- what becomes of a job whose command failed ----------------------------------------------

    def _after_failure(self, code: int) -> dict[str, Any]:
        if self._terminated:
            self._attempts.end(self._job_id, TERMINATED)
            _say("ended by SLURM, which starts it again if it is to go on")
            sys.exit(1)
        why = self._why_again(code)
        if why is not None:
            return self._go_on(code, why)
        self._attempts.end(self._job_id, FAILED)
        return self._failure(code, self._untold() if self._deadline is not None else None)

    def _why_again(self, code: int) -> str | None:
        """Return why a command that failed is to be started again, or None if it is not.

        A process that a signal ended had no last word. Where one of several is lost, NCCL's
        watchdog ends the others by SIGABRT, minutes later.
        """
        attempts = self._attempts
        if not self._step.resumable:
            return None
        if self._deadline is None:
            if attempts.asked_to_resume():
                return ASKED
            stalled = stalls(attempts.read(), attempts.progress())
            return ABORTED if not stalled and self._exit_code(code) > 128 else None
        if attempts.progress() is None and not attempts.asked_to_resume():
            return None
        return UNRESPONSIVE if self._unresponsive else SIGNALLED

    def _untold(self) -> str:
        return (
            "it failed after the signal to save and stop, and never said that it could go on "
            f"(${PROGRESS} or ${RESUME})"
        )

    def _go_on(self, code: int, why: str) -> dict[str, Any]:
        self._attempts.end(self._job_id, why)
        refused = self._refusal()
        if refused is None and not self._step.may_requeue:
            refused = f"{why}, and slurm_extra forbids to requeue it"
        if refused:
            return self._failure(code, refused)
        _say(f"{why}; it goes on from {self._attempts.progress() or 'its start'}")
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            sys.exit(LOCAL_REQUEUE)
        _requeue(self._job_id)
        sys.exit(1)

    def _failure(self, code: int, message: str | None) -> dict[str, Any]:
        if message:
            _say(message)
        requeues = max(len(self._attempts.read()) - 1, 0)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            atexit.register(_end_with, self._exit_code(code))
        return {"exit_code": code or 1, "message": message, "requeues": requeues}

    def _exit_code(self, code: int) -> int:
        """Return the exit code of the rule's command; Snakemake's own is always 1."""
        # Few jobs fail, and all would wait for it.
        from snakemake_executor_plugin_submitit import diagnosis

        said = diagnosis.exit_code(self._step.folder.parent / f"{self._job_id}_0_log.out")
        return int(said) if said else code if code > 0 else 128 - code if code else 1


def _end_with(code: int) -> None:
    """End this process, whose result submitit has written by now, as one that failed.

    By it SLURM knows what has failed: in its accounting, in mails, for jobs that wait for others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _requeue(job_id: str) -> None:
    """Have SLURM start this job again; whoever submitted it submits it anew if that fails."""
    for pause in (1, 2, 4, 8, 0):
        done = subprocess.run(
            ["scontrol", "requeue", job_id], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            time.sleep(60)  # SLURM ends what is left of this attempt
            return
        _say(f"scontrol requeue {job_id}: {done.stderr.strip()}")
        time.sleep(pause)


_JOB_ID = {"slurm": "SLURM_JOB_ID", "local": "SUBMITIT_LOCAL_JOB_ID"}


def _job_id() -> str:
    executor = os.environ.get("SUBMITIT_EXECUTOR", "debug")
    return os.environ.get(_JOB_ID.get(executor, "SUBMITIT_DEBUG_JOB_ID"), "unknown")


def _say(message: str) -> None:
    """Write a line to the job's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} submitit: {message}", flush=True)
