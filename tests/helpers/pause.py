"""Trainings that pause at a step, by SIGSTOP to themselves, so that a test can act there.

A test that polls for a step can come too late on a busy machine. See `prepare` in forkserver.py.
"""

import os
import signal

import psutil

from testbed.waiting import wait_for


def at_step(step: int, rank: int = 0) -> tuple[str, ...]:
    """Return the `prepare` of a fork that stops itself with SIGSTOP after `step` steps.

    Of several ranks only `rank` stops, and the others wait for it in their next step.
    """
    return __name__, stop_at_step.__name__, str(step), str(rank)


def stop_at_step(step: str, rank: str) -> None:
    """Patch the trainer, in the fork, to stop at a step."""
    from smt.engine.trainer import Trainer

    report_alive = Trainer._report_alive

    def report_and_stop(trainer: Trainer) -> None:
        report_alive(trainer)
        if trainer.state.step >= int(step) and trainer.ranks.rank == int(rank):
            Trainer._report_alive = report_alive
            os.kill(os.getpid(), signal.SIGSTOP)

    Trainer._report_alive = report_and_stop


def at_steps(*steps: int) -> tuple[str, ...]:
    """Return the `prepare` of a fork of one rank that stops after each of `steps`."""
    return __name__, stop_at_steps.__name__, *map(str, steps)


def stop_at_steps(*steps: str) -> None:
    """Patch the trainer, in the fork, to stop at several steps."""
    from smt.engine.trainer import Trainer

    report_alive, remaining = Trainer._report_alive, [int(step) for step in steps]

    def report_and_stop(trainer: Trainer) -> None:
        report_alive(trainer)
        if remaining and trainer.state.step >= remaining[0]:
            del remaining[0]
            os.kill(os.getpid(), signal.SIGSTOP)

    Trainer._report_alive = report_and_stop


def await_stop(process, read_log=lambda: "") -> None:
    """Wait until `process` has stopped at its step."""

    def has_stopped() -> bool:
        assert process.poll() is None, (
            f"it ended with {process.poll()} before its step: {read_log()}"
        )
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

    wait_for(has_stopped, read_log, every=0.01)


def send(process, number: int) -> None:
    """Send a signal to a stopped process, and SIGCONT so that it handles it."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
