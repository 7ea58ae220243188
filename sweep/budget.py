"""What a sweep may use, and what its launches have used of it.

A launch adds up the time in which it works, by its own clock, and writes the sums beside its beat;
the mark of its orderly end keeps the last one. So nothing hangs on the clocks of hosts, or on rows
that a killed attempt never wrote: of a launch that was killed at most the last beat is missing.
"""

import json
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from ..search_spaces.grid import Budget

Limit = Literal["hours", "gpu_hours", "trials"]

HOUR = 3600.0


@dataclass(frozen=True)
class Used:
    """Time, summed over launches."""

    seconds: float = 0.0
    """In which launches worked."""
    gpu_seconds: float = 0.0
    """The same for each piece of work, times the GPUs that it was given."""

    def __add__(self, other: Self) -> "Used":
        """Of both together."""
        return Used(self.seconds + other.seconds, self.gpu_seconds + other.gpu_seconds)


def used_by_launches(locks: Path) -> Used:
    """What the launches so far have used; one that left no sum counts as nothing."""
    total = Used()
    for epoch in sorted(path.stem for path in locks.glob("[0-9]*.json")):
        for ending in ("released", "beat"):
            with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
                told = json.loads((locks / f"{epoch}.{ending}").read_bytes())
                total += Used(**told["used"])
                break
    return total


def trials_left(budget: Budget, *, ended: int) -> int | None:
    """How many trials more may end completed or stopped; None: no limit."""
    return None if budget.trials is None else max(0, budget.trials - ended)


def say(limit: Limit, budget: Budget) -> str:
    """What is used up, as a person reads it."""
    value = {"hours": budget.hours, "gpu_hours": budget.gpu_hours, "trials": budget.trials}[limit]
    return f"`budget.{limit}: {value:g}`"


class Meter:
    """Adds up what a launch uses while it runs."""

    def __init__(
        self,
        budget: Budget,
        *,
        before: Used,
        gpus: Callable[[str], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at zero.

        Args:
            budget: Of the sweep.
            before: What its earlier launches have used.
            gpus: How many GPUs a piece of work is given, by its id.
            clock: In seconds; it never goes back.
        """
        self._budget = budget
        self._before = before
        self._gpus = gpus
        self._clock = clock
        self._last = clock()
        self.here = Used()
        """What this launch has used."""

    def tick(self, running: Collection[str]) -> None:
        """Count the time since the last tick, in which `running` ran."""
        now = self._clock()
        passed, self._last = now - self._last, now
        self.here += Used(passed, passed * sum(map(self._gpus, running)))

    @property
    def spent(self) -> Literal["hours", "gpu_hours"] | None:
        """The limit on time that is reached."""
        used = self._before + self.here
        if self._budget.hours is not None and used.seconds >= self._budget.hours * HOUR:
            return "hours"
        if self._budget.gpu_hours is not None and used.gpu_seconds >= self._budget.gpu_hours * HOUR:
            return "gpu_hours"
        return None
