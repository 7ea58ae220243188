"""What the kernel tells of a lane while it trains: its memory and its processor time."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pandas as pd
import psutil

from kdsweep.sweep.lane_process import LANE, private_memory

LOOK_SECONDS = 0.1

LOOKS_OF_A_SEARCH = 5
"""After so many looks new lanes are searched for, which takes longer than a look."""


class Look(NamedTuple):
    """A lane at a moment."""

    at: float
    """Seconds since the epoch."""
    pid: int
    own_mb: float
    """What `resources.memory_gb` limits: resident memory without mapped files."""
    rss_mb: float
    processor_seconds: float
    """Since its process began."""


class Watch:
    """Looks at the lanes of a launch from another thread, for as long as it is entered."""

    def __init__(self, cache: Path) -> None:
        """Look at nothing yet.

        Args:
            cache: The cache folder of the launch, by which its lanes are known.
        """
        self._cache = str(cache)
        self._looks: list[Look] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()

    @property
    def looks(self) -> pd.DataFrame:
        """All looks, oldest first."""
        return pd.DataFrame(self._looks, columns=list(Look._fields))

    def _run(self) -> None:
        lanes: list[psutil.Process] = []
        for n in itertools.count():
            if self._is_over.wait(LOOK_SECONDS):
                return
            # The teacher may have had a lane of its own, and the trials' come later.
            if n % LOOKS_OF_A_SEARCH == 0:
                lanes = list(self._lanes())
            for lane in lanes:
                with contextlib.suppress(psutil.Error):
                    self._looks.append(look(lane))

    def _lanes(self) -> Iterator[psutil.Process]:
        # Whose children lanes are, is Ray's affair: they are looked for by name.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # The driver has the lane's module among its arguments, too.
                is_lane = process.cmdline()[1:3] == list(LANE[1:])
                if is_lane and process.environ().get("KDSWEEP_CACHE_DIR") == self._cache:
                    yield process


def look(process: psutil.Process) -> Look:
    """At a lane's process and all that it started."""
    with process.oneshot():
        used = process.cpu_times()
        rss = process.memory_info().rss
    own = private_memory(process.pid)
    return Look(time.time(), process.pid, own / 1e6, rss / 1e6, used.user + used.system)
