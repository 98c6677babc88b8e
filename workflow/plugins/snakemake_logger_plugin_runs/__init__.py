"""Snakemake logger that counts trainings: `snakemake TARGETS --logger runs`.

On a terminal one line moves: how many runs are done of all, what trains now, the time left. Every
run that ends has a line of its own, with its result; where there is no terminal these are all.
What jobs print is in their logs, which a job that fails names.
"""

import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from smt import dag
from smt.config.metrics import METRICS, headline
from smt.runs import record
from smt.runs.record import DamagedRecord, RunMetrics
from snakemake_logger_plugin_runs.timing import TimeLeft

REFRESHES = 2
"""A second, of the line that moves."""


@dataclass(frozen=True)
class Job:
    """A job that has started."""

    rule: str
    name: str
    outputs: tuple[str, ...]
    started: float

    @property
    def is_training(self) -> bool:
        return self.rule in dag.TRAINING_RULES


class LogHandler(LogHandlerBase):
    """Reports the events of Snakemake's jobs as a count of runs."""

    def __post_init__(self) -> None:
        self._console = Console(
            file=sys.stdout if self.common_settings.stdout else sys.stderr,
            no_color=self.common_settings.nocolor or None,
            highlight=False,
            soft_wrap=True,
        )
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._total = self._done = 0
        self._left: TimeLeft | None = None
        self._live: Live | None = None

    @property
    def writes_to_stream(self) -> bool:
        """Yes: Snakemake prints nothing itself."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No; Snakemake's own log of everything is in .snakemake/log/."""
        return False

    @property
    def has_filter(self) -> bool:
        """Yes: events are filtered here."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Yes: every line is made here."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one event, or print a warning or an error."""
        event = getattr(record, "event", None)
        actions = {
            LogEvent.RUN_INFO: self._begin,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._finish,
            LogEvent.JOB_ERROR: self._fail,
        }
        try:
            with self._lock:
                if event in actions:
                    actions[event](record)
                elif record.levelno >= logging.WARNING and record.getMessage() not in ("", "None"):
                    self._print(record.getMessage())
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Take the line that moves off the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().close()

    # --- events -----------------------------------------------------------------------------------

    def _begin(self, record: Any) -> None:
        # What is not trained takes little, and would only hide how long trainings take.
        counts = {rule: n for rule, n in record.stats.items() if rule in dag.TRAINING_RULES}
        self._total = sum(counts.values())
        self._left = TimeLeft(counts, time.monotonic())
        if self._console.is_terminal and not self.common_settings.dryrun and self._live is None:
            self._live = Live(
                console=self._console, transient=True, refresh_per_second=REFRESHES,
                get_renderable=self._line,
            )  # fmt: skip
            self._live.start()

    def _start(self, record: Any) -> None:
        wildcards = dict(record.wildcards or {})
        name = record.rule_name
        if "experiment" in wildcards:
            name = f"{wildcards['experiment']} seed {wildcards.get('seed', '0')}"
        self._jobs[record.jobid] = Job(
            record.rule_name, name, tuple(record.output or ()), time.monotonic()
        )

    def _finish(self, record: Any) -> None:
        job = self._jobs.pop(record.job_id, None)
        if job is None:
            return
        if not job.is_training:
            return
        now = time.monotonic()
        if self._left is not None:
            self._left.add_finished(job.rule, now - job.started)
        self._done += 1
        result = _result(Path(job.outputs[0]))
        seconds = f"{now - job.started:.0f} s"
        parts = [f"{self._done:>{len(str(self._total))}}/{self._total}", job.name, result, seconds]
        self._print("  ".join([*filter(None, parts), *filter(None, [self._remaining()])]))

    def _fail(self, record: Any) -> None:
        job = self._jobs.pop(record.jobid, None)
        name = record.rule_name if job is None else job.name
        log = " ".join(record.log or ())
        self._print(f"failed: {name}" + (f"; see {log}" if log else ""))

    # --- output -----------------------------------------------------------------------------------

    def _remaining(self) -> str:
        seconds = self._left.seconds(time.monotonic()) if self._left is not None else None
        if seconds is None:
            return ""
        return "less than a minute left" if seconds < 60 else f"about {seconds / 60:.0f} min left"

    def _line(self) -> Text:
        jobs = list(self._jobs.values())
        now = [job.name for job in jobs if job.is_training] or [job.name for job in jobs]
        parts = [f"{self._done} of {self._total} runs", ", ".join(now), self._remaining()]
        return Text("  ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")

    def _print(self, text: str) -> None:
        self._console.print(Text(text))


def _result(metrics: Path) -> str:
    """Return the headline metric of a finished run, or an empty text without any."""
    try:
        final = record.read(RunMetrics, metrics, "smt status says what to do")
    except DamagedRecord:
        return ""  # whatever reads it next says what is wrong
    name = headline(final.metrics) if final else None
    return "" if final is None or name is None else METRICS[name].format(final.metrics[name])
