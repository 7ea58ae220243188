"""What a person sees while a sweep runs: a live block on a terminal, quiet lines elsewhere."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..results.fingerprint import cause
from ..results.status import work_left
from .agenda import Agenda
from .words import clock, count, printable
from .work import Outcome, Work

QUIET_SECONDS = 30.0


_UNPROPOSED = "unproposed"
"""Stands for a trial that a search may still propose."""


class Progress:
    """Counts, rate, time left, the best student so far and the last failures."""

    def __init__(
        self,
        agenda: Agenda,
        console: Console,
        *,
        done_before: int,
        names: Mapping[str, str],
        others: Mapping[str, str],
        flops: Mapping[str, float | None],
        unproposed: Callable[[], int] = int,
        quiet: bool = False,
    ) -> None:
        """Show an agenda.

        Args:
            agenda: What is run.
            console: Where to; standard error.
            done_before: Trials that an earlier launch completed or stopped.
            names: How each piece of work is called.
            others: What of it is no trial, and what it is; it is told apart and not counted.
            flops: Operations of each piece of work.
            unproposed: How many trials a search may still propose.
            quiet: Show nothing at all but failures.
        """
        self._agenda = agenda
        self._console = console
        self._done_before = done_before
        self._names = names
        self._others = others
        self._flops = flops
        self._unproposed = unproposed
        self._quiet = quiet
        self._started = time.monotonic()
        self._last_line = self._started
        self._trials_since = self._started
        """When the last work of another kind was done: it says nothing of a trial's pace."""
        self._trials_ended: list[str] = []
        self._ended: Counter[str] = Counter()
        self._best: tuple[float, str] | None = None
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif not self._quiet:
            self._console.print(self._line(), highlight=False, markup=False)

    def note(self, work: Work, outcome: Outcome) -> None:
        """Take in how an attempt ended."""
        self._ended[outcome.status] += 1
        name = self._names[work.id]
        score = outcome.values.get("select/primary/best")
        if work.what == "trial" and outcome.status == "completed" and isinstance(score, float):
            self._best = max(self._best or (score, name), (score, name))
        if work.what == "trial":
            self._trials_ended.append(work.id)
        elif outcome.status == "completed":
            self._trials_since = time.monotonic()
            if work.what == "teacher" and not self._quiet:
                self._tell(
                    f"teacher {name}: select {outcome.values['select/primary']:.4f}, "
                    f"report {outcome.values['report/primary']:.4f}"
                )
        if outcome.status == "failed":
            told = f"{work.what} {work.id} ({name}): {cause(outcome.error or '')}"
            wait = self._agenda.waits_for(work.id)
            again = "" if wait is None else f"; tried again in {clock(wait)}"
            self._tell(f"{outcome.failure_class}: {told}{again}", style="red")

    def refresh(self) -> None:
        """Draw again, or print a line when it is time for one."""
        if self._live is not None:
            self._live.update(self._block())
        elif not self._quiet and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(self._line(), highlight=False, markup=False)

    def tell(self, message: str) -> None:
        """A line of its own, above the live block."""
        self._tell(message)

    def _tell(self, message: str, style: str = "") -> None:
        self._console.print(Text(printable(message), style=style), highlight=False)

    def _trials(self, ids: Iterable[str]) -> list[str]:
        return [id for id in ids if id not in self._others]

    @property
    def _done(self) -> int:
        agenda = self._agenda
        return self._done_before + len(self._trials([*agenda.completed, *agenda.stopped]))

    @property
    def _total(self) -> int:
        return self._done_before + len(self._trials(self._agenda.ids)) + self._unproposed()

    def _line(self) -> str:
        agenda = self._agenda
        parts = [f"{self._done}/{count(self._total, 'trial')}"]
        # What is running changes while it is looked at.
        running = list(agenda.running)
        parts += [
            f"{self._others[id]} {self._names[id]} is being prepared"
            for id in running
            if id in self._others
        ]
        if trials := self._trials(running):
            others = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
            parts.append(f"running {self._names[trials[0]]}{others}")
        if agenda.stopped:
            parts.append(f"{len(agenda.stopped)} of them stopped early")
        if agenda.failed:
            parts.append(f"{len(agenda.failed)} failed")
        if waiting := agenda.num_waiting:
            parts.append(f"{waiting} waiting to be tried again")
        parts.append(f"{clock(time.monotonic() - self._started)} elapsed")
        if (left := self._seconds_left()) is not None:
            parts.append(f"about {clock(left)} left")
        if self._best is not None:
            parts.append(f"best on select {self._best[0]:.4f} ({self._best[1]})")
        return printable(", ".join(parts))

    def _seconds_left(self) -> float | None:
        if not self._trials_ended or self._agenda.is_draining:
            return None
        agenda = self._agenda
        settled = agenda.settled
        waiting = [id for id in self._trials(agenda.ids) if id not in settled]
        # Of these nobody knows the operations, so work is counted by number then.
        waiting += [_UNPROPOSED] * self._unproposed()
        if not waiting:
            return None
        elapsed = time.monotonic() - self._trials_since
        return elapsed * work_left(self._trials_ended, waiting, self._flops)

    def _block(self) -> Group:
        agenda = self._agenda
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(1, self._total), completed=self._done, width=30),
            Text(self._line()),
        )
        running = [
            Text(printable(f"  running {id}  {self._names[id]}"), style="dim")
            for id in agenda.running
        ]
        return Group(bar, *running[:8])
