"""The bookkeeping of what runs next."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kdsweep.sweep.agenda import Agenda, Item
from kdsweep.sweep.executors import wait_until_due
from kdsweep.sweep.work import Outcome

COMPLETED = Outcome(status="completed")
FAILED = Outcome(status="failed", failure_class="error")


def agenda_of(
    *items: Item, retries: int = 0, failures: dict[str, Counter[str]] | None = None
) -> Agenda:
    return Agenda(items, allowed=lambda _: retries, failures=failures or {}, wait=no_wait)


def no_wait(id: str, failure_class: str, count: int) -> float:
    return 0.0


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_items_run_in_the_order_in_which_they_are_listed() -> None:
    agenda = agenda_of(Item("a"), Item("b"), Item("c"))
    assert [agenda.take(), agenda.take(), agenda.take(), agenda.take()] == ["a", "b", "c", None]


def test_what_depends_on_another_item_waits_until_that_is_completed() -> None:
    agenda = agenda_of(Item("trial", ("teacher",)), Item("teacher"))
    assert agenda.take() == "teacher"
    assert agenda.take() is None
    assert not agenda.is_over
    agenda.settle("teacher", COMPLETED)
    assert agenda.take() == "trial"


def test_a_dependency_that_is_not_listed_counts_as_completed() -> None:
    assert agenda_of(Item("trial", ("teacher",))).take() == "trial"


def test_a_failed_item_is_tried_again_before_later_ones_until_its_retries_are_used_up() -> None:
    agenda = agenda_of(Item("a"), Item("b"), retries=1)
    assert agenda.take() == "a"
    agenda.settle("a", FAILED)
    assert agenda.take() == "a"
    agenda.settle("a", FAILED)
    assert agenda.failed == ["a"]
    assert agenda.take() == "b"


def test_what_is_stopped_is_settled_and_neither_tried_again_nor_completed() -> None:
    agenda = agenda_of(Item("a"), Item("b"))
    assert agenda.take() == "a"
    agenda.settle("a", Outcome(status="stopped"))
    assert (agenda.stopped, agenda.completed, agenda.failed) == (["a"], [], [])
    assert agenda.settled == {"a"}
    assert (agenda.take(), agenda.take()) == ("b", None)


def test_failures_of_earlier_launches_count() -> None:
    agenda = agenda_of(Item("a"), retries=0, failures={"a": Counter(error=1)})
    assert agenda.is_over
    assert agenda.failed == ["a"]


def test_each_class_of_failure_has_its_own_retries() -> None:
    agenda = Agenda(
        [Item("a")],
        allowed={"error": 0, "signal": 1}.__getitem__,
        failures={},
        wait=no_wait,
    )
    agenda.take()
    agenda.settle("a", Outcome(status="failed", failure_class="signal"))
    assert agenda.take() == "a"
    agenda.settle("a", FAILED)
    assert agenda.failed == ["a"]


def test_what_waits_for_a_failure_is_blocked_and_never_runs() -> None:
    agenda = agenda_of(Item("teacher"), Item("trial", ("teacher",)))
    agenda.take()
    agenda.settle("teacher", FAILED)
    assert agenda.take() is None
    assert agenda.is_over
    assert agenda.blocked == ["trial"]


def test_nothing_builds_on_a_completed_item_that_is_not_usable() -> None:
    agenda = agenda_of(Item("teacher"), Item("trial", ("teacher",)))
    agenda.take()
    agenda.settle("teacher", COMPLETED, is_usable=False)
    assert agenda.take() is None
    assert agenda.blocked == ["trial"]


def test_a_draining_agenda_starts_nothing_and_is_over_once_nothing_runs() -> None:
    agenda = agenda_of(Item("a"), Item("b"))
    agenda.take()
    agenda.drain()
    assert agenda.take() is None
    assert not agenda.is_over
    agenda.settle("a", Outcome(status="interrupted"))
    assert agenda.is_over
    assert agenda.interrupted == ["a"]


def test_an_attempt_that_was_overtaken_stops_the_launch() -> None:
    agenda = agenda_of(Item("a"), Item("b"))
    agenda.take()
    agenda.settle("a", Outcome(status="overtaken"))
    assert agenda.take() is None


@given(
    depends=st.lists(st.integers(-1, 8), min_size=1, max_size=10),
    fates=st.lists(st.booleans(), min_size=60, max_size=60),
    slots=st.integers(1, 4),
)
def test_every_item_ends_completed_failed_or_blocked_whatever_fails(
    depends: list[int], fates: list[bool], slots: int
) -> None:
    items = [Item(str(n), (str(on),) if 0 <= on < n else ()) for n, on in enumerate(depends)]
    agenda = agenda_of(*items, retries=2)
    fate = iter(fates)
    running: list[str] = []
    while not agenda.is_over:
        while len(running) < slots and (id := agenda.take()) is not None:
            running.append(id)
        agenda.settle(running.pop(0), COMPLETED if next(fate) else FAILED)
    ends = [*agenda.completed, *agenda.failed]
    assert len(ends) == len(set(ends))
    assert set(ends) | set(agenda.blocked) == {item.id for item in items}
    assert not set(ends) & set(agenda.blocked)


def test_an_interruption_that_nobody_asked_for_is_taken_up_again() -> None:
    agenda = agenda_of(Item("a"))
    agenda.take()
    agenda.settle("a", Outcome(status="interrupted"))
    assert agenda.take() == "a"


def test_what_depends_on_something_unusable_is_blocked_from_the_start() -> None:
    items = [Item("teacher"), Item("trial", ("teacher",)), Item("other")]
    agenda = Agenda(items, allowed=lambda _: 0, failures={}, unusable={"teacher"})
    assert agenda.failed == ["teacher"]
    assert agenda.blocked == ["trial"]
    assert [agenda.take(), agenda.take()] == ["other", None]


def test_a_failed_item_waits_before_it_is_tried_again_and_others_run_meanwhile() -> None:
    clock = Clock()
    asked: list[tuple[str, str, int]] = []

    def wait(id: str, failure_class: str, count: int) -> float:
        asked.append((id, failure_class, count))
        return 10.0 * count

    items = [Item("a"), Item("b")]
    agenda = Agenda(items, allowed=lambda _: 2, failures={}, wait=wait, clock=clock)
    agenda.take()
    agenda.settle("a", FAILED)
    assert agenda.num_waiting == 1
    assert agenda.waits_for("a") == 10.0
    assert agenda.seconds_until_retry == 10.0
    assert agenda.take() == "b"
    assert agenda.take() is None
    agenda.settle("b", COMPLETED)
    assert not agenda.is_over
    assert agenda.seconds_until_due() == 10.0
    clock.now = 9.0
    assert agenda.take() is None
    assert agenda.seconds_until_due() == 1.0
    clock.now = 10.0
    assert agenda.seconds_until_due() == 0.0
    assert agenda.waits_for("a") is None
    assert agenda.seconds_until_retry is None
    assert agenda.take() == "a"
    agenda.settle("a", FAILED)
    assert agenda.seconds_until_due() == 20.0
    assert asked == [("a", "error", 1), ("a", "error", 2)]


def test_an_item_waits_out_what_is_left_of_an_earlier_launch() -> None:
    clock = Clock(100.0)
    agenda = Agenda(
        [Item("a"), Item("b", ("a",))],
        allowed=lambda _: 9,
        failures={},
        waits={"a": 3.0, "b": 5.0, "another": 1.0},
        clock=clock,
    )
    assert agenda.take() is None
    assert agenda.seconds_until_due() == 3.0
    clock.now = 103.0
    assert agenda.take() == "a"
    assert agenda.seconds_until_due() is None
    agenda.settle("a", COMPLETED)
    assert agenda.seconds_until_due() == 2.0


def test_who_waits_for_what_is_due_is_told_when_nothing_ever_will_be() -> None:
    agenda = Agenda([Item("a")], allowed=lambda _: 1, failures={}, waits={"a": 0.05})
    assert wait_until_due(agenda)
    assert agenda.take() == "a"
    agenda.settle("a", COMPLETED)
    assert not wait_until_due(agenda)


def test_what_waits_keeps_a_draining_agenda_from_nothing() -> None:
    agenda = Agenda([Item("a")], allowed=lambda _: 1, failures={}, waits={"a": 3.0})
    assert not agenda.is_over
    agenda.drain()
    assert agenda.is_over
    assert agenda.seconds_until_due() is None


def test_at_first_few_items_run_at_once_until_the_agenda_is_opened_up() -> None:
    items = [Item(id) for id in "abcd"]
    agenda = Agenda(items, allowed=lambda _: 0, failures={}, at_first=2)
    assert [agenda.take(), agenda.take(), agenda.take()] == ["a", "b", None]
    assert not agenda.is_over
    agenda.settle("a", FAILED)
    assert [agenda.take(), agenda.take()] == ["c", None]
    agenda.open_up()
    assert agenda.take() == "d"


def test_an_attempt_that_could_not_be_stored_stops_the_launch_and_counts_as_no_failure() -> None:
    agenda = agenda_of(Item("a"), Item("b"))
    agenda.take()
    agenda.settle("a", Outcome(status="unwritable", error="no space"))
    assert agenda.take() is None
    assert agenda.interrupted == ["a"]
    assert agenda.failed == []


def agenda_with_more(*more: list[Item]) -> tuple[Agenda, list[list[str]]]:
    """An agenda of a trial and its teacher that is given more each time it asks."""
    waiting, asked = list(more), list[list[str]]()

    def give(lost: Collection[str]) -> list[Item]:
        asked.append(list(lost))
        return waiting.pop(0) if waiting else []

    items = [Item("teacher"), Item("trial", ("teacher",))]
    return Agenda(items, allowed=lambda _: 0, failures={}, more=give), asked


def test_more_is_asked_for_when_a_lane_is_free_and_nothing_waits() -> None:
    agenda, asked = agenda_with_more([Item("second", ("teacher",))])
    assert agenda.take() == "teacher"
    # The trial waits for its teacher: another lane has to wait as well.
    assert agenda.take() is None
    assert asked == []
    agenda.settle("teacher", COMPLETED)
    assert agenda.take() == "trial"
    assert agenda.take() == "second"
    assert agenda.take() is None
    assert not agenda.is_over
    agenda.settle("trial", COMPLETED)
    agenda.settle("second", COMPLETED)
    assert agenda.is_over


def test_who_is_asked_for_more_is_told_what_is_lost() -> None:
    agenda, asked = agenda_with_more()
    agenda.take()
    agenda.settle("teacher", FAILED)
    assert agenda.is_over
    assert asked == [["teacher", "trial"]]


def test_more_is_asked_for_until_something_can_start_although_the_first_were_given_up() -> None:
    waiting = [[Item("one")], [Item("two")], [Item("three")]]
    agenda = Agenda(
        [],
        allowed=lambda _: 0,
        failures={"one": Counter(error=1), "two": Counter(error=1)},
        more=lambda _: waiting.pop(0) if waiting else [],
    )
    assert wait_until_due(agenda)
    assert agenda.take() == "three"
    assert agenda.failed == ["one", "two"]


def test_nothing_more_is_asked_for_while_draining() -> None:
    agenda, asked = agenda_with_more([Item("second")])
    agenda.take()
    agenda.drain()
    agenda.settle("teacher", COMPLETED)
    assert agenda.is_over
    assert asked == []
