"""Starting the ranks of a training as a step of SLURM, and killing them where they run."""

import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.cluster.slurm import Slurm
from smt.errors import UserError
from smt.proof.launch import PeerTimeout, is_error, last_message, lines_of, rank_log, without_job
from snakemake_executor_plugin_submitit.slurm import is_slurm_variable

log = logging.getLogger(__name__)

PROCESS_MB = 1000
"""Memory of a training process or a data worker: a demo's take 820 and 460 as SLURM counts."""

_QUEUED = 10.0
"""Seconds after which a message says that a step waits for its nodes."""

_ANSWER = 10.0
"""Seconds that a rank has to answer about its data workers, and an attempt to end when closed."""

_CANCEL = 60.0
"""Seconds that SLURM has to end a step: it waits for processes that ignore SIGTERM."""

_JOB = "SLURM_JOB_ID"
"""Variable with the id of the job that this is in."""

_OPTIONS = ("ACCOUNT", "CONSTRAINT", "GPUS_PER_NODE", "MEM_PER_NODE", "PARTITION", "QOS",
          "RESERVATION", "TIMELIMIT")  # fmt: skip
"""Options that may come from the environment, as SLURM_... or SBATCH_..., outside of a job."""

_OF_SRUN = re.compile(r"^srun: (error|fatal): ")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of SLURM for each attempt; within a job, no more than nodes and CPUs."""

    nodes: int
    """Ranks are spread evenly over them; one rank alone gets one node."""
    cpus: int
    """Of each rank."""
    memory_mb: int
    """Of each rank, with its data workers."""
    minutes: int
    """Time limit."""
    partition: str | None = None
    account: str | None = None


def ranks_per_node(ranks: int, nodes: int) -> int:
    """Return the ranks on each node.

    Raises:
        UserError: they cannot be spread evenly.
    """
    if ranks % nodes:
        raise UserError(
            f"--nodes {nodes}: {ranks} process{'es' if ranks > 1 else ''} cannot be spread evenly; "
            f"give a multiple: --ranks {nodes * (ranks // nodes + 1)}"
        )
    return ranks // nodes


class SlurmLauncher:
    """Starts the ranks by `srun`: as a job of their own, or as a step of the job that this is in.

    A job of their own is asked for as in `Request`; SLURM_TIMELIMIT, SLURM_MEM_PER_NODE,
    SLURM_GPUS_PER_NODE and the like say otherwise, as does SBATCH_... of each. A step has all of
    its job's memory and GPUs. Results have to lie in a folder that every node sees.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"launcher": "slurm", "nodes": self._request.nodes}

    def start(self, arguments: Sequence[str], ranks: int, log: Path) -> "SlurmAttempt":
        """Start `smt ARGUMENTS` on `ranks` ranks; return once SLURM has given them their nodes.

        Rank r writes to LOG-rankR.log, `srun` to LOG-srun.log.

        Raises:
            UserError: ranks that cannot be spread evenly, no `srun`, or SLURM refuses.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self._srun(arguments, ranks, log)
        attempt = SlurmAttempt(process, ranks, log)
        try:
            attempt.begin()
        except BaseException:
            attempt.close()
            raise
        return attempt

    def _srun(self, arguments: Sequence[str], ranks: int, log: Path) -> "subprocess.Popen[bytes]":
        command = [
            *_command(self._request, ranks, os.environ),
            sys.executable, "-m", "smt.proof.rank", str(log), *arguments,
        ]  # fmt: skip
        with _srun_log(log).open("wb") as file:
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env=_environment(self._request, ranks, os.environ),
                    start_new_session=True,  # Ctrl-C is for us, and we end it
                )
            except OSError as error:
                raise UserError(
                    f"--launcher slurm: srun cannot be started: {error.strerror}; put SLURM's "
                    "programs on PATH, or prove on this machine: --launcher local"
                ) from None


class SlurmAttempt:
    """Ranks that run under one `srun`; see `Attempt`."""

    def __init__(self, srun: "subprocess.Popen[bytes]", ranks: int, log: Path) -> None:
        self._srun, self._ranks, self._log = srun, ranks, log
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._peers = PeerTimeout()
        self._step: str | None = None
        """JOB.STEP, once it runs."""
        self._meetings: dict[int, tuple[str, int]] = {}
        """Address and free port of each rank that has been started."""
        self._places: dict[int, tuple[str, int]] = {}
        """Node of each rank whose training has been started, and the training's process id."""
        self._codes: dict[int, int] = {}
        self._had_worker: bool | None = None
        self._over = False
        threading.Thread(target=self._listen, name="srun", daemon=True).start()

    def begin(self) -> None:
        """Wait until every rank has its place on a node, and let them meet at that of rank 0.

        Raises:
            UserError: SLURM refuses, or a rank cannot begin.
        """
        if not self._receive(_QUEUED) and not self._over:
            log.info("waiting for SLURM's nodes; squeue --me shows why")
        # What is sent reaches the ranks that are there: all of them have to be.
        while len(self._meetings) < self._ranks and not self._over:
            self._receive(_QUEUED)
        if self._over:
            raise UserError(f"--launcher slurm: {self._refusal()}; nodes and partitions: sinfo")
        self._send(meet=self._meetings[0])

    def poll(self) -> list[int] | None:
        """Return the exit codes once the step has ended; ranks that go on too long are ended.

        A rank that left no code, as its node failed or SLURM killed it, counts as killed.
        """
        while self._receive(0):
            pass
        if self._over:
            return [self._codes.get(rank, -signal.SIGKILL) for rank in range(self._ranks)]
        if self._codes and (number := self._peers.next_signal()) is not None:
            self.kill(number, None)
        return None

    def kill(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to one rank, or to all of them; it takes some milliseconds."""
        self._send(kill=number, rank=rank)

    def kill_worker(self, rank: int) -> bool:
        """Kill a data worker of a rank by SIGKILL; return whether it had one."""
        self._had_worker = None
        self._send(kill_worker=rank)
        deadline = time.monotonic() + _ANSWER
        while self._had_worker is None and not self._over and time.monotonic() < deadline:
            self._receive(_ANSWER)
        return bool(self._had_worker)

    def place(self, rank: int) -> dict[str, str]:
        """Return where a rank whose training has been started runs: node, process, job and step."""
        assert self._step is not None
        node, pid = self._places[rank]
        job, _, _ = self._step.partition(".")
        return {
            "SMT_PROOF_NODE": node,
            "SMT_PROOF_PID": str(pid),
            "SMT_PROOF_JOB": job,
            "SMT_PROOF_JOB_STEP": self._step,
        }

    def close(self) -> None:
        """End whatever of it still runs, and return when it is gone."""
        assert self._srun.stdin is not None
        with suppress(OSError):
            self._srun.stdin.close()  # at which each rank kills its training
        if self._step is None:
            self._srun.terminate()  # it waits for nodes
        if not self._ends_within(_ANSWER):
            self._cancel()

    def last_message(self) -> str:
        """Return the last line that any rank wrote, or `srun`, an error if there was one."""
        logs = [rank_log(self._log, rank) for rank in range(self._ranks)]
        return last_message([*logs, _srun_log(self._log)])

    def _listen(self) -> None:
        assert self._srun.stdout is not None
        with self._srun.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _receive(self, timeout: float) -> bool:
        """Take in a line from a rank; return whether there was one within `timeout` seconds."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return False
        if line is None:
            self._over = True
        else:
            self._handle(line)
        return True

    def _handle(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            rank = event["rank"]
        except (ValueError, TypeError, KeyError):
            return  # something that the site's prolog prints
        if "step" in event:
            self._step, self._meetings[rank] = event["step"], (event["address"], event["port"])
        elif "pid" in event:
            self._places[rank] = event["node"], event["pid"]
        elif "worker" in event:
            self._had_worker = event["worker"]
        elif "code" in event:
            self._codes[rank] = event["code"]

    def _send(self, **command: Any) -> None:
        assert self._srun.stdin is not None
        with suppress(BrokenPipeError):  # the step has ended
            self._srun.stdin.write(f"{json.dumps(command)}\n".encode())
            self._srun.stdin.flush()

    def _refusal(self) -> str:
        """Return the errors of `srun` in one line: the first, and the last, which sums up."""
        lines = lines_of(_srun_log(self._log))
        errors = [line for line in lines if is_error(line) or "fatal" in line] or lines[-1:]
        messages = [_OF_SRUN.sub("", line) for line in (*errors[:1], *errors[-1:])]
        return "; ".join(dict.fromkeys(messages)) or "srun ended without a message"

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._srun.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _cancel(self) -> None:
        """Have SLURM end what does not end by itself: the step, or the job that was made for it."""
        if self._step is not None:
            job, _, _ = self._step.partition(".")
            what = self._step if _JOB in os.environ else job
            Slurm().ask("scancel", what)
        if not self._ends_within(_CANCEL):
            self._srun.kill()
            self._srun.wait()
            log.warning("step %s does not end; see: squeue --steps", self._step)


def _srun_log(log: Path) -> Path:
    return log.with_name(f"{log.name}-srun.log")


def _command(request: Request, ranks: int, environment: Mapping[str, str]) -> list[str]:
    nodes = min(request.nodes, ranks)
    command = [
        "srun", f"--nodes={nodes}", f"--ntasks={ranks}",
        f"--ntasks-per-node={ranks_per_node(ranks, nodes)}", "--distribution=block",
        f"--cpus-per-task={request.cpus}", "--mpi=none", "--export=ALL",
        # However a training ends, `smt.proof.rank` ends with 0, unless it cannot begin.
        "--kill-on-bad-exit=1",
    ]  # fmt: skip
    if (job := environment.get(_JOB)) is not None:
        # Shared with whatever step this may be in itself; and all memory that the job has.
        return [*command, f"--jobid={job}", "--overlap", "--mem=0"]
    command.append("--job-name=smt-prove")
    command += [f"--partition={request.partition}"] if request.partition else []
    command += [f"--account={request.account}"] if request.account else []
    return command


def _environment(request: Request, ranks: int, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for `srun`, without the variables of a job that this is in."""
    environment = {
        name: value for name, value in without_job(given).items() if not is_slurm_variable(name)
    }
    if _JOB in given:
        return environment
    per_node = ranks_per_node(ranks, min(request.nodes, ranks))
    options = {
        "SLURM_TIMELIMIT": str(request.minutes),
        "SLURM_MEM_PER_NODE": str(per_node * request.memory_mb),
    }
    for option in _OPTIONS:
        for name in (f"SBATCH_{option}", f"SLURM_{option}"):
            if name in given:
                options[f"SLURM_{option}"] = given[name]
    return {**environment, **options}
