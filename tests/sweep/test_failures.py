"""What can go wrong, how it is known, and what follows from it."""

import errno
import signal
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from kdsweep.results.files import UnwritableError
from kdsweep.results.schema import Attempt, AttemptStatus
from kdsweep.search_spaces.errors import DataError, Problem
from kdsweep.search_spaces.grid import Retries
from kdsweep.sweep.failures import (
    POLICIES,
    FailureClass,
    describe_exit,
    failure_of,
    failure_of_exit,
    is_unwritable,
    wait_seconds,
)
from kdsweep.sweep.retrying import failures_by_class, waits
from kdsweep.trainers.errors import BatchMemoryError, DivergedError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
A, B = "a" * 16, "b" * 16


def test_every_class_has_retries_and_a_policy() -> None:
    classes = set(get_args(FailureClass))
    assert set(Retries.model_fields) == classes
    assert set(POLICIES) == classes


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (RuntimeError("x"), "error"),
        (DivergedError(loss="loss is nan", step=7, learning_rate=0.5), "nan"),
        (MemoryError(), "out_of_memory"),
        (BatchMemoryError(MemoryError(), micro_batches=8), "out_of_memory"),
        (ModuleNotFoundError("no torch"), "environment"),
        (FileNotFoundError(errno.ENOENT, "no such file", "train.csv"), "environment"),
        (PermissionError(errno.EACCES, "denied", "train.csv"), "environment"),
        (DataError([Problem("task", "has changed", "Re-plan.")]), "environment"),
    ],
)
def test_an_exception_has_a_class(error: Exception, failure_class: str) -> None:
    assert failure_of(error).failure_class == failure_class


def test_an_exception_brings_evidence() -> None:
    diverged = DivergedError(loss="loss is nan", step=7, learning_rate=0.5)
    assert failure_of(diverged).evidence == {"failure/step": 7, "failure/learning_rate": 0.5}
    memory = BatchMemoryError(MemoryError("full"), micro_batches=8)
    assert failure_of(memory).evidence == {"micro_batches": 8}
    assert failure_of(memory).error.endswith(
        "not even one row of the batch at a time fits into memory: full"
    )


@pytest.mark.parametrize(
    ("returncode", "has_spoken", "kernel_kills", "failure_class", "evidence"),
    [
        (-signal.SIGSEGV, True, 0, "signal", {"failure/signal": "SIGSEGV"}),
        (-signal.SIGKILL, True, 0, "signal", {"failure/signal": "SIGKILL"}),
        (-signal.SIGKILL, True, 1, "out_of_memory", {"failure/signal": "SIGKILL"}),
        (-signal.SIGSEGV, True, 1, "signal", {"failure/signal": "SIGSEGV"}),
        (-signal.SIGTERM, False, 0, "preempted", {"failure/signal": "SIGTERM"}),
        (-40, True, 0, "signal", {"failure/signal": "signal 40"}),
        (1, True, 0, "error", {"failure/exit_status": 1}),
        (1, False, 0, "environment", {"failure/exit_status": 1}),
        (0, True, 0, "error", {"failure/exit_status": 0}),
    ],
)
def test_the_end_of_a_lane_has_a_class(
    returncode: int,
    has_spoken: bool,
    kernel_kills: int,
    failure_class: str,
    evidence: dict[str, object],
) -> None:
    found = failure_of_exit(returncode, has_spoken=has_spoken, kernel_kills=kernel_kills)
    assert found.failure_class == failure_class
    assert found.evidence == evidence


def test_the_end_of_a_driver_is_told_although_its_signal_has_no_name() -> None:
    assert describe_exit(-40, who="the driver") == "the driver was ended by signal 40"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "no space left"), True),
        (OSError(errno.EDQUOT, "quota exceeded"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (UnwritableError(errno.EIO, "input/output error"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EIO, "input/output error"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (RuntimeError("x"), False),
    ],
)
def test_what_a_disk_does_not_take_is_no_failure_of_the_work(
    error: Exception, expected: bool
) -> None:
    assert is_unwritable(error) is expected


@given(st.text("0123456789abcdef", min_size=8), st.integers(1, 1000))
def test_a_wait_doubles_up_to_five_minutes_give_or_take_half(id: str, count: int) -> None:
    nominal = min(2.0 ** (count - 1), 300.0)
    assert 0.5 * nominal <= wait_seconds(id, "error", count) < 1.5 * nominal


def test_a_wait_is_the_same_after_a_restart_and_another_for_other_work() -> None:
    # 0.5 + 0x461507b692f7cd2d / 2^64, from `printf %s "aaaaaaaaaaaaaaaa error 1" | sha256sum`.
    assert wait_seconds(A, "error", 1) == pytest.approx(0.7737583943116697, rel=1e-12)
    assert wait_seconds(A, "error", 1) != wait_seconds(B, "error", 1)


def attempt(
    id: str, number: int, status: AttemptStatus, *, failed: str | None = None, ago: float
) -> Attempt:
    ended = NOW - timedelta(seconds=ago)
    return Attempt(
        id=id,
        what="trial",
        group_id=id,
        epoch=1,
        number=number,
        status=status,
        failure_class=failed,
        error=None,
        started=ended,
        ended=ended,
        config_json="{}",
        resumed_from=None,
        resumed_from_step=0,
        values={},
    )


def test_failures_are_counted_by_class() -> None:
    attempts = [
        attempt(A, 1, "failed", failed="error", ago=9),
        attempt(A, 2, "failed", failed="signal", ago=8),
        attempt(A, 3, "failed", failed="error", ago=7),
        attempt(B, 1, "completed", ago=6),
    ]
    assert failures_by_class(attempts) == {A: {"error": 2, "signal": 1}}


def test_work_waits_from_the_end_of_its_latest_failure() -> None:
    attempts = [
        attempt(A, 1, "failed", failed="stalled", ago=60),
        attempt(A, 2, "failed", failed="stalled", ago=4),
        attempt(B, 1, "failed", failed="stalled", ago=60),
        attempt(B, 2, "interrupted", ago=1),
    ]
    found = waits(attempts, allowed=lambda _: 5, fresh=False, now=NOW)
    assert found == {A: pytest.approx(wait_seconds(A, "stalled", 2) - 4)}


def test_a_clock_that_is_wrong_makes_nothing_wait_longer() -> None:
    tomorrow = [attempt(A, 1, "failed", failed="error", ago=-86_400)]
    found = waits(tomorrow, allowed=lambda _: 1, fresh=False, now=NOW)
    assert found == {A: wait_seconds(A, "error", 1)}


def test_who_asks_for_what_was_given_up_does_not_wait() -> None:
    given_up = [attempt(A, 1, "failed", failed="error", ago=0)]
    assert waits(given_up, allowed=lambda _: 0, fresh=True, now=NOW) == {}
    assert waits(given_up, allowed=lambda _: 1, fresh=True, now=NOW).keys() == {A}
