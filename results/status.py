"""How far a sweep is, from its files alone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

import pyarrow.compute as pc

from .outcome import STATUSES, Outcome, Status
from .schema import Work
from .snapshot import Snapshot, take_snapshot
from .store import Store
from .tables import take


class Pace(NamedTuple):
    """How quickly trials get done."""

    trials_per_hour: float
    seconds_left: float


@dataclass(frozen=True)
class Summary:
    """How far a sweep is."""

    name: str
    """The sweep's folder."""
    counts: Mapping[Status, int]
    """Trials of the current plan by status; every status is named."""
    teachers: Mapping[Status, int]
    """The same for teachers."""
    stages: Mapping[Status, int]
    """The same for stages that several trials begin with."""
    failed_by_class: Mapping[str, int]
    """What failed, by failure class, the most frequent first."""
    running: tuple[str, ...]
    """Ids of what a living launch is working on."""
    num_waiting: int
    """How much of what failed a living launch lets wait before it tries it again."""
    seconds_until_retry: float | None
    """Until the first of it is tried again; None where nothing waits."""
    trials_per_hour: float | None
    """Completed or stopped in the newest launch that did so with any; None before that."""
    seconds_left: float | None
    """Until nothing is pending or running, at that rate; None while nobody can say."""
    damaged: int
    """Files that could not be read."""


def summary(store: Store) -> Summary:
    """How far a sweep is; reads its plan, its attempts and its beat.

    Raises:
        StoreNotFoundError: There is no sweep.
        NewerStoreError: A newer kdsweep wrote it.
    """
    snapshot = take_snapshot(store.source)
    outcomes = {
        what: [
            snapshot.outcomes[id]
            for id in snapshot.plan.filter(pc.equal(snapshot.plan["what"], what))["id"].to_pylist()
        ]
        for what in get_args(Work)
    }
    counts = _counts(outcomes["trial"])
    rate = pace(
        [each for each in outcomes["trial"] if each.status in ("completed", "stopped")],
        snapshot,
        num_left=counts["pending"] + counts["running"],
    )
    return Summary(
        name=store.folder.name,
        counts=counts,
        teachers=_counts(outcomes["teacher"]),
        stages=_counts(outcomes["stage"]),
        failed_by_class=_failures([each for of in outcomes.values() for each in of], snapshot),
        running=tuple(sorted(snapshot.beat.running)),
        num_waiting=snapshot.beat.num_waiting,
        seconds_until_retry=snapshot.beat.seconds_until_retry,
        trials_per_hour=rate and rate.trials_per_hour,
        seconds_left=rate and rate.seconds_left,
        damaged=len(snapshot.damaged),
    )


def pace(done: Collection[Outcome], snapshot: Snapshot, *, num_left: int) -> Pace | None:
    """Trials per hour between the first start and the last end of the newest busy launch.

    Time between launches, in which nothing ran, does not count; how many trials ran at once does.
    """
    tries = [outcome.counted for outcome in done if outcome.counted is not None]
    newest = max((each.key.epoch for each in tries), default=None)
    rows = [each.row for each in tries if each.key.epoch == newest]
    if not rows:
        return None
    times = take(snapshot.attempts.select(["started", "ended"]), rows)
    span = (pc.max(times["ended"]).as_py() - pc.min(times["started"]).as_py()).total_seconds()
    if span <= 0:
        return None
    return Pace(3600 * len(rows) / span, num_left * span / len(rows))


def _counts(outcomes: Collection[Outcome]) -> dict[Status, int]:
    found = Counter(outcome.status for outcome in outcomes)
    return {status: found[status] for status in STATUSES}


def _failures(outcomes: Collection[Outcome], snapshot: Snapshot) -> dict[str, int]:
    rows = [
        outcome.counted.row
        for outcome in outcomes
        if outcome.status == "failed" and outcome.counted is not None
    ]
    classes = take(snapshot.attempts.select(["failure_class"]), rows)["failure_class"].to_pylist()
    return dict(Counter(name or "error" for name in classes).most_common())
