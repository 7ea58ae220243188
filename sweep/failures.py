"""What can go wrong with a piece of work: classes, what follows from each, and how it is known.

How often each class is tried again is the grid's to say (`search_spaces.grid.Retries`).
"""

import errno
import hashlib
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..results.files import UnwritableError
from ..search_spaces.errors import InputError

FailureClass = Literal[
    "error",
    "nan",
    "out_of_memory",
    "timeout",
    "stalled",
    "signal",
    "worker_lost",
    "preempted",
    "environment",
    "cancelled",
]

Evidence = Mapping[str, str | float]
"""Values of the attempt's row that say more than the class: limits, what was measured, signals."""


@dataclass(frozen=True)
class Policy:
    """What follows from a class of failure."""

    wait_seconds: float
    """Before it is tried again; doubled with each further failure of the class."""
    alike: int | None
    """So many different pieces of work, failed alike before any trial was completed, stop the
    launch; None: however many."""
    ends_lane: bool
    """Whether a lane that told this of its work is replaced, since its memory may be harmed."""


POLICIES: Mapping[str, Policy] = {
    "error": Policy(wait_seconds=1, alike=5, ends_lane=True),
    # A trial that diverges is a finding; a whole corner of the grid may.
    "nan": Policy(wait_seconds=1, alike=None, ends_lane=False),
    "out_of_memory": Policy(wait_seconds=10, alike=5, ends_lane=True),
    "timeout": Policy(wait_seconds=1, alike=5, ends_lane=True),
    "stalled": Policy(wait_seconds=10, alike=5, ends_lane=True),
    "signal": Policy(wait_seconds=1, alike=5, ends_lane=True),
    # These two say something of hosts and nothing of the sweep.
    "worker_lost": Policy(wait_seconds=2, alike=None, ends_lane=True),
    "preempted": Policy(wait_seconds=2, alike=None, ends_lane=True),
    "environment": Policy(wait_seconds=30, alike=2, ends_lane=False),
    "cancelled": Policy(wait_seconds=1, alike=None, ends_lane=True),
}

MOST_WAIT_SECONDS = 300.0
"""The longest wait before its jitter, which makes it half as long to one and a half times."""

LAST_LINES = 20


def policy(failure_class: str) -> Policy:
    """What follows from a class; one that a newer version wrote counts as `error`."""
    return POLICIES.get(failure_class, POLICIES["error"])


def wait_seconds(id: str, failure_class: str, count: int) -> float:
    """How long the work waits after its `count`-th failure of a class, counted from 1.

    Exponential, with a jitter that is a function of its arguments: the same after a restart.
    """
    digest = hashlib.sha256(f"{id} {failure_class} {count}".encode()).digest()
    jitter = 0.5 + int.from_bytes(digest[:8]) / 2**64
    wait: float = policy(failure_class).wait_seconds * 2.0 ** (count - 1)
    return min(wait, MOST_WAIT_SECONDS) * jitter


@dataclass(frozen=True)
class Failure:
    """What went wrong with an attempt."""

    failure_class: FailureClass
    error: str
    """For a person; the last line that is not indented names it."""
    evidence: Evidence = field(default_factory=dict)


def failure_of(error: BaseException) -> Failure:
    """What an exception that a trial raised says of it."""
    from ..trainers.errors import BatchMemoryError, DivergedError, is_out_of_memory

    told = _last_lines(error)
    match error:
        case DivergedError(step=step, learning_rate=rate):
            return Failure("nan", told, {"failure/learning_rate": rate, "failure/step": step})
        case BatchMemoryError(micro_batches=parts):
            return Failure("out_of_memory", told, {"micro_batches": parts})
        case _ if is_out_of_memory(error):
            return Failure("out_of_memory", told)
        case InputError() | ImportError() | FileNotFoundError() | PermissionError():
            return Failure("environment", told)
        case _:
            return Failure("error", told)


def is_unwritable(error: BaseException) -> bool:
    """Whether something could not be written for want of room or of a disk that takes it.

    That is no failure of the work: nothing could keep its row either.
    """
    match error:
        case UnwritableError():
            return True
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EROFS):
            return True
        case _:
            # What writes safetensors is no OSError, but names its number.
            told = str(error)
            return any(f"(os error {n})" in told for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def _last_lines(error: BaseException) -> str:
    """What an attempt's row says of an exception: the end of its traceback.

    Of input that a person can mend it says what is wrong with it; where it was noticed is no help.
    """
    if isinstance(error, InputError):
        return str(error)
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(lines[-LAST_LINES:])


def describe_exit(returncode: int, *, who: str = "the lane") -> str:
    """How a process ended in the middle of its work, in words."""
    if returncode < 0:
        return f"{who} was ended by {_signal_name(-returncode)}"
    return f"{who} left with exit status {returncode} in the middle of its work"


def failure_of_exit(returncode: int, *, has_spoken: bool, kernel_kills: int) -> Failure:
    """What the end of a lane's process in the middle of its work says.

    Args:
        returncode: As `subprocess` has it: negative for a signal.
        has_spoken: Whether the lane ever came so far as to say that it is there.
        kernel_kills: How many processes of this host the kernel killed meanwhile for memory.
    """
    if returncode >= 0:
        evidence: Evidence = {"failure/exit_status": returncode}
        if has_spoken:
            told = f"the lane left with exit status {returncode} in the middle of its work"
            return Failure("error", told, evidence)
        told = f"the lane left with exit status {returncode} before it could begin"
        return Failure("environment", told, evidence)
    name = _signal_name(-returncode)
    evidence = {"failure/signal": name}
    match -returncode:
        case signal.SIGTERM:
            return Failure(
                "preempted", f"{name} ended the lane before it could checkpoint", evidence
            )
        case signal.SIGKILL if kernel_kills:
            told = "the kernel, out of memory, killed processes of this host; the lane ended then"
            return Failure("out_of_memory", told, evidence)
        case _:
            return Failure("signal", f"the lane was ended by {name}", evidence)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have no names.
        return f"signal {number}"
