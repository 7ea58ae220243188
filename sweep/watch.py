"""A thread beside the executor: the beat of the lock, requests to drain, and the display."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Self

from .agenda import Agenda
from .budget import Meter
from .drain import Drain
from .failures import is_unwritable
from .lock import BEAT_SECONDS, Lock

log = logging.getLogger("kdsweep")

TICK_SECONDS = 0.25


class Watch:
    """Looks after a running launch until it is left."""

    def __init__(
        self,
        agenda: Agenda,
        lock: Lock,
        drain: Drain,
        meter: Meter,
        *,
        refresh: Callable[[], None],
    ) -> None:
        self._agenda = agenda
        self._lock = lock
        self._drain = drain
        self._meter = meter
        self._refresh = refresh
        self._over = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._look_after, daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._meter.tick(self._agenda.running)
        # On a full disk: how the launch ended is more than what it used in its last two seconds.
        with suppress(OSError):
            self._beat()

    def _beat(self) -> None:
        self._lock.beat(
            self._beats,
            self._agenda.running,
            used=asdict(self._meter.here),
            num_waiting=self._agenda.num_waiting,
            seconds_until_retry=self._agenda.seconds_until_retry,
        )
        self._beats += 1

    def _look_after(self) -> None:
        ticks_per_beat = round(BEAT_SECONDS / TICK_SECONDS)
        ticks = 0
        while not self._over.wait(TICK_SECONDS):
            ticks += 1
            try:
                self._meter.tick(self._agenda.running)
                if self._meter.spent is not None:
                    self._drain.ask("budget")
                self._drain.look()
                self._refresh()
                if ticks % ticks_per_beat == 0:
                    self._beat()
            except Exception as error:
                if is_unwritable(error):
                    self._drain.ask("unwritable", str(error))
                    continue
                # Without this thread there is no beat, and another host would take the sweep.
                log.exception("the watch over the launch goes on")
