"""How planned work stands follows from the attempts made at it."""

from datetime import UTC, datetime

import pytest

from kdsweep.results.outcome import Outcome, Try, outcomes
from kdsweep.results.schema import AttemptKey

A, B, C = "a" * 8, "b" * 8, "c" * 8


def tried(epoch: int, number: int, status: str, *, minute: int = 0, id: str = A) -> Try:
    ended = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
    return Try(AttemptKey(id, epoch, number), status, ended, row=10 * epoch + number)


def stands(*tries: Try, is_running: bool = False) -> Outcome:
    return outcomes({A: ()}, {A: tries} if tries else {}, {A} if is_running else ())[A]


def test_what_nobody_tried_is_pending() -> None:
    assert stands() == Outcome("pending", None, 0)


def test_a_completed_attempt_wins_over_later_failures_and_a_beat() -> None:
    completed = tried(1, 2, "completed")
    found = stands(tried(1, 1, "failed"), completed, tried(2, 1, "failed"), is_running=True)
    assert found == Outcome("completed", completed, 3)


@pytest.mark.parametrize("late_epoch", [1, 9])
def test_of_two_completed_attempts_the_one_that_ended_first_counts(late_epoch: int) -> None:
    first = tried(5, 1, "completed", minute=1)
    late = tried(late_epoch, 1, "completed", minute=2)
    assert stands(late, first).counted == first
    assert stands(first, late).counted == first


def test_the_beat_makes_failed_and_interrupted_work_running() -> None:
    for status in ("failed", "interrupted"):
        assert stands(tried(1, 1, status), is_running=True).status == "running"
    assert stands(is_running=True) == Outcome("running", None, 0)


def test_the_latest_attempt_by_epoch_and_number_decides_without_a_completed_one() -> None:
    failed, interrupted = tried(2, 10, "failed", minute=1), tried(2, 9, "interrupted", minute=2)
    assert stands(failed, interrupted) == Outcome("failed", failed, 2)
    later = tried(10, 1, "interrupted")
    assert stands(later, failed, interrupted) == Outcome("pending", later, 3)


def test_a_stopped_trial_is_stopped_until_a_later_attempt_says_otherwise() -> None:
    stopped = tried(2, 1, "stopped")
    assert stands(tried(1, 1, "failed"), stopped) == Outcome("stopped", stopped, 2)
    assert stands(stopped, is_running=True).status == "running"
    assert stands(stopped, tried(3, 1, "interrupted")).status == "pending"
    assert stands(stopped, tried(3, 1, "completed")).status == "completed"


def test_what_depends_on_failed_work_is_blocked_however_far_away() -> None:
    needs = {A: (), B: (A,), C: (B,)}
    found = outcomes(needs, {A: (tried(1, 1, "failed"),)}, ())
    assert [found[id].status for id in (A, B, C)] == ["failed", "blocked", "blocked"]


def test_what_depends_on_work_that_may_still_be_completed_is_pending() -> None:
    needs = {A: (), B: (A,)}
    assert outcomes(needs, {A: (tried(1, 1, "interrupted"),)}, ())[B].status == "pending"
    assert outcomes(needs, {A: (tried(1, 1, "failed"),)}, {A})[B].status == "pending"


def test_work_with_an_end_of_its_own_is_not_blocked() -> None:
    needs = {A: (), B: (A,), C: (A,)}
    tries = {
        A: (tried(2, 1, "failed"),),
        B: (tried(1, 1, "completed", id=B),),
        C: (tried(1, 1, "failed", id=C),),
    }
    found = outcomes(needs, tries, ())
    assert [found[id].status for id in (B, C)] == ["completed", "failed"]


def test_work_that_waits_for_itself_ends_the_search() -> None:
    assert outcomes({A: (B,), B: (A,)}, {}, ())[A].status == "pending"
