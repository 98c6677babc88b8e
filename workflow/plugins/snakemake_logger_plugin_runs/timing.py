"""Estimate of the time left, from the durations of jobs of the same rules."""

from collections import defaultdict
from collections.abc import Mapping


class TimeLeft:
    """Durations of the jobs of a start of Snakemake, by rule; `counts` says how many there are."""

    def __init__(self, counts: Mapping[str, int], started: float) -> None:
        self._left = dict(counts)
        self._durations: dict[str, list[float]] = defaultdict(list)
        self._started = started

    def add_finished(self, rule: str, seconds: float) -> None:
        """Add a job of `rule` that is done, and its duration in seconds."""
        self._left[rule] = max(self._left.get(rule, 0) - 1, 0)
        self._durations[rule].append(seconds)

    def seconds(self, now: float) -> float | None:
        """Return the seconds until all jobs are done; None before the first job has ended.

        A job of a rule of which none has ended is taken to last as long as the mean of all that
        have. Jobs go on side by side as much as they have so far.
        """
        worked = sum(map(sum, self._durations.values()))
        if not worked or now <= self._started:
            return None
        means = {
            rule: sum(durations) / len(durations) for rule, durations in self._durations.items()
        }
        unknown = worked / sum(map(len, self._durations.values()))
        work = sum(count * means.get(rule, unknown) for rule, count in self._left.items())
        side_by_side = max(worked / (now - self._started), 1.0)
        return work / side_by_side
