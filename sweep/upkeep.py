"""Keeps a store in order: its parts are merged while a sweep runs, and when a person asks."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from ..results.compaction import GRACE_SECONDS, Compaction
from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from .errors import StaleEpochError
from .lock import Lock, beating, take
from .words import count

log = logging.getLogger("kdsweep")

EVERY = 100
"""Attempts that end between two merges; fewer parts than this are read one by one in an instant."""

REMOVE_SECONDS = 60.0
"""Time between two looks for merged parts whose grace is over."""


class Compactor:
    """Merges what a running launch writes, in a thread of its own: nobody waits for it."""

    def __init__(self, sweep: Store, lock: Lock, *, running: Callable[[], Collection[str]]) -> None:
        """Prepare; it begins when it is entered.

        Args:
            sweep: The store.
            lock: Which this launch holds.
            running: Ids of the work that runs. Its parts are left alone: whoever speaks for a
                lost lane finds by the name of its row whether it had committed.
        """
        self._running = running
        self._lock = lock
        self._ended = 0
        self._due = threading.Event()
        self._due.set()
        self._is_over = False
        self._compaction = Compaction(sweep.folder, epoch=lock.epoch, fence=self._check)
        self._thread = threading.Thread(target=self._keep_merging, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._due.set()
        self._thread.join()

    def note(self) -> None:
        """Take in that an attempt has ended."""
        self._ended += 1
        if self._ended % EVERY == 0:
            self._due.set()

    def _keep_merging(self) -> None:
        while not self._is_over:
            self._due.clear()
            try:
                self._compaction.merge(at_least=EVERY, spare=self._running())
                self._compaction.collect()
            except _LeavingError:
                return
            except StaleEpochError:
                return
            except Exception:
                # Unmerged parts are as good as merged ones, only slower to read.
                log.exception("parts of the store stay unmerged for now")
            self._due.wait(REMOVE_SECONDS)

    def _check(self) -> None:
        if self._is_over:
            raise _LeavingError
        self._lock.check()


class _LeavingError(Exception):
    """The launch ends, and does not wait for what another pass can do as well."""


class Compacted(NamedTuple):
    """What `compact` has done to a store."""

    parts: int
    """That lay alone and now lie in a compact file."""
    removed: int
    """Files whose content lies in a compact file."""


def compact(
    folder: Path, *, tell: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Compacted:
    """Merge all parts of a store and remove what was merged, once readers have moved on.

    Raises:
        InputError: There is no sweep.
        SweepLockedError: A launch holds the sweep; it merges by itself.
    """
    sweep = Store(folder)
    check_sweep(sweep)
    with kept(sweep) as lock:
        sweep.remove_temporaries()
        compaction = Compaction(
            folder, epoch=lock.epoch, fence=lock.check, grace_seconds=GRACE_SECONDS
        )
        merged = compaction.merge(fan=2)
        collected = compaction.collect()
        removed = collected.files
        while collected.seconds_left is not None:
            tell(
                f"merged {count(merged.parts, 'part')}; the merged ones go in "
                f"{collected.seconds_left:.0f} s, when readers on every host know where they went"
            )
            sleep(collected.seconds_left + 0.1)
            collected = compaction.collect()
            removed += collected.files
    return Compacted(merged.parts, removed)


def check_sweep(sweep: Store) -> None:
    """Refuse a folder that is no sweep."""
    if not sweep.exists():
        mend = "Name the folder of a launch, such as runs/quickstart."
        raise InputError([Problem(str(sweep.folder), "is no sweep", mend)])


@contextmanager
def kept(sweep: Store) -> Iterator[Lock]:
    """Hold a sweep as a launch does, with a beat, to put its store in order.

    Raises:
        SweepLockedError: A launch holds it.
        DamagedSweepError: `sweep.json` cannot be read.
    """
    told = sweep.read_sweep()
    lock = take(sweep.locks_folder)
    try:
        with beating(lock):
            # From here on the store says this version: an older one would not see compact files.
            sweep.write_sweep(told)
            yield lock
    finally:
        lock.release()
