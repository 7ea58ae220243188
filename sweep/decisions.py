"""Decisions at rungs in the store: `decisions/<epoch>.jsonl`, one decision a line.

The holder of the sweep's lock alone writes, and a decision counts once its line is on the disk.
Lanes on any host, and later launches, read. A line that was not written to its end is no decision.
"""

import errno
import logging
import math
import os
import re
import time
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path

from pydantic import ValidationError

from ..results.files import sync
from .early_stopping import Decision

log = logging.getLogger("kdsweep")

FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 2.0
"""Between two looks of a lane for a decision; each wait is twice the one before."""

_FILE = re.compile(r"(\d{6})\.jsonl")


def read_decisions(folder: Path) -> tuple[Decision, ...]:
    """All decisions of a sweep, in the order of their numbers."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found: list[Decision] = []
    begun = math.inf
    for name in sorted(filter(_FILE.fullmatch, names), reverse=True):
        # A launch that was overtaken may have written after the next one had read.
        valid = [each for each in _read(folder / name) if each.number < begun]
        begun = valid[0].number if valid else begun
        found = [*valid, *found]
    return tuple(found)


def wait_for_decision(
    folder: Path,
    id: str,
    *,
    epoch: int,
    rung: float,
    ask: Callable[[], None],
    stop: Callable[[], bool],
    beat: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Decision | None:
    """What this launch has decided of a trial at a rung; None if `stop` becomes true before.

    Args:
        folder: Of the decisions.
        id: Of the trial.
        epoch: Of the launch.
        rung: Its share.
        ask: Tells the launch that the trial stands there; called unless it knows already.
        stop: Whether the lane is asked to leave.
        beat: Called between two looks: whoever waits is alive.
        sleep: Waits for some seconds.
    """
    file, is_asked, wait = _file(folder, epoch), False, FIRST_WAIT_SECONDS
    while (found := _find(file, id, rung)) is None:
        if not is_asked:
            ask()
            is_asked = True
            continue
        if stop():
            return None
        beat()
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
    return found


class DecisionLog:
    """Where a launch writes what it decides."""

    def __init__(self, folder: Path, *, epoch: int, fence: Callable[[], None]) -> None:
        """Write nothing yet.

        Args:
            folder: Of the decisions.
            epoch: Of the launch.
            fence: Called before each decision; whatever it raises forbids it.
        """
        self._file = _file(folder, epoch)
        self._fence = fence

    def append(self, decision: Decision) -> None:
        """Write a decision; it is on the disk, or there is none."""
        self._fence()
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        line = decision.model_dump_json().encode() + b"\n"
        is_new = not self._file.exists()
        with self._file.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                _write_whole(file, line)
                os.fsync(file)
            except OSError:
                file.truncate(end)
                raise
        if is_new:
            sync(self._file.parent)


def _write_whole(file: RawIOBase, content: bytes) -> None:
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"{epoch:06d}.jsonl"


def _find(file: Path, id: str, rung: float) -> Decision | None:
    if not file.exists():
        return None
    # A lane looks a few times a trial, and the file has a line for every rung of all of them.
    found = _read(file, only=id.encode())
    mine = (each for each in found if each.id == id and each.rung == rung)
    return next(mine, None)


def _read(file: Path, *, only: bytes = b"") -> list[Decision]:
    """The decisions of one launch; whatever else its file holds is none, and is reported.

    Args:
        file: Its file.
        only: Lines without this are not looked at.
    """
    *lines, torn = file.read_bytes().split(b"\n")
    if torn:
        log.warning("%s: its last line was not written to its end: no decision", file)
    found = []
    for number, line in enumerate(lines, start=1):
        if only not in line:
            continue
        try:
            found.append(Decision.model_validate_json(line))
        except ValidationError as error:
            log.warning("%s:%d is no decision: %s", file, number, error)
    return found
