"""How each piece of planned work stands, from the attempts made at it; pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from .schema import AttemptKey

Status = Literal["completed", "stopped", "failed", "running", "pending", "blocked"]
STATUSES: tuple[Status, ...] = get_args(Status)


class Try(NamedTuple):
    """What of a committed attempt decides how its work stands."""

    key: AttemptKey
    status: str
    ended: datetime
    row: int
    """Its place in the table of attempts."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work stands."""

    status: Status
    counted: Try | None
    """The attempt that speaks for the work: the completed one, else the latest."""
    num_attempts: int


def outcomes(
    depends_on: Mapping[str, Sequence[str]],
    tries: Mapping[str, Sequence[Try]],
    running: Collection[str],
) -> dict[str, Outcome]:
    """How all work stands.

    Args:
        depends_on: What each planned piece of work needs; one entry for each piece.
        tries: The committed attempts by id, of planned work and of any other.
        running: Ids that a living launch is working on.
    """
    found = {
        id: _outcome(tries.get(id, ()), is_running=id in running) for id in {**depends_on, **tries}
    }
    unavailable = {id for id, outcome in found.items() if outcome.status == "failed"}
    # What waits for blocked work is blocked as well, so this spreads until nothing changes.
    while blocked := {
        id
        for id, needed in depends_on.items()
        if found[id].status == "pending" and not unavailable.isdisjoint(needed)
    }:
        for id in blocked:
            found[id] = Outcome("blocked", found[id].counted, found[id].num_attempts)
        unavailable |= blocked
    return found


def _outcome(tries: Sequence[Try], *, is_running: bool) -> Outcome:
    completed = [attempt for attempt in tries if attempt.status == "completed"]
    if completed:
        # A launch that was taken for dead may commit late: the first stays the one that counts.
        first = min(completed, key=lambda attempt: (attempt.ended, attempt.key))
        return Outcome("completed", first, len(tries))
    latest = max(tries, key=lambda attempt: attempt.key, default=None)
    if is_running:
        return Outcome("running", latest, len(tries))
    if latest is not None and latest.status == "failed":
        return Outcome("failed", latest, len(tries))
    if latest is not None and latest.status == "stopped":
        return Outcome("stopped", latest, len(tries))
    return Outcome("pending", latest, len(tries))
