"""Locks on files that end with whoever holds them, be it by SIGKILL."""

from __future__ import annotations

import fcntl
import os
import weakref
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Held:
    """A lock, until it is closed or nobody refers to it any more."""

    def __init__(self, descriptor: int) -> None:
        self.close = weakref.finalize(self, os.close, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def try_lock(path: Path, *, shared: bool = False) -> Held | None:
    """Take a lock, or say at once that another process or thread has it.

    Args:
        path: The lock's file, which is made; its folder is there.
        shared: Whether others may hold it too that ask in the same way.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        held = Held(descriptor)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            return None
        # Whoever removed the file held the lock on it, which nobody else will ever see again.
        if _is_at(path, descriptor):
            return held
        held.close()


def _is_at(path: Path, descriptor: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
