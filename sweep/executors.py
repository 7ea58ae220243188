"""How work is run: the interface, and the executor that runs it in this very process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from ..search_spaces.grid import Resources
from .agenda import Agenda
from .work import Keeper, Outcome, Work, run

MakeWork = Callable[[str], Work]
"""From an item's id to its next attempt."""

Settle = Callable[[Work, Outcome], None]
"""Books the outcome of an attempt."""


@dataclass(frozen=True)
class Choice:
    """Which executor, and where."""

    name: Literal["ray", "serial"] = "ray"
    address: str = "local"
    """Of a Ray cluster: `local` starts one of its own."""
    max_concurrent: int | None = None
    """Most trials at once; as many as fit unless said."""

    def make(self, resources: Resources) -> "Executor":
        """The executor for trials that take these resources."""
        match self.name:
            case "serial":
                return Serial()
            case "ray":
                from .ray_executor import RayExecutor

                return RayExecutor(resources, self.address, self.max_concurrent)
            case _:
                assert_never(self.name)


class Executor(Protocol):
    """Runs an agenda's items until nothing runs and nothing can start."""

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle) -> None:
        """Return once the agenda is over."""

    def is_lost(self) -> bool:
        """Whether what runs the work has gone away, so that nothing will ever be settled."""


class Serial:
    """One piece of work after another in this process: a failing trial is one breakpoint away.

    Without lanes there is neither a time limit nor isolation from signals.
    """

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle) -> None:
        """Return once the agenda is over."""
        keeper = Keeper()
        while (id := agenda.take()) is not None:
            work = make_work(id)
            outcome = run(work, keeper=keeper, stop=lambda: agenda.is_draining, beat=lambda _: None)
            settle(work, outcome)

    def is_lost(self) -> bool:
        """This process is there."""
        return False
