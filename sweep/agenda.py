"""What is still to do, in which order, and what a failure means for it: pure bookkeeping."""

import heapq
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .failures import wait_seconds
from .work import Outcome

NO_WAITS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Item:
    """A planned piece of work and what must be completed before it."""

    id: str
    depends_on: tuple[str, ...] = ()


More = Callable[[Collection[str]], Sequence[Item]]
"""Gives further items when nothing is left to start; is told the ids of what will not be
completed."""


def no_more(_: Collection[str]) -> Sequence[Item]:
    """All there is to do is known from the beginning."""
    return ()


class Agenda:
    """Items by what has become of them; safe to ask from several threads."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        allowed: Callable[[str], int],
        failures: Mapping[str, Counter[str]],
        unusable: Collection[str] = (),
        waits: Mapping[str, float] = NO_WAITS,
        wait: Callable[[str, str, int], float] = wait_seconds,
        at_first: int | None = None,
        more: More = no_more,
        clock: Callable[[], float] = time.monotonic,
        counted: Collection[str] = (),
        most: int | None = None,
    ) -> None:
        """Make an agenda of all that is planned and not completed.

        Args:
            items: In the order in which they should run. What an item depends on and is not
                listed counts as completed.
            allowed: How many failures of a class are tried again.
            failures: Failures so far that count against those retries, by item and class.
            unusable: Items that are completed, and nothing may build on.
            waits: Seconds until items that failed before may be tried again.
            wait: The same for a failure to come, from the item's id, the class, and which of its
                failures of that class it is, counted from 1.
            at_first: Most items at once until `open_up`; None: no limit.
            more: Asked for further items when one could start, none is ready, and none waits for
                another that may yet be completed.
            clock: Seconds that never jump.
            counted: Items of which at most `most` may end other than failed or interrupted.
            most: None for as many as there are.
        """
        self._lock = threading.RLock()
        self._allowed = allowed
        self._wait = wait
        self._at_first = at_first
        self._clock = clock
        now = clock()
        self._due = {id: now + seconds for id, seconds in waits.items() if seconds > 0}
        self._failures = defaultdict(Counter, {id: Counter(n) for id, n in failures.items()})
        self._unusable = frozenset(unusable)
        self._more = more
        self._ids: list[str] = []
        self._place: dict[str, int] = {}
        self._awaits: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        # Not copied: it grows with `more`.
        self._counted = counted
        self._most = most
        self._places: set[str] = set()
        """Counted items that run, or have ended other than failed or interrupted."""
        self._ready: list[int] = []
        self._waiting: list[tuple[float, int]] = []
        self._draining = False
        self.running: list[str] = []
        self.completed: list[str] = []
        self.stopped: list[str] = []
        self.failed: list[str] = []
        self.interrupted: list[str] = []
        self._add(items)

    def take(self) -> str | None:
        """The next item to run; None when none is ready, and for ever once draining.

        While every place is taken nothing starts: not even what others wait for, since they may
        never come to run.
        """
        with self._lock:
            if self.is_at_limit or not self._has_ready() or self._is_crowded:
                return None
            id = self._ids[heapq.heappop(self._ready)]
            self.running.append(id)
            if id in self._counted:
                self._places.add(id)
            return id

    def settle(self, id: str, outcome: Outcome, *, is_usable: bool = True) -> None:
        """Book the outcome of a running item: release what waited for it, or try it again.

        Args:
            id: The item.
            outcome: What came of it.
            is_usable: False for a completed item that nothing may build on.
        """
        with self._lock:
            self.running.remove(id)
            if outcome.status not in ("completed", "stopped"):
                self._places.discard(id)
            match outcome.status:
                case "completed" if is_usable:
                    self.completed.append(id)
                    self._release(id)
                case "completed":
                    self.failed.append(id)
                case "stopped":
                    self.stopped.append(id)
                case "failed":
                    kind = outcome.failure_class or "error"
                    self._failures[id][kind] += 1
                    if self._is_used_up(id):
                        self.failed.append(id)
                    else:
                        self._due[id] = self._clock() + self._wait(
                            id, kind, self._failures[id][kind]
                        )
                        self._offer(id)
                case "interrupted" if not self._draining:
                    self._offer(id)
                case "interrupted":
                    self.interrupted.append(id)
                case "overtaken" | "unwritable":
                    self.interrupted.append(id)
                    self._draining = True

    def drain(self) -> None:
        """Start nothing more."""
        with self._lock:
            self._draining = True

    def open_up(self) -> None:
        """From now on as many items run at once as there is room for."""
        with self._lock:
            self._at_first = None

    @property
    def is_draining(self) -> bool:
        """Whether nothing more will be started."""
        return self._draining

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, nothing can start, now or later, and there is no more."""
        with self._lock:
            can_start = not self.is_at_limit and (self._has_ready() or bool(self._waiting))
            return not self.running and (self._draining or not can_start)

    @property
    def is_at_limit(self) -> bool:
        """Whether as many counted items as may end well have done so or are running."""
        return self._most is not None and len(self._places) >= self._most

    @property
    def num_waiting(self) -> int:
        """How many items that failed wait for the time at which they are tried again."""
        with self._lock:
            self._wake()
            return len(self._waiting)

    @property
    def seconds_until_retry(self) -> float | None:
        """Until the first of what waits is tried again."""
        with self._lock:
            self._wake()
            return self._waiting[0][0] - self._clock() if self._waiting else None

    def seconds_until_due(self) -> float | None:
        """Until an item can be taken, as far as time decides: 0 if one can now, None if none."""
        with self._lock:
            if self._draining or self.is_at_limit:
                return None
            return 0.0 if self._has_ready() else self.seconds_until_retry

    def waits_for(self, id: str) -> float | None:
        """Seconds until an item that failed is tried again; None where it waits for no time."""
        with self._lock:
            dues = (due for due, place in self._waiting if self._ids[place] == id)
            due = next(dues, None)
            return None if due is None else max(0.0, due - self._clock())

    @property
    def blocked(self) -> list[str]:
        """Items that wait for something that failed, or for what waits for that."""
        with self._lock:
            # A dictionary for its order: a look at each, however many are blocked.
            found: dict[str, None] = {}
            reached = list(self.failed)
            while reached:
                waiting = [id for id in self._dependents[reached.pop()] if id not in found]
                found |= dict.fromkeys(waiting)
                reached += waiting
            return list(found)

    @property
    def settled(self) -> set[str]:
        """Items of which this launch has nothing more to do."""
        with self._lock:
            return {*self.completed, *self.stopped, *self.failed, *self.blocked}

    @property
    def ids(self) -> Sequence[str]:
        """All items, in their order."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def _is_crowded(self) -> bool:
        return self._at_first is not None and len(self.running) >= self._at_first

    def _add(self, items: Sequence[Item]) -> None:
        """Take in items behind those there are; what they depend on may be among them."""
        for item in items:
            self._place[item.id] = len(self._ids)
            self._ids.append(item.id)
        completed = set(self.completed)
        for item in items:
            awaited = {id for id in item.depends_on if id in self._place and id not in completed}
            self._awaits[item.id] = awaited
            for other in awaited:
                self._dependents[other].append(item.id)
            if item.id in self._unusable or self._is_used_up(item.id):
                self.failed.append(item.id)
            elif not awaited:
                self._offer(item.id)

    def _has_ready(self) -> bool:
        """Whether an item is ready and may start; asks for more where nothing is left to wait for.

        Asking while others wait for what runs would choose without what it is about to say.
        """
        self._wake()
        if self._draining:
            return False
        while self._more is not no_more and not (
            self._ready or self._is_crowded or self._awaits_any()
        ):
            items = self._more([*self.failed, *self.blocked, *self.stopped])
            if not items:
                break
            # Of what is new all may have failed before, with its retries used up.
            self._add(items)
        return bool(self._ready)

    def _awaits_any(self) -> bool:
        """Whether an item waits for another that may yet be completed."""
        blocked = set(self.blocked)
        return any(awaited and id not in blocked for id, awaited in self._awaits.items())

    def _offer(self, id: str) -> None:
        due = self._due.pop(id, None)
        if due is None:
            heapq.heappush(self._ready, self._place[id])
        else:
            heapq.heappush(self._waiting, (due, self._place[id]))

    def _wake(self) -> None:
        """Make ready what has waited long enough."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            heapq.heappush(self._ready, heapq.heappop(self._waiting)[1])

    def _release(self, id: str) -> None:
        for dependent in self._dependents[id]:
            self._awaits[dependent].discard(id)
            if not self._awaits[dependent] and not self._is_used_up(dependent):
                self._offer(dependent)

    def _is_used_up(self, id: str) -> bool:
        return any(count > self._allowed(kind) for kind, count in self._failures[id].items())
