"""When the first trials all fail in one way, the others are not tried."""

from pathlib import Path

import pytest

from kdsweep.search_spaces.resources import Request
from kdsweep.sweep.breaker import AT_FIRST, Breaker
from kdsweep.sweep.work import Outcome, Pinned, Work

COMPLETED = Outcome(status="completed")


def work(id: str, what: str = "trial") -> Work:
    return Work.model_validate(
        {
            "store": Path("store"),
            "what": what,
            "id": id,
            "group_id": id,
            "epoch": 1,
            "number": 1,
            "config_json": "{}",
            "pinned": Pinned(
                precision="fp32", threads=1, teacher_threads=1, device="cpu", features=()
            ),
            "timeout_seconds": 60,
            "stall_seconds": 60,
            "resources": Request(),
            "checkpoint_seconds": 30,
            "keep_students": False,
            "keep_predictions": "none",
        }
    )


def failed(id: str, failure_class: str = "error") -> Outcome:
    error = f"Traceback\n  File x, line 3\nRuntimeError: step 7 of {id}"
    return Outcome(status="failed", failure_class=failure_class, error=error)


def ids(number: int) -> list[str]:
    return [f"{n:016x}" for n in range(number)]


def noted(breaker: Breaker, ids: list[str], failure_class: str = "error") -> list[str | None]:
    return [breaker.note(work(id), failed(id, failure_class)) for id in ids]


def test_the_fifth_that_fails_like_those_before_stops_the_launch_and_says_why() -> None:
    *before, why = noted(Breaker(), ids(5))
    assert before == [None] * 4
    assert why is not None
    assert "first 5" in why
    assert "error: RuntimeError: step 7 of 0000000000000004" in why


def test_an_environment_that_two_do_not_find_stops_the_launch() -> None:
    before, why = noted(Breaker(), ids(2), "environment")
    assert before is None
    assert why is not None


def test_one_that_fails_again_and_again_is_one() -> None:
    assert noted(Breaker(), ids(1) * 20) == [None] * 20


@pytest.mark.parametrize("failure_class", ["nan", "worker_lost", "preempted", "cancelled"])
def test_what_says_nothing_of_the_sweep_never_stops_it(failure_class: str) -> None:
    assert noted(Breaker(), ids(50), failure_class) == [None] * 50


def test_failures_that_differ_do_not_stop_it() -> None:
    breaker = Breaker()
    words = ["one", "two", "three", "four", "five", "six"]
    for id, word in zip(ids(6), words, strict=True):
        outcome = Outcome(status="failed", failure_class="error", error=f"KeyError: {word}")
        assert breaker.note(work(id), outcome) is None


def test_after_a_completed_trial_nothing_stops_it_but_a_teacher_proves_nothing() -> None:
    taught = Breaker()
    assert taught.note(work("f" * 16, "teacher"), COMPLETED) is None
    assert not taught.is_proven
    assert noted(taught, ids(5))[-1] is not None
    proven = Breaker()
    assert noted(proven, ids(4)) == [None] * 4
    assert proven.note(work("f" * 16), COMPLETED) is None
    assert proven.is_proven
    assert noted(proven, ids(50)) == [None] * 50


def test_a_trial_that_was_stopped_at_a_rung_proves_as_much_as_a_completed_one() -> None:
    breaker = Breaker()
    breaker.note(work("f" * 16), Outcome(status="stopped"))
    assert breaker.is_proven


def test_as_many_run_at_first_as_it_takes_to_see_that_all_fail() -> None:
    assert AT_FIRST == 5
