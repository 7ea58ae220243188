"""How often work has failed, and how long it still waits: from the committed attempts alone."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from ..results.schema import Attempt
from .failures import wait_seconds


def failures_by_class(attempts: Sequence[Attempt]) -> dict[str, Counter[str]]:
    """Of every piece of work that has ever failed, how often in each way."""
    failures: dict[str, Counter[str]] = defaultdict(Counter)
    for attempt in attempts:
        if attempt.status == "failed":
            failures[attempt.id][attempt.failure_class or "error"] += 1
    return failures


def waits(
    attempts: Sequence[Attempt],
    *,
    allowed: Callable[[str], int],
    fresh: bool,
    now: datetime,
) -> dict[str, float]:
    """Seconds that work whose latest attempt failed still has to wait.

    Another host's clock may be wrong: nothing waits longer than if it had failed just now.

    Args:
        attempts: In their order, the latest last.
        allowed: How many failures of a class are tried again.
        fresh: Whether work whose retries are used up is tried again, at once, since somebody asks.
        now: With a time zone.
    """
    failures = failures_by_class(attempts)
    latest = {attempt.id: attempt for attempt in attempts}
    found: dict[str, float] = {}
    for id, counts in failures.items():
        attempt = latest[id]
        kind = attempt.failure_class or "error"
        if attempt.status != "failed" or (fresh and counts[kind] > allowed(kind)):
            continue
        wait = wait_seconds(id, kind, counts[kind])
        since = (now - attempt.ended).total_seconds()
        found[id] = min(wait, wait - since)
    return found
