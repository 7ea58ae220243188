"""How far a sweep is, from its files alone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

import pyarrow.compute as pc

from .outcome import STATUSES, Outcome, Status
from .rows import FLOPS
from .schema import Work
from .snapshot import Snapshot, take_snapshot
from .store import Store
from .tables import take
from .times import Spared, lane_seconds, spared_by_features

_UNPROPOSED = "unproposed"
"""Stands for a trial that a search may still propose: nobody knows its operations."""


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
    lane_seconds: Mapping[str, float]
    """What all attempts have taken, by phase, the longest first."""
    spared_by_features: Spared | None
    """What lanes did not have to ask a teacher twice; None where no attempt read features."""
    damaged: int
    """Files that could not be read."""
    slots: tuple[int, int] | None
    """Of a search: filled, and planned; trials are counted as they are proposed. None without."""


def summary(store: Store) -> Summary:
    """How far a sweep is; reads its plan, its attempts and its beat.

    Raises:
        StoreNotFoundError: There is no sweep.
        NewerStoreError: A newer kdsweep wrote it.
    """
    snapshot = take_snapshot(store.source)
    outcomes = {
        what: {
            id: snapshot.outcomes[id]
            for id in snapshot.plan.filter(pc.equal(snapshot.plan["what"], what))["id"].to_pylist()
        }
        for what in get_args(Work)
    }
    counts = _counts(outcomes["trial"].values())
    filled, planned = len(snapshot.proposals), sum(study.slots for study in snapshot.studies)
    per_slot = len(outcomes["trial"]) / filled if filled else 1
    unproposed = round(max(0, planned - filled) * per_slot)
    rate = pace(outcomes["trial"], snapshot, unproposed=unproposed)
    return Summary(
        name=store.folder.name,
        counts=counts,
        teachers=_counts(outcomes["teacher"].values()),
        stages=_counts(outcomes["stage"].values()),
        failed_by_class=_failures(
            [each for of in outcomes.values() for each in of.values()], snapshot
        ),
        running=tuple(sorted(snapshot.beat.running)),
        num_waiting=snapshot.beat.num_waiting,
        seconds_until_retry=snapshot.beat.seconds_until_retry,
        trials_per_hour=rate and rate.trials_per_hour,
        seconds_left=rate and rate.seconds_left,
        lane_seconds=lane_seconds(snapshot.attempts),
        spared_by_features=spared_by_features(snapshot.attempts),
        damaged=len(snapshot.damaged),
        slots=(filled, planned) if snapshot.studies else None,
    )


def pace(trials: Mapping[str, Outcome], snapshot: Snapshot, *, unproposed: int = 0) -> Pace | None:
    """Trials per hour between the first start and the last end of the newest busy launch.

    Time between launches, in which nothing ran, does not count; how many trials ran at once does.
    What is left takes as much longer as it has more operations; what a search has not proposed yet
    (`unproposed`, a number of trials) by its number.
    """
    done = {
        id: outcome.counted
        for id, outcome in trials.items()
        if outcome.status in ("completed", "stopped") and outcome.counted is not None
    }
    newest = max((each.key.epoch for each in done.values()), default=None)
    counted = {id: each.row for id, each in done.items() if each.key.epoch == newest}
    if not counted:
        return None
    times = take(snapshot.attempts.select(["started", "ended"]), list(counted.values()))
    span = (pc.max(times["ended"]).as_py() - pc.min(times["started"]).as_py()).total_seconds()
    if span <= 0:
        return None
    left = [id for id, outcome in trials.items() if outcome.status in ("pending", "running")]
    left += [_UNPROPOSED] * unproposed
    return Pace(3600 * len(counted) / span, span * work_left(counted, left, _flops(snapshot)))


def work_left(
    done: Collection[str], left: Collection[str], flops: Mapping[str, float | None]
) -> float:
    """How many times the work of `done` is left; by number where operations are not all known.

    Args:
        done: Ids of at least one trial.
        left: Ids of trials.
        flops: Operations of each trial's training.
    """
    of_done, of_left = ([flops.get(id) for id in ids] for ids in (done, left))
    known = [[each for each in found if each] for found in (of_done, of_left)]
    if [len(each) for each in known] != [len(done), len(left)]:
        return len(left) / len(done)
    return sum(known[1]) / sum(known[0])


def _flops(snapshot: Snapshot) -> dict[str, float | None]:
    plan = snapshot.plan
    if FLOPS not in plan.column_names:
        return {}
    return dict(zip(plan["id"].to_pylist(), plan[FLOPS].to_pylist(), strict=True))


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
