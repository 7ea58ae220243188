"""How work is run: the interface, and the executor that runs it in this very process."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.resources import Request
from .address import check_reachable, host_and_port
from .agenda import Agenda
from .cancelling import cancelled, forget_request
from .machines import this_machine, unmet
from .survey import HERE, Device, Surveyed, survey
from .work import Keeper, Outcome, Work, fail, run

TICK_SECONDS = 0.25

MakeWork = Callable[[str], Work]
"""From an item's id to its next attempt."""

Settle = Callable[[Work, Outcome], None]
"""Books the outcome of an attempt."""

Hear = Callable[[Work, Mapping[str, Any]], None]
"""Is told what a lane says in the middle of an attempt."""


@dataclass(frozen=True)
class Choice:
    """Which executor, and where."""

    name: Literal["ray", "serial"] = "ray"
    address: str = "local"
    """Of a Ray cluster: `local` starts one of its own."""
    max_concurrent: int | None = None
    """Most trials at once; as many as fit unless said."""
    allows_open: bool = False
    """Whether the cluster may be one that asks for no token."""
    lane: str = "kdsweep.sweep.lane"
    """The module that trains under Ray; another one serves measurements and tests of the rest."""

    def __post_init__(self) -> None:
        """Refuse an address that is none.

        Raises:
            InputError: It is neither `local`, `auto` nor `HOST:PORT`, or it is allowed to be open
                where that is nobody's to allow.
        """
        if self.allows_open and (self.name != "ray" or self.address == "local"):
            what = (
                "acts on the cluster of `--address`, and a launch's own always asks for its token"
            )
            raise InputError([Problem("--insecure-cluster", what, "Leave it out.")])
        if self.address not in ("local", "auto") and host_and_port(self.address) is None:
            client = self.address.startswith("ray://")
            raise InputError(
                [
                    Problem(
                        "--address",
                        f"{self.address} is the address of a Ray Client, which cannot run a sweep"
                        if client
                        else f"`{self.address}` is no address of a Ray cluster",
                        "Write `local` (one of its own), `auto` (the one that this machine is part "
                        "of) or HOST:PORT of its head node, such as 10.0.0.1:6379.",
                    )
                ]
            )

    def check_room(self, requests: Collection[Request]) -> None:
        """Compare what trials ask for with this machine, where it is this machine that runs them.

        A cluster elsewhere is asked when a launch is about to use it.

        Raises:
            InputError: It can never have so much.
        """
        if self.address == "local" and (problems := unmet(requests, [this_machine()])):
            raise InputError(problems)

    def survey(self, store: Store, requests: Collection[Request], *, device: Device) -> Surveyed:
        """See whether trials can be run there at all, before anything is spent on it.

        Args:
            store: The sweep's, which all nodes have to see.
            requests: What trials ask for.
            device: What they compute on.

        Raises:
            InputError: What trials ask for is nowhere, or the cluster is not to be used so.
            ClusterUnreachableError: It does not answer.
        """
        if self.name == "serial":
            return HERE
        self.check_room(requests)
        if self.address == "local":
            return HERE
        if self.address != "auto":
            check_reachable(self.address)
        return survey(self.address, store, requests, device=device, allows_open=self.allows_open)

    def make(self, surveyed: Surveyed, *, log: Path, tell: Callable[[str], None]) -> "Executor":
        """The executor of this choice.

        Args:
            surveyed: Where it runs.
            log: Where an engine's own processes say what they have to say.
            tell: Says a line to the person who launched.
        """
        match self.name:
            case "serial":
                return Serial()
            case "ray":
                from .ray_executor import RayExecutor

                return RayExecutor(
                    address=self.address,
                    is_open=surveyed.is_open,
                    max_concurrent=self.max_concurrent,
                    lane=self.lane,
                    log=log,
                    tell=tell,
                )
            case _:
                assert_never(self.name)


def wait_until_due(agenda: Agenda) -> bool:
    """Return True once an item can be taken, False if none ever will; for when nothing runs."""
    while seconds := agenda.seconds_until_due():
        # Whoever asks the launch to leave must not wait as long as a trial that failed.
        time.sleep(min(seconds, TICK_SECONDS))
    return seconds is not None


def next_work(agenda: Agenda, *, make_work: MakeWork, settle: Settle) -> Work | None:
    """The next attempt; those that somebody asked not to start are booked, and never begun."""
    while (id := agenda.take()) is not None:
        work = make_work(id)
        if (asked := cancelled(work)) is None:
            return work
        outcome = fail(work, asked.failure_class, asked.error, evidence=asked.evidence)
        forget_request(work)
        settle(work, outcome)
    return None


class Executor(Protocol):
    """Runs an agenda's items until nothing runs and nothing can start."""

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle, hear: Hear) -> None:
        """Return once the agenda is over."""


class Serial:
    """One piece of work after another in this process: a failing trial is one breakpoint away.

    Without lanes there is neither a time limit nor isolation from signals.
    """

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle, hear: Hear) -> None:
        """Return once the agenda is over."""
        keeper = Keeper()
        while wait_until_due(agenda):
            work = next_work(agenda, make_work=make_work, settle=settle)
            if work is None:
                continue
            outcome = run(
                work,
                keeper=keeper,
                stop=partial(_has_to_stop, agenda, work),
                beat=lambda _: None,
                tell=partial(hear, work),
                leaves=partial(cancelled, work),
            )
            if outcome.failure_class == "cancelled":
                forget_request(work)
            settle(work, outcome)


def _has_to_stop(agenda: Agenda, work: Work) -> bool:
    return agenda.is_draining or cancelled(work) is not None
