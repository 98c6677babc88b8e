"""Forks of a training that stop by themselves at a step, until a test has done what it does there.

A test that looks for a step from outside can come too late on a busy machine. See `prepare` in
forkserver.py.
"""

import os
import signal

import psutil

from testbed.waiting import wait_for


def at_step(step: int, rank: int = 0) -> tuple[str, ...]:
    """Return what prepares a fork to stop, as SIGSTOP stops a process, once `step` steps are done.

    Of several ranks `rank` stops, and the others wait for it within their next step.
    """
    return __name__, stop_at_step.__name__, str(step), str(rank)


def stop_at_step(step: str, rank: str) -> None:
    """Arrange it: the fork calls this."""
    from smt.engine.trainer import Trainer

    beat = Trainer._report_alive

    def beat_and_stop(trainer: Trainer) -> None:
        beat(trainer)
        if trainer.state.step >= int(step) and trainer.ranks.rank == int(rank):
            Trainer._report_alive = beat
            os.kill(os.getpid(), signal.SIGSTOP)

    Trainer._report_alive = beat_and_stop


def at_steps(*steps: int) -> tuple[str, ...]:
    """Return what prepares a fork of one rank to stop so once each of `steps` steps are done."""
    return __name__, stop_at_steps.__name__, *map(str, steps)


def stop_at_steps(*steps: str) -> None:
    """Arrange it: the fork calls this."""
    from smt.engine.trainer import Trainer

    beat, left = Trainer._report_alive, [int(step) for step in steps]

    def beat_and_stop(trainer: Trainer) -> None:
        beat(trainer)
        if left and trainer.state.step >= left[0]:
            del left[0]
            os.kill(os.getpid(), signal.SIGSTOP)

    Trainer._report_alive = beat_and_stop


def await_stop(process, said=lambda: "") -> None:
    """Return once `process` has stopped at its step."""

    def has_stopped() -> bool:
        assert process.poll() is None, f"it ended with {process.poll()} before its step: {said()}"
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

    wait_for(has_stopped, said, every=0.01)


def send(process, number: int) -> None:
    """Send a signal to a process that has stopped, and let it go on with that."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
