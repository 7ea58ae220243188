"""An exception or a dead lane becomes a failure class; the class decides whether to try again."""

import errno
import signal
import traceback
from typing import Literal

from ..search_spaces.errors import InputError

FailureClass = Literal[
    "error",
    "nan",
    "out_of_memory",
    "timeout",
    "signal",
    "worker_lost",
    "environment",
]

LAST_LINES = 20


def classify(error: BaseException) -> FailureClass:
    """The class of an exception that a trial raised."""
    from ..trainers.errors import DivergedError, is_out_of_memory

    match error:
        case DivergedError():
            return "nan"
        case _ if is_out_of_memory(error):
            return "out_of_memory"
        case InputError() | ImportError():
            return "environment"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EROFS):
            return "environment"
        case _:
            return "error"


def last_lines(error: BaseException) -> str:
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
        return f"{who} was ended by {signal.Signals(-returncode).name}"
    return f"{who} left with exit status {returncode} in the middle of its work"
