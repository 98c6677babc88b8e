"""Each job from its submission to its end, whatever SLURM, its nodes and Snakemake do meanwhile."""

import contextlib
import enum
import os
import pickle
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

from snakemake_executor_plugin_submitit import backends, diagnosis, slurm
from snakemake_executor_plugin_submitit.attempts import TERMINATED, TO_BE_RESUMED, Attempt, refusal
from snakemake_executor_plugin_submitit.backends import SubmissionRejected, SubmissionUnconfirmed
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import GONE, Status

BACK_OFF = 6
"""How many times the least interval may lie between two questions to SLURM."""

ANSWERS = 2
"""How many answers of SLURM in a row it takes to believe that a job without a result is over."""

SOON = 5.0
"""Seconds until a job that was told to begin soon, and does not, is told again."""

FAULTS_OF_NODES = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED")
"""States of a job that ended through no fault of its own, maybe before its first line."""


class Phase(enum.Enum):
    """What is to be done next for a job."""

    PLACE = enum.auto()
    """Find out whether an earlier start of Snakemake has submitted it."""
    CLEAR = enum.auto()
    """Wait until what an earlier start submitted in its place has ended."""
    SUBMIT = enum.auto()
    WATCH = enum.auto()


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `message` is None for success, else one line that says why not."""

    message: str | None = None
    log: Path | None = None
    """Where there is more on it."""


@dataclass
class Tracked:
    """A job of Snakemake that has not been reported yet."""

    own: Record
    """Of this start."""
    step: JobStep
    request: Request
    outputs: list[str]
    rule_logs: list[str]
    forced: bool = False
    """Whether the user wants it to run, whatever an earlier start has done."""
    phase: Phase = Phase.PLACE
    since: float = field(default_factory=time.monotonic)
    """When it came to its present phase; older answers of SLURM do not concern it."""
    tried_since: float | None = None
    """When its submission was first tried."""
    next_try: float = 0.0
    pause: float = 1.0
    is_placed_by_status: bool = False
    """Whether SLURM has to be asked before it is known what to do about an earlier start's job."""
    dead_answers: int = 0
    last_answer: float = 0.0
    taken_over: bool = False
    """Whether an earlier start submitted it, and it has not been seen alive since."""
    attempts: int = 0
    told_to_begin: float = -SOON
    """When SLURM was last told to begin it (monotonic seconds), after a requeue."""
    waits_for: str = ""
    """SLURM's reason for which it waits, as it was last said."""
    in_the_way: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = self.own
        """Its own, or the one that an earlier start has submitted."""

    @property
    def job_id(self) -> str | None:
        """SLURM's number of it, once there is one."""
        return self.record.job_id if self.phase is Phase.WATCH else None

    def go(self, phase: Phase) -> None:
        """Begin another phase."""
        self.phase, self.since, self.dead_answers = phase, time.monotonic(), 0
        self.is_placed_by_status = False


class Tracker:
    """All jobs of one start of Snakemake."""

    def __init__(
        self,
        settings: ExecutorSettings,
        folder: Path,
        registry: Registry,
        logger: LoggerExecutorInterface,
        triggers: Collection[str],
    ) -> None:
        self._settings, self._folder, self._registry, self._log = settings, folder, registry, logger
        self._triggers = triggers
        self._backend = backends.backend(settings, folder)
        self._tracked: list[Tracked] = []
        self._results: set[str] = set()
        self._statuses: dict[str, Status] = {}
        self._answered = 0.0
        """When SLURM was asked what it last answered (monotonic seconds)."""
        self._next_question = 0.0
        self._interval = settings.status_interval or 10.0
        self._silent = False

    def track(
        self,
        record: Record,
        step: JobStep,
        request: Request,
        outputs: list[str],
        rule_logs: list[str],
        forced: bool = False,
    ) -> Tracked:
        """Take a job over. Nothing is done for it before the next `look` and `advance`."""
        tracked = Tracked(record, step, request, outputs, rule_logs, forced)
        self._tracked.append(tracked)
        return tracked

    def remove_old_logs(self) -> None:
        """Remove the logs of jobs that ended longer ago than they are kept."""
        oldest = time.time() - 86_400.0 * (self._settings.keep_logs_days or 0)
        wanted = {record.job_id for record in self._registry.all()}
        for path in self._folder.glob("*_log.out"):
            with contextlib.suppress(OSError):
                if path.name.partition("_")[0] not in wanted and path.stat().st_mtime < oldest:
                    path.unlink()

    def running(self) -> list[str]:
        """Return the numbers of all jobs that are in the cluster's hands."""
        return sorted({each.job_id for each in self._tracked if each.job_id is not None})

    def cancel(self) -> bool:
        """Cancel all jobs; return whether the cluster took it.

        At first the jobs, for whoever is in a hurry may end this process before the records say so.
        """
        taken = self._backend.cancel(self.running())
        for each in self._tracked:
            if each.phase is not Phase.WATCH and each.tried_since is not None:
                taken &= self._backend.cancel(self._backend.find(each.record.name) or [])
        for each in self._tracked:
            if each.job_id is not None:
                self._registry.update(each.record, cancelled=True)
        return taken

    def those_of_use(self, records: Iterable[Record]) -> list[Record]:
        """Return the records of jobs that run or have left a result; forget the others."""
        records = list(records)
        running = set(self._alive(records))
        kept = [
            each for each in records
            if each.job_id and (each.job_id in running or self._result(each).exists())
        ]  # fmt: skip
        for record in records:
            if record not in kept:
                self.forget(record)
        return kept

    def those_that_run(self, records: Iterable[Record]) -> list[str]:
        """Return the numbers of jobs that are in the cluster's hands; forget the others."""
        records = list(records)
        running = self._alive(records)
        for record in records:
            if record.job_id not in running:
                self.forget(record)
        return running

    def _alive(self, records: list[Record]) -> list[str]:
        """Return the numbers of those jobs that run; of all of them if nobody answers."""
        statuses = self._backend.statuses() if records else {}
        return [
            each.job_id for each in records
            if each.job_id and (statuses is None or statuses.get(each.job_id, GONE).is_alive)
        ]  # fmt: skip

    def succeeded(self, record: Record) -> bool | None:
        """Return whether a job has succeeded, or None if it has not ended by itself yet."""
        assert record.job_id is not None
        if not self._result(record).exists():
            return None
        return bool(backends.read_result(self._folder, record.job_id)["exit_code"] == 0)

    def _result(self, record: Record) -> Path:
        return self._folder / backends.result_name(str(record.job_id))

    # --- once a cycle, for all jobs ---------------------------------------------------------------

    def look(self) -> None:
        """See which results are there, and ask SLURM if it is time to."""
        if not self._tracked:
            return
        with contextlib.suppress(OSError):  # the results that are known stay so
            names = (entry.name for entry in os.scandir(self._folder))
            self._results = {name for name in names if name.endswith("_result.pkl")}
        asking = any(
            each.phase in (Phase.WATCH, Phase.CLEAR) or each.is_placed_by_status
            for each in self._tracked
        )
        now = time.monotonic()
        if asking and now >= self._next_question:
            self._ask(now)

    def _ask(self, now: float) -> None:
        least = self._settings.status_interval or 10.0
        statuses = self._backend.statuses()
        if statuses is None:
            if not self._silent:
                self._log.warning("submitit: SLURM does not answer; jobs go on, and so does this")
            self._silent = True
        else:
            if self._silent:
                self._log.info("submitit: SLURM answers again")
            self._silent, self._answered = False, now
        changed = statuses is not None and statuses != self._statuses
        self._interval = least if changed else min(self._interval * 1.5, least * BACK_OFF)
        if statuses is not None:
            self._statuses = statuses
            self._tell_what_waits()
        self._next_question = time.monotonic() + self._interval

    def _tell_what_waits(self) -> None:
        """Say of jobs that wait, for a reason that does not pass by itself, which and why: once."""
        waiting: dict[str, list[Record]] = {}
        for job in self._tracked:
            status = self._statuses.get(job.job_id or "", GONE)
            reason = status.reason if status.state == "PENDING" else ""
            if reason != job.waits_for and not diagnosis.is_usual(reason):
                waiting.setdefault(reason, []).append(job.record)
            job.waits_for = reason
        for reason, records in waiting.items():
            self._log.warning(f"submitit: {diagnosis.explain_waiting(reason, records)}")

    def _ask_soon(self) -> None:
        soon = time.monotonic() + min(2.0, self._settings.status_interval or 10.0)
        self._next_question = min(self._next_question, soon)

    # --- each job ---------------------------------------------------------------------------------

    def advance(self, job: Tracked) -> Outcome | None:
        """Do what is to be done for a job; return how it ended, or None if it goes on."""
        if job.phase is Phase.PLACE:
            self._place(job)
        if job.phase is Phase.CLEAR:
            self._clear(job)
        if job.phase is Phase.SUBMIT:
            return self._submit(job)
        return self._watch(job) if job.phase is Phase.WATCH else None

    def _place(self, job: Tracked) -> None:
        found = self._registry.overlapping(job.record.contents)
        if not found:
            job.go(Phase.SUBMIT)
            return
        known = [self._with_number(record) for record in found]
        if None in known:  # nobody answers
            return
        records = [record for record in known if record is not None]
        if len(records) == 1 and self._does(records[0], job):
            (record,) = records
            why = self._why_unwanted(record, job)
            if why is not None:
                self._log.warning(f"submitit: {record.title} of an earlier start {why}")
            elif record.request == job.own.request:
                self._take_over(job, record)
                return
            elif self._answered <= job.since:
                job.is_placed_by_status, self._next_question = True, 0.0
                return
            elif not self._waits_otherwise(record, job):
                self._take_over(job, record)
                return
        job.in_the_way = records
        job.go(Phase.CLEAR)
        self._backend.cancel(record.job_id for record in records if record.job_id)
        self._next_question = 0.0

    def _with_number(self, record: Record) -> Record | None:
        """Return a record with the job's number, found by its name if it was never noted."""
        if record.job_id is not None:
            return record
        numbers = self._backend.find(record.name)
        if numbers is None:
            return None
        if not numbers:
            return record
        return self._registry.update(record, job_id=max(numbers, key=int))

    def _does(self, record: Record, job: Tracked) -> bool:
        """Return whether a job of an earlier start makes, or has made, what this one would."""
        if record.job_id is None or record.cancelled or not record.covers(job.own.contents):
            return False
        if backends.result_name(record.job_id) in self._results:
            result = backends.read_result(self._folder, record.job_id)
            return result["exit_code"] == 0 and all(Path(output).exists() for output in job.outputs)
        # Without this file, which follows on its number, it will never begin.
        return backends.submitted(self._folder, record.job_id).exists()

    def _why_unwanted(self, record: Record, job: Tracked) -> str | None:
        """Return why the job of an earlier start is not what is wanted now, or None if it is."""
        if job.forced:
            return "is not used: this start is told to run it anew (-f, -F or -R)"
        changes = record.changes(job.own.contents, self._triggers)
        return f"is not used: changed since: {', '.join(changes)}" if changes else None

    def _waits_otherwise(self, record: Record, job: Tracked) -> bool:
        """Return whether a job waits in the queue with other resources than are asked for now."""
        assert record.job_id is not None
        status = self._statuses.get(record.job_id, GONE)
        if status.state == "PENDING" and not self._registry.attempts(record).read():
            self._log.warning(
                f"submitit: {record.title} of an earlier start waits with other resources than are "
                "asked for now: it is submitted anew"
            )
            return True
        if status.is_alive:
            self._log.warning(
                f"submitit: {record.title} has begun with other resources than are asked for now, "
                "and keeps them"
            )
        return False

    def _take_over(self, job: Tracked, record: Record) -> None:
        job.record, job.taken_over = record, True
        job.attempts = len(self._registry.attempts(record).read())
        job.go(Phase.WATCH)
        others = record.changes(job.own.contents, list(next(iter(job.own.contents.values()))))
        self._log.info(
            f"submitit: {record.title} is taken over from an earlier start"
            + (
                f", though changed since: {', '.join(others)} (see --rerun-triggers)"
                if others
                else ""
            )
        )

    def _clear(self, job: Tracked) -> None:
        if self._answered <= max(job.since, job.last_answer):
            return
        job.last_answer = self._answered
        alive = [
            each.job_id for each in job.in_the_way
            if each.job_id and self._statuses.get(each.job_id, GONE).is_alive
        ]  # fmt: skip
        if alive:
            self._backend.cancel(alive)  # the first time may not have reached SLURM
            self._ask_soon()
            return
        for record in job.in_the_way:
            self.forget(record)
        job.in_the_way = []
        job.go(Phase.SUBMIT)

    def _submit(self, job: Tracked) -> Outcome | None:
        now = time.monotonic()
        if now < job.next_try:
            return None
        if job.tried_since is not None and not self._cancel_unknown(job):
            return self._try_later(job, "SLURM does not answer")
        job.tried_since = job.tried_since or now
        job.record = self._registry.write(job.record)
        try:
            job_id = self._backend.submit(job.step, job.request, job.record.name)
        except SubmissionRejected as error:
            self._finish(job, keep_log=True)
            return Outcome(f"refused at submission: {error}")
        except SubmissionUnconfirmed as error:
            return self._try_later(job, str(error))
        job.record = self._registry.update(job.record, job_id=job_id)
        job.tried_since, job.next_try, job.pause = None, 0.0, 1.0
        job.go(Phase.WATCH)
        return None

    def _cancel_unknown(self, job: Tracked) -> bool:
        """Cancel jobs of this name that an unanswered sbatch may have left; return if that is sure.

        Such a job will never begin: submitit writes its file once it knows its number.
        """
        numbers = self._backend.find(job.record.name)
        return numbers is not None and self._backend.cancel(numbers)

    def _try_later(self, job: Tracked, why: str) -> Outcome | None:
        assert job.tried_since is not None
        waited = time.monotonic() - job.tried_since
        if waited > (self._settings.submit_timeout or 0):
            self._finish(job, keep_log=True)
            return Outcome(f"not submitted within {waited:.0f} s (submitit-submit-timeout): {why}")
        if job.pause == 1.0:
            self._log.warning(f"submitit: {job.record.name} is submitted later: {why}")
        job.pause = min(job.pause * 2, 30.0)
        job.next_try = time.monotonic() + job.pause
        return None

    def _watch(self, job: Tracked) -> Outcome | None:
        assert job.record.job_id is not None
        result = self._read_result(job.record.job_id)
        if result is not None:
            if result["began"]:
                return self._harvest(job, result)
            self._ask_soon()  # SLURM may be about to start it again
        if self._answered <= max(job.since, job.last_answer):
            return None
        job.last_answer = self._answered
        status = self._statuses.get(job.record.job_id, GONE)
        if status.is_alive:
            if result is not None and status.state == "PENDING":
                self._result(job.record).unlink(missing_ok=True)
            job.dead_answers, job.taken_over = 0, False
            self._attend(job, status)
            return None
        job.dead_answers += 1
        self._ask_soon()
        return self._bury(job, status, result) if job.dead_answers >= ANSWERS else None

    def _read_result(self, job_id: str) -> dict[str, Any] | None:
        if backends.result_name(job_id) not in self._results:
            return None
        try:
            return backends.read_result(self._folder, job_id)
        except (EOFError, pickle.UnpicklingError, FileNotFoundError):
            return None  # not all of it is seen from here yet, or it has just been removed

    def _attend(self, job: Tracked, status: Status) -> None:
        """Do what helps a job that runs or waits, and tell of what happened to it."""
        assert job.record.job_id is not None
        attempts = self._registry.attempts(job.record).read()
        now = time.monotonic()
        if (
            status.state == "PENDING" and status.reason == "BeginTime" and attempts
            and now >= job.told_to_begin + SOON
        ):  # fmt: skip
            job.told_to_begin = now
            slurm.start_soon(job.record.job_id)
        if len(attempts) > max(job.attempts, 1):
            at = self._registry.attempts(job.record).progress()
            self._log.info(
                f"submitit: {job.record.title} goes on"
                f"{f' from {at!r}' if at else ''}: attempt {len(attempts)}, the one before "
                f"{attempts[-2].end}"
            )
        job.attempts = len(attempts)

    def _harvest(self, job: Tracked, result: dict[str, Any]) -> Outcome:
        assert job.record.job_id is not None
        log = backends.log_path(self._folder, job.record.job_id)
        if result["exit_code"] == 0:
            self._finish(job, keep_log=self._settings.keep_logs == "all")
            return Outcome()
        status = diagnosis.of_result(result, log)
        message = self._explain(job, status, result["message"])
        self._finish(job, keep_log=True)
        return Outcome(message, log)

    def _bury(self, job: Tracked, seen: Status, result: dict[str, Any] | None) -> Outcome | None:
        """Decide what becomes of a job that is over and has left no result, or never began."""
        job_id = job.record.job_id
        assert job_id is not None
        log = backends.log_path(self._folder, job_id)
        if job.taken_over:  # it ended while nobody looked: whoever started Snakemake wants it again
            self.forget(job.record, keep_log=True)
            job.record, job.taken_over = job.own, False
            job.go(Phase.SUBMIT)
            return None
        status = diagnosis.final_status(job_id, seen, log)
        if status is None:
            return None
        if result is not None and status.state not in FAULTS_OF_NODES:
            return self._harvest(job, result)
        why = self._why_it_is_over(job, status, log)
        if why is None:
            self._submit_again(job, status)
            return None
        self._finish(job, keep_log=True)
        return Outcome(why, log if log.exists() else None)

    def _why_it_is_over(self, job: Tracked, status: Status, log: Path) -> str | None:
        """Return why a job that left no result is not submitted again, or None if it is."""
        job_id, attempts = job.record.job_id, self._registry.attempts(job.record)
        assert job_id is not None
        past, progress = attempts.read(), attempts.progress()
        if status.state in ("CANCELLED", "OUT_OF_MEMORY", "DEADLINE"):
            return self._explain(job, status)
        if status.state not in FAULTS_OF_NODES and not diagnosis.began(past, job_id):
            if not log.exists():
                return diagnosis.unseen_folder(job_id, log)
            return self._explain(job, status, "it never reached its first line")
        was_refused = status.state == "FAILED" and past[-1].end == TERMINATED  # at a requeue
        if (
            status.state not in FAULTS_OF_NODES and not was_refused
            and not self._may_go_on(job, past, progress)
        ):  # fmt: skip
            return self._explain(job, status)
        refused = refusal(past, progress, job.step.max_requeues, job.step.max_stalls)
        if refused is None and job.record.resubmissions >= job.step.max_requeues:
            refused = "no requeue is left (submitit-max-requeues)"
        if refused is None and not job.request.may_requeue:
            refused = "slurm_extra forbids to requeue it"
        return self._explain(job, status, refused) if refused else None

    @staticmethod
    def _may_go_on(job: Tracked, past: list[Attempt], progress: str | None) -> bool:
        """Return whether a job that ended by no fault of its node has somewhere to go on from."""
        if not job.step.resumable:
            return False
        return progress is not None or bool(past and past[-1].end in TO_BE_RESUMED)

    def _explain(self, job: Tracked, status: Status, message: str | None = None) -> str:
        assert job.record.job_id is not None
        log = backends.log_path(self._folder, job.record.job_id)
        return diagnosis.explain(job.record.job_id, status, log, message, job.rule_logs)

    def _submit_again(self, job: Tracked, status: Status) -> None:
        assert job.record.job_id is not None
        reason = f" ({status.reason})" if status.reason else ""
        self._log.warning(
            f"submitit: {job.record.title} ended without a result: "
            f"{status.state}{reason}; it is submitted again"
        )
        backends.remove_files(self._folder, job.record.job_id, keep_log=True)
        job.record = self._registry.update(
            job.record, job_id=None, resubmissions=job.record.resubmissions + 1
        )
        job.go(Phase.SUBMIT)

    def _finish(self, job: Tracked, keep_log: bool) -> None:
        """Leave a job behind that is going to be reported."""
        self._tracked.remove(job)
        if not any(each.record.key == job.record.key for each in self._tracked):
            self.forget(job.record, keep_log)

    def forget(self, record: Record, keep_log: bool = False) -> None:
        """Remove all that was kept of a job."""
        if record.job_id is not None:
            backends.remove_files(self._folder, record.job_id, keep_log)
        self._registry.remove(record)
