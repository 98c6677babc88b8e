"""How long a recorded recipe trains: each kind of schedule states it by keys of its own.

Records are read as the JSON that they are, not as classes of `smt.config`: what was trained with
older params has to be readable too.
"""

from collections.abc import Mapping
from typing import Any


def epochs(schedule: Mapping[str, Any]) -> int:
    """Return the epochs of a schedule; a segmenter's are intervals of so many steps.

    Raises:
        KeyError: it states neither epochs nor steps and their interval.
    """
    if "interval" in schedule:
        return int(schedule["steps"]) // max(int(schedule["interval"]), 1)
    return int(schedule["epochs"])


def length(schedule: Mapping[str, Any]) -> str:
    """Return a schedule's length in the unit that its recipe states it in.

    Raises:
        KeyError: as `epochs` does.
    """
    if "interval" in schedule:
        return f"steps: {schedule['steps']}, evaluated every {schedule['interval']}"
    return f"epochs: {schedule['epochs']}"
