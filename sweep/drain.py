"""How a launch is asked to leave.

By Ctrl-C, SIGTERM, a request in the store, a budget that is used up, or a newer launch.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

from .agenda import Agenda
from .errors import StaleEpochError
from .lock import Lock, drain_request

GRACE_SECONDS = 6.0
"""Time for lanes to checkpoint before the launch ends at once."""

Asked = Literal[
    "SIGINT",
    "SIGTERM",
    "stop",
    "budget",
    "overtaken",
    "cluster lost",
    "failures alike",
    "unwritable",
]


class Drain:
    """Whether and by whom a launch was asked to leave."""

    def __init__(self, agenda: Agenda, lock: Lock, tell: Callable[[str], None]) -> None:
        self._agenda = agenda
        self._lock = lock
        self._tell = tell
        self._since = 0.0
        self._ending = threading.Lock()
        self._is_over = False
        self.asked: Asked | None = None
        self.why: str | None = None
        """What a person should know of it, where the sweep itself was the reason."""

    def ask(self, by: Asked, why: str | None = None) -> None:
        """Start nothing more and have the lanes checkpoint; asking again changes nothing."""
        if self.asked is not None:
            return
        self.asked, self.why = by, why
        self._since = time.monotonic()
        self._agenda.drain()
        # On a full disk there may be no room for a name; then the lanes see that by themselves.
        with suppress(OSError):
            drain_request(self._lock.locks, self._lock.epoch).touch(mode=0o600)
        self._tell(
            f"{why or by}: nothing new is started, and what runs stops and keeps what it has "
            "trained so far; a second Ctrl-C ends it at once"
        )

    def look(self) -> None:
        """See whether a request lies in the store, a newer launch took over, or grace is over."""
        try:
            self._lock.check()
        except StaleEpochError:
            self.ask("overtaken")
        if drain_request(self._lock.locks, self._lock.epoch).exists():
            self.ask("stop")
        if self.asked is not None and time.monotonic() - self._since > GRACE_SECONDS:
            self._since = float("inf")
            with self._ending:
                if not self._is_over:
                    os.kill(os.getpid(), signal.SIGINT)

    def end(self) -> None:
        """Note that nothing runs any more: what is still put in order needs no grace."""
        with self._ending:
            self._is_over = True

    def lose(self, why: str) -> None:
        """Note that the cluster is gone: nobody is left to checkpoint anything."""
        self.asked = self.asked or "cluster lost"
        self._tell(why)


@contextmanager
def signals(drain: Drain, agenda: Agenda) -> Iterator[None]:
    """The first SIGINT or SIGTERM drains, the second raises KeyboardInterrupt.

    While nothing runs there is nothing to drain, and the first one raises too.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        again = drain.asked is not None
        drain.ask("SIGINT" if number == signal.SIGINT else "SIGTERM")
        if again or not agenda.running:
            raise KeyboardInterrupt

    # Signals reach the main thread alone; launched from another one, the caller decides.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        drain.end()
        for number, handler in before.items():
            signal.signal(number, handler)
