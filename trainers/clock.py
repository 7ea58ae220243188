"""Where the time of a training goes."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

Phase = Literal["wait", "start", "data", "teacher", "student", "evaluate", "write"]

PHASES: tuple[Phase, ...] = ("wait", "start", "data", "teacher", "student", "evaluate", "write")
"""Decisions at rungs; loading and building; batches; the teacher; forward, backward and optimiser;
select, report and latency; checkpoints."""


class Clock:
    """Seconds by phase. On an accelerator they are when the arithmetic was asked for."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._seconds: defaultdict[Phase, float] = defaultdict(float)
        self._spared: float | None = 0.0

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Count the block's time to a phase."""
        start = perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += perf_counter() - start

    def spare(self, teacher: float | None, *, took: float) -> None:
        """Count what features spared.

        Args:
            teacher: Seconds that a teacher would have taken; None: nobody measured it, and what
                all of them spared is unknown.
            took: Seconds that it took to get them.
        """
        if self._spared is not None:
            self._spared = None if teacher is None else self._spared + teacher - took

    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return perf_counter() - self._start

    def columns(self) -> dict[str, float | None]:
        """Seconds by column name; those that were spared are no phase, and may be less than 0."""
        phases = {f"seconds/{phase}": self._seconds[phase] for phase in PHASES}
        return {**phases, "seconds_spared": self._spared}
