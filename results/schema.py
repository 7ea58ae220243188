"""What rests in a store: the rows, the names of their files, and the version of it all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

Scalar = str | int | float | bool
"""What a cell may hold; numbers are stored as float64."""

SCHEMA_VERSION = 2
"""Raised when a column changes its meaning or type, or where older versions would miss something;
adding columns does not raise it. 2: parts may lie in compact files."""

AttemptStatus = Literal["completed", "stopped", "failed", "interrupted"]
"""How an attempt ended; `stopped`: early stopping ended it, and it may go on one day."""
Work = Literal["teacher", "stage", "trial"]
"""What a sweep does; a `stage` is what several trials begin with, trained once."""

ID = re.compile(r"[0-9a-f]{8,64}")
SPLIT = re.compile(r"[a-z]{1,32}")


class NewerStoreError(Exception):
    """The store was written by a newer version, whose columns this one cannot know."""

    def __init__(self, file: str, version: int) -> None:
        super().__init__(
            f"{file}: written with schema version {version}, and this kdsweep knows versions up to "
            f"{SCHEMA_VERSION}\n    Read it with a newer kdsweep (pip install --upgrade kdsweep)."
        )


class DamagedSweepError(ValueError):
    """`sweep.json` is not what a launch writes."""


class Damaged(NamedTuple):
    """A file that could not be read and was left out."""

    path: str
    """Relative to the store."""
    reason: str


@dataclass(frozen=True)
class PlanRow:
    """One planned piece of work, or one point that was skipped.

    The rows of a plan stand in the order of the grid's points, skipped ones in their place: the
    order in which an axis' values first appear is the order in which tables list them.
    """

    what: Literal["teacher", "stage", "trial", "skipped"]
    id: str | None
    """None for a skipped point, and only for that."""
    group_id: str | None
    """Shared by trials that differ in their seed alone."""
    axes: Mapping[str, Scalar | None]
    """Value or label by the axis' short name; None where the axis does not act on this point."""
    config_json: str | None
    """Everything that decides the work, as JSON."""
    labels: tuple[str, ...] = ()
    """Labels of the terms, by their canonical index."""
    depends_on: tuple[str, ...] = ()
    """Ids of the work that must be completed before."""
    reason: str | None = None
    """Why a point was skipped."""
    priority: int = 0
    """Of work: lower runs first; equal ones run in the order of the rows."""
    flops: float | None = None
    """Of work: floating-point operations of its training; None: unknown."""

    def __post_init__(self) -> None:
        if self.what == "skipped":
            return
        for id in (self.id, *self.depends_on):
            check_id(id)


@dataclass(frozen=True)
class Attempt:
    """One try to do a piece of planned work, as it ended."""

    id: str
    what: Work
    group_id: str | None
    epoch: int
    """The launch that made the attempt."""
    number: int
    """Counts the attempts of one id within a launch."""
    status: AttemptStatus
    failure_class: str | None
    error: str | None
    """The last lines of what went wrong."""
    started: datetime
    ended: datetime
    config_json: str
    resumed_from: tuple[int, int] | None
    """Epoch and number of the attempt whose checkpoint this one started from."""
    resumed_from_step: int
    values: Mapping[str, Scalar | None]
    """Metrics and provenance by column name."""
    resolved_json: str | None = None
    """What the configuration came to once models and data were there; None if it never did."""

    def __post_init__(self) -> None:
        check_id(self.id)
        check_counts(self.epoch, self.number)
        for moment in (self.started, self.ended):
            if moment.tzinfo is None:
                raise ValueError(f"{moment.isoformat()} says no time zone; use datetime.now(UTC)")


class AttemptKey(NamedTuple):
    """The name of an attempt; keys of one id sort by age."""

    id: str
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.id}.{self.epoch}-{self.number}"


def attempt_key(id: str, epoch: int, number: int) -> AttemptKey:
    """The key of an attempt, checked: it becomes part of a path."""
    check_id(id)
    check_counts(epoch, number)
    return AttemptKey(id, epoch, number)


def check_id(id: str | None) -> None:
    """Refuse whatever is no content id, before it becomes part of a path."""
    if id is None or not ID.fullmatch(id):
        raise ValueError(f"{id!r} is not an id: 8 to 64 lower-case hexadecimal digits")


def check_counts(*counts: int) -> None:
    """Refuse a negative epoch, number or part."""
    if any(count < 0 for count in counts):
        raise ValueError(f"{counts} has a negative count")
