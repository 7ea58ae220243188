"""A circuit breaker: a launch whose first trials all fail in one way does not train the others."""

from collections import defaultdict

from ..results.fingerprint import cause, fingerprint
from .failures import POLICIES, policy
from .work import Outcome, Work

AT_FIRST = max(each.alike or 0 for each in POLICIES.values())
"""Most pieces of work at once until a trial of the sweep has been completed: those that it takes to
see that all fail."""


class Breaker:
    """Counts failures that are alike, until a trial is completed."""

    def __init__(self, *, is_proven: bool = False) -> None:
        """Count from nothing.

        Args:
            is_proven: Whether an earlier launch of the sweep brought a trial to a result.
        """
        self.is_proven = is_proven
        """Whether a trial has come to a result: what fails from now on fails by itself."""
        self._alike: dict[tuple[str, str], set[str]] = defaultdict(set)

    def note(self, work: Work, outcome: Outcome) -> str | None:
        """Take in how an attempt ended; why the launch should stop, if it should."""
        match outcome.status:
            case "completed" | "stopped":
                self.is_proven |= work.what == "trial"
            case "failed" if not self.is_proven:
                return self._note_failure(work.id, outcome.failure_class or "error", outcome.error)
            case _:
                pass
        return None

    def _note_failure(self, id: str, failure_class: str, error: str | None) -> str | None:
        alike = self._alike[failure_class, fingerprint(error or "")]
        alike.add(id)
        most = policy(failure_class).alike
        if most is None or len(alike) < most:
            return None
        return (
            f"the first {most} that failed did so alike, before any trial was completed: "
            f"{failure_class}: {cause(error or '')}"
        )
