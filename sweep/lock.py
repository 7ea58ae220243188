"""Who launches a sweep: one launch at a time, by epochs that only ever grow.

`locks/<epoch>.json` is created exclusively and never changed: whoever made the highest epoch holds
the sweep. Beside it lie a beat (rewritten every two seconds while the launch lives), a request to
drain, and the mark of an orderly end. A launch that was overtaken finds a higher epoch and may
commit nothing more: that is the fence.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import psutil

from ..results.files import publish, replace
from .errors import StaleEpochError, SweepLockedError

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 60.0
"""How long another host's launch must stay silent, by our own clock, before it counts as dead."""

_EPOCH = re.compile(r"^(\d{6})\.json$")


@dataclass(frozen=True)
class Holder:
    """The process that made an epoch; pid, its start and the boot tell it from any other."""

    host: str
    boot_id: str
    pid: int
    started: float
    since: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )

    def is_alive_here(self) -> bool:
        """Whether that very process still runs on this host."""
        if self.boot_id != _boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < 1.0
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _boot_id() -> str:
    source = Path("/proc/sys/kernel/random/boot_id")
    return source.read_text().strip() if source.exists() else str(psutil.boot_time())


def newest_epoch(locks: Path) -> int:
    """The highest epoch that was ever taken; 0 before the first launch."""
    found = (_EPOCH.match(path.name) for path in locks.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def check_epoch(locks: Path, epoch: int) -> None:
    """The fence: raise unless `epoch` is still the newest.

    Raises:
        StaleEpochError: A newer launch exists.
    """
    newest = newest_epoch(locks)
    if newest > epoch:
        raise StaleEpochError(f"launch {newest} has taken over from launch {epoch}")


@dataclass(frozen=True)
class Lock:
    """A sweep held by this process."""

    locks: Path
    epoch: int

    def beat(
        self,
        count: int,
        running: Sequence[str],
        *,
        num_waiting: int = 0,
        seconds_until_retry: float | None = None,
    ) -> None:
        """Tell readers and other launches that this one lives, and what it does.

        Args:
            count: Of the beats so far.
            running: Ids of what runs.
            num_waiting: How much waits for the time at which it is tried again.
            seconds_until_retry: Until the first of it is.
        """
        beat = {
            "count": count,
            "running": list(running),
            "num_waiting": num_waiting,
            "seconds_until_retry": seconds_until_retry,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        body = json.dumps(beat)
        replace(self.locks / f"{self.epoch:06d}.beat", partial(_write, body))

    def check(self) -> None:
        """Raise StaleEpochError once another launch has taken over."""
        check_epoch(self.locks, self.epoch)

    def release(self) -> None:
        """Mark an orderly end, so that the next launch need not ask whether this one lives.

        On a full disk it stays unmarked, and the next launch asks.
        """
        with suppress(OSError):
            released = self.locks / f"{self.epoch:06d}.released"
            released.touch(mode=0o600, exist_ok=True)
            drain_request(self.locks, self.epoch).unlink(missing_ok=True)
            (self.locks / f"{self.epoch:06d}.beat").unlink(missing_ok=True)


def drain_request(locks: Path, epoch: int) -> Path:
    """The file whose presence asks a launch and its lanes to checkpoint and leave."""
    return locks / f"{epoch:06d}.drain"


def take(locks: Path, *, sleep: Callable[[float], None] = time.sleep) -> Lock:
    """Take the sweep, over a dead launch if need be.

    On this host a dead launch is known at once by pid, start time and boot. On another host it is
    dead once its beat has not changed for a minute of our own clock; clocks are never compared.

    Raises:
        SweepLockedError: A living launch holds it, or another one was quicker just now.
    """
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    epoch = newest_epoch(locks)
    if epoch and not (locks / f"{epoch:06d}.released").exists():
        holder = Holder(**json.loads((locks / f"{epoch:06d}.json").read_text()))
        _refuse_if_alive(locks, epoch, holder, sleep)
    mine = locks / f"{epoch + 1:06d}.json"
    body = json.dumps(asdict(Holder.here()))
    try:
        publish(mine, partial(_write, body))
    except FileExistsError:
        raise SweepLockedError("another launch took this sweep just now") from None
    return Lock(locks, epoch + 1)


def _refuse_if_alive(
    locks: Path, epoch: int, holder: Holder, sleep: Callable[[float], None]
) -> None:
    message = (
        f"launch {epoch} holds this sweep: pid {holder.pid} on {holder.host}, since {holder.since}"
    )
    if holder.host == socket.gethostname():
        if holder.is_alive_here():
            raise SweepLockedError(message)
        return
    beat = locks / f"{epoch:06d}.beat"
    before = beat.read_bytes() if beat.exists() else b""
    waited = 0.0
    while waited < SILENCE_SECONDS:
        sleep(BEAT_SECONDS)
        waited += BEAT_SECONDS
        if (beat.read_bytes() if beat.exists() else b"") != before:
            raise SweepLockedError(message)
