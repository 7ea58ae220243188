"""Who launches a sweep: one launch at a time, by epochs that only ever grow.

`locks/<epoch>.json` is created exclusively and never changed: whoever made the highest epoch holds
the sweep. Beside it lie a beat (rewritten every two seconds while the launch lives), requests to
drain or to end single trials, and the mark of an orderly end, which the last beat becomes. A launch
that was overtaken finds a higher epoch and may commit nothing more: that is the fence.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import psutil

from ..results.files import publish, replace
from .errors import StaleEpochError, SweepLockedError

log = logging.getLogger("kdsweep")

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
    """Seconds since boot, where the system tells them."""
    since: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            started=_started(psutil.Process()),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )

    @property
    def is_here(self) -> bool:
        """Whether it ran on this host."""
        return self.host == socket.gethostname()

    def is_alive_here(self) -> bool:
        """Whether that very process still runs on this host."""
        if self.boot_id != _boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            return (
                abs(_started(process) - self.started) < 1.0
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> float:
    """When a process began.

    Not by the wall clock, where that can be helped: set forward, it would make a living launch look
    like another process under the same pid.
    """
    try:
        after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return process.create_time()
    return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")


def write_text(text: str, path: Path) -> None:
    """Write a file that is still temporary."""
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
        used: Mapping[str, float],
        num_waiting: int = 0,
        seconds_until_retry: float | None = None,
    ) -> None:
        """Tell readers and other launches that this one lives, and what it does.

        Args:
            count: Of the beats so far.
            running: Ids of what runs.
            used: What the launch has used of its budget.
            num_waiting: How much waits for the time at which it is tried again.
            seconds_until_retry: Until the first of it is.
        """
        beat = {
            "count": count,
            "running": list(running),
            "used": dict(used),
            "num_waiting": num_waiting,
            "seconds_until_retry": seconds_until_retry,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        body = json.dumps(beat)
        replace(_beat(self.locks, self.epoch), partial(write_text, body))

    def check(self) -> None:
        """Raise StaleEpochError once another launch has taken over."""
        check_epoch(self.locks, self.epoch)

    def release(self) -> None:
        """Mark an orderly end, so that the next launch need not ask whether this one lives.

        The last beat becomes the mark: what the launch has used stays known. On a full disk it
        may stay unmarked, and the next launch asks.
        """
        released = _released(self.locks, self.epoch)
        with suppress(OSError):
            try:
                _beat(self.locks, self.epoch).replace(released)
            except FileNotFoundError:
                released.touch(mode=0o600, exist_ok=True)
            drain_request(self.locks, self.epoch).unlink(missing_ok=True)
            for request in self.locks.glob(cancel_request(self.locks, self.epoch, "*").name):
                request.unlink(missing_ok=True)


@contextmanager
def beating(lock: Lock) -> Iterator[Callable[[], None]]:
    """Beat while nothing runs: what reads or orders a large store may take longer than silence.

    What is given ends it, for whoever goes on with beats that say more.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(lock, is_over), daemon=True)

    def stop() -> None:
        is_over.set()
        thread.join()

    thread.start()
    try:
        yield stop
    finally:
        stop()


def _keep_beating(lock: Lock, is_over: threading.Event) -> None:
    beats = 0
    while not is_over.is_set():
        try:
            lock.beat(beats, [], used={})
        except OSError:
            log.exception("a beat is missing")
        beats += 1
        is_over.wait(BEAT_SECONDS)


def drain_request(locks: Path, epoch: int) -> Path:
    """The file whose presence asks a launch and its lanes to checkpoint and leave."""
    return locks / f"{epoch:06d}.drain"


def cancel_request(locks: Path, epoch: int, id: str) -> Path:
    """The file whose presence asks a launch to end one trial."""
    return locks / f"{epoch:06d}.{id}.cancel"


def take(
    locks: Path,
    *,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _: None,
) -> Lock:
    """Take the sweep, over a launch that is dead (`is_running`) if need be.

    Args:
        locks: The sweep's folder of locks.
        sleep: How to wait.
        tell: Hears that up to a minute is waited.

    Raises:
        SweepLockedError: A living launch holds it, or another one was quicker just now.
    """
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    epoch = newest_epoch(locks)
    if epoch and is_running(locks, epoch, sleep=sleep, tell=tell):
        raise SweepLockedError(f"{describe(locks, epoch)} holds this sweep")
    mine = locks / f"{epoch + 1:06d}.json"
    body = json.dumps(asdict(Holder.here()))
    try:
        publish(mine, partial(write_text, body))
    except FileExistsError:
        raise SweepLockedError("another launch took this sweep just now") from None
    return Lock(locks, epoch + 1)


def read_holder(locks: Path, epoch: int) -> Holder | None:
    """Who made an epoch; None where its file is damaged."""
    try:
        return Holder(**json.loads((locks / f"{epoch:06d}.json").read_bytes()))
    except (ValueError, TypeError):
        return None


def is_released(locks: Path, epoch: int) -> bool:
    """Whether the launch of an epoch came to an orderly end."""
    return _released(locks, epoch).exists()


def is_running(
    locks: Path,
    epoch: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _: None,
) -> bool:
    """Whether the launch of an epoch lives.

    On this host that is known at once by pid, start and boot. On another host, or where the lock's
    file cannot be read, it lives if its beat changes within a minute of our own clock; clocks are
    never compared.

    Args:
        locks: The sweep's folder of locks.
        epoch: Of the launch.
        sleep: How to wait.
        tell: Hears that up to a minute is waited.
    """
    if is_released(locks, epoch):
        return False
    holder = read_holder(locks, epoch)
    if holder is not None and holder.is_here:
        return holder.is_alive_here()
    tell(
        f"{describe(locks, epoch)}: waiting up to {SILENCE_SECONDS:.0f} seconds for a sign that it "
        "still lives"
    )
    before = _content(_beat(locks, epoch))
    waited = 0.0
    while waited < SILENCE_SECONDS:
        sleep(BEAT_SECONDS)
        waited += BEAT_SECONDS
        if is_released(locks, epoch):
            return False
        if _content(_beat(locks, epoch)) != before:
            return True
    return False


def describe(locks: Path, epoch: int) -> str:
    """A launch, for messages."""
    holder = read_holder(locks, epoch)
    if holder is None:
        return f"launch {epoch} (the file of its lock is damaged)"
    return f"launch {epoch} (pid {holder.pid} on {holder.host}, since {holder.since})"


def _beat(locks: Path, epoch: int) -> Path:
    return locks / f"{epoch:06d}.beat"


def _released(locks: Path, epoch: int) -> Path:
    return locks / f"{epoch:06d}.released"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
