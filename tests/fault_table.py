"""The faults that a sweep must survive, and the table that is printed of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

FAULTS: Mapping[int, str] = dict(
    enumerate(
        (
            "the launch or its driver is killed at random moments",
            "a kill while something is committed",
            "the supervisor of a lane is killed",
            "a lane is killed or crashes",
            "a node is lost",
            "the head of the cluster is lost",
            "somebody stops the cluster",
            "the disk is full",
            "parts are damaged",
            "what is planned is damaged",
            "Ray's own state is removed",
            "clocks jump",
            "two launches at once",
            "a lock whose holder is dead",
            "a launch that was overtaken wakes up",
            "Ctrl-C",
            "Ctrl-C twice",
            "SIGTERM",
            "a loss that is not finite",
            "a trial raises",
            "our part of Ray Tune raises",
            "a host's memory is full",
            "a GPU's memory is full",
            "a trial hangs",
            "a configuration too large",
            "a request that nothing can meet",
            "the storage hiccups",
            "the grid is edited",
            "code or packages change",
            "lanes cannot be started",
        ),
        start=1,
    )
)


class Fault(NamedTuple):
    """What one test injects."""

    number: int
    """Of `FAULTS`."""
    what: str
    expected: str


class Result(NamedTuple):
    """How a test came out."""

    fault: Fault
    outcome: str
    seconds: float
    why: str
    """It was skipped; else empty."""


def fault(number: int, what: str, expected: str) -> pytest.MarkDecorator:
    """Marks a test as a row of the table."""
    return pytest.mark.fault(Fault(number, what, expected))


def fault_of(item: pytest.Item) -> Fault | None:
    """Which row a test is."""
    marker = item.get_closest_marker("fault")
    return None if marker is None else marker.args[0]


def lines(
    results: Sequence[Result], *, collected: Collection[Fault], numbers: Collection[int]
) -> Iterator[str]:
    """The table, by number.

    Args:
        results: Of the tests that were run or skipped.
        collected: The rows for which there are tests.
        numbers: Which faults are shown.
    """
    for number in sorted(numbers):
        yield f"{number:3}  {FAULTS[number]}"
        mine = sorted(result for result in results if result.fault.number == number)
        for (_, what, expected), outcome, seconds, why in mine:
            yield f"     {outcome:7} {seconds:6.1f} s  {what}: {expected}{why and f' ({why})'}"
        for row in sorted({*collected} - {result.fault for result in mine}):
            if row.number == number:
                yield f"     not run           {row.what}: {row.expected}"
        if not any(row.number == number for row in collected):
            yield "     no test"
