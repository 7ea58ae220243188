"""Asking a running launch to leave, from any host that sees its store: for `kdsweep stop`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from .drain import GRACE_SECONDS
from .errors import NothingMatchesError
from .lock import describe, drain_request, is_released, is_running, newest_epoch, read_holder

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class RunningLaunch:
    """The launch that holds a sweep, as far as can be seen at once."""

    locks: Path
    epoch: int

    def __str__(self) -> str:
        return describe(self.locks, self.epoch)


def running_launch(folder: Path) -> RunningLaunch:
    """Whom requests go to.

    Raises:
        InputError: There is no sweep.
        NothingMatchesError: No launch is running.
    """
    sweep = Store(folder)
    if not sweep.exists():
        raise InputError([Problem(str(folder), "is no sweep", "Name the folder of a launch.")])
    locks = sweep.locks_folder
    epoch = newest_epoch(locks)
    if not epoch or is_released(locks, epoch):
        raise NothingMatchesError("no launch is running")
    launch = RunningLaunch(locks, epoch)
    holder = read_holder(locks, epoch)
    if holder is not None and holder.is_here and not holder.is_alive_here():
        raise NothingMatchesError(f"no launch is running: {launch} was killed")
    return launch


def ask_to_stop(
    folder: Path,
    *,
    wait: bool,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask the launch that holds a sweep to checkpoint what it runs and to leave.

    Args:
        folder: The sweep's.
        wait: Return only once the launch has left.
        tell: Hears what happens.
        sleep: How to wait.

    Raises:
        InputError: There is no sweep.
        NothingMatchesError: No launch is running.
    """
    launch = running_launch(folder)
    locks, epoch = launch.locks, launch.epoch
    drain_request(locks, epoch).touch(mode=0o600)
    tell(
        f"{launch} is asked to stop: it starts nothing new, checkpoints what runs and leaves "
        f"within about {GRACE_SECONDS:.0f} seconds"
    )
    if not wait:
        return
    while is_running(locks, epoch, sleep=sleep):
        sleep(LOOK_SECONDS)
    has_left = "has left" if is_released(locks, epoch) else "is gone without an orderly end"
    tell(f"{launch} {has_left}; go on with: kdsweep resume {folder}")
