"""What two hosts see of each other's files: a file agent on each, which take turns."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from smt.cluster.doctor.file_agent import GRANTED, KINDS_OF_LOCK, REFUSED

PATIENCE = 10.0
"""Seconds for which a change may be invisible. NFS caches for up to 60; ten are enough to tell."""

_START_TIMEOUT, _TIMEOUT = 120.0, 60.0
"""Seconds, for the first answer (Python starts, perhaps from a slow disk) and for others."""

_ROUNDS, _LINES = 10, 10
"""Each host appends so many lines in so many turns."""


class AgentFailed(Exception):
    """An operation failed, or the agent has ended or does not answer; the message says which."""


@dataclass
class Measurements:
    """What was measured, up to the operation that failed."""

    hosts: tuple[str, str] | None = None
    same_kernel: bool = False
    """Whether both are one machine, whose processes share caches."""
    locks: dict[str, str] = field(default_factory=dict)
    """Kind of lock -> what the second host got while the first held it."""
    release_seconds: dict[str, float | None] = field(default_factory=dict)
    """Kind of lock -> until the second host got it once released; None: not within `patience`."""
    visible_seconds: dict[str, float | None] = field(default_factory=dict)
    """Change (stat, listing, replaced, appended) -> until the second host saw it, or None."""
    patience: float = PATIENCE
    appended_lines: tuple[int, int] | None = None
    """Whole lines that are there, and those that both appended."""
    fsync_seconds: float | None = None
    """To write a small file with fsync, on the slower host."""
    clock_difference: float | None = None
    """Seconds by which the second host's clock is ahead."""
    problem: str = ""
    """What failed, and on which host; empty if all went through."""


class AgentCommand(NamedTuple):
    """How an agent is started."""

    words: Sequence[str]
    name: str
    """Its host in messages, until it has given its name."""
    environment: Mapping[str, str] | None = None
    """None for that of this process."""


class Agent:
    """A file agent that runs; `stderr` is an empty file for its messages."""

    def __init__(self, command: AgentCommand, stderr: IO[bytes]) -> None:
        self.name = command.name
        self._requests = 0
        self._stderr = stderr
        self._process = subprocess.Popen(
            command.words, env=command.environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def request(self, operation: str, *arguments: Any) -> None:
        """Ask for an operation; `answer` waits for it."""
        assert self._process.stdin is not None
        self._requests += 1
        try:
            print(
                json.dumps([self._requests, operation, *arguments]),
                file=self._process.stdin, flush=True,
            )  # fmt: skip
        except BrokenPipeError:
            raise AgentFailed(f"{self.name}: {self._last_words()}") from None

    def answer(self, timeout: float = _TIMEOUT) -> Any:
        """Return the result of the last request.

        Raises:
            AgentFailed: it failed, or there is no answer within `timeout` seconds.
        """
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                raise AgentFailed(f"{self.name} does not answer for {timeout:.0f} s") from None
            if not line:
                raise AgentFailed(f"{self.name}: {self._last_words()}")
            number, result, problem = _parsed(line)
            if problem is not None:
                raise AgentFailed(f"{self.name}: {problem}")
            if number == self._requests:
                return result

    def call(self, operation: str, *arguments: Any) -> Any:
        """Ask for an operation and return its result."""
        self.request(operation, *arguments)
        return self.answer()

    @property
    def exit_code(self) -> int | None:
        """That of the agent's process; None while it runs."""
        return self._process.poll()

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # its output has ended, and so will it
            self._process.wait(5)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {self.exit_code}"

    def stop(self) -> None:
        """End the agent. One that hangs in a file system is left: it cannot even be killed."""
        assert self._process.stdin is not None
        for end in (self._process.stdin.close, self._process.terminate, self._process.kill):
            try:
                end()
                self._process.wait(5)
                break
            except (BrokenPipeError, subprocess.TimeoutExpired):
                continue


def _parsed(line: str) -> tuple[int, Any, str | None]:
    """Return number, result and error; (0, None, None) of what a site's prolog prints."""
    try:
        number, result, problem = json.loads(line)
    except (ValueError, TypeError):
        return 0, None, None
    return number, result, problem


def agent_command(
    folder: Path,
    name: str,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AgentCommand:
    """Return the command of an agent in `folder`; `prefix` starts it on another host."""
    agent = [sys.executable, "-m", "smt.cluster.doctor.file_agent", str(folder)]
    return AgentCommand([*prefix, *agent], name, environment)


@contextmanager
def agents(*commands: AgentCommand) -> Iterator[list[Agent]]:
    """Start an agent for each command; end them all."""
    with ExitStack() as stack:
        started = []
        for command in commands:
            stderr = stack.enter_context(tempfile.TemporaryFile())
            started.append(Agent(command, stderr))
            stack.callback(started[-1].stop)
        yield started


def measure(
    first: Agent,
    second: Agent,
    *,
    start_timeout: float = _START_TIMEOUT,
    patience: float = PATIENCE,
) -> Measurements:
    """Return what two hosts see of each other's files. Takes seconds; `patience` where caches do.

    `start_timeout` is for the second agent's first answer, in seconds: SLURM may let it wait.
    """
    measurements = Measurements(patience=patience)
    try:
        _meet(measurements, first, second, start_timeout)
        _measure_visibility(measurements, first, second)  # fails where the folder is not shared
        _measure_locks(measurements, first, second)
        _measure_appending(measurements, first, second)
        measurements.fsync_seconds = max(first.call("fsync_seconds"), second.call("fsync_seconds"))
        _measure_clocks(measurements, first, second)
        for agent in (second, first):
            agent.call("remove_files")
    except AgentFailed as problem:
        measurements.problem = str(problem)
    return measurements


def _meet(measurements: Measurements, first: Agent, second: Agent, timeout: float) -> None:
    for agent in (first, second):
        agent.request("host")
    hosts = first.answer(_START_TIMEOUT), second.answer(timeout)
    first.name, second.name = (host["name"] for host in hosts)
    measurements.hosts = first.name, second.name
    measurements.same_kernel = hosts[0]["kernel"] == hosts[1]["kernel"]


def _measure_locks(measurements: Measurements, first: Agent, second: Agent) -> None:
    for kind in KINDS_OF_LOCK:
        granted = first.call("try_lock", kind)
        measurements.locks[kind] = second.call("try_lock", kind) if granted == GRANTED else granted
        if granted == GRANTED:
            first.call("unlock", kind)
        if measurements.locks[kind] == REFUSED:
            measurements.release_seconds[kind] = second.call(
                "await_lock", kind, measurements.patience
            )


def _measure_visibility(measurements: Measurements, first: Agent, second: Agent) -> None:
    first.call("make_files")
    second.call("visible_changes")  # from now on it may answer from its caches
    first.call("change_files")
    measurements.visible_seconds = second.call("await_changes", measurements.patience)


def _measure_appending(measurements: Measurements, first: Agent, second: Agent) -> None:
    turns = [
        (agent, [f"{host} {turn} {line}" for line in range(_LINES)])
        for turn in range(_ROUNDS)
        for host, agent in enumerate((first, second))
    ]
    for agent in (first, second):
        agent.call("open_to_append")
    for agent, lines in turns:
        agent.call("append", lines)
    for agent in (first, second):
        agent.call("sync_appended")
    appended = {line for _, lines in turns for line in lines}
    measurements.appended_lines = len(appended & set(first.call("appended_lines"))), len(appended)


def _measure_clocks(measurements: Measurements, first: Agent, second: Agent) -> None:
    before, other, after = first.call("clock"), second.call("clock"), first.call("clock")
    measurements.clock_difference = other - (before + after) / 2
