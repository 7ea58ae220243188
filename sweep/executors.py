"""How work is run: the interface, and the executor that runs it in this very process."""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

from ..search_spaces.errors import InputError, Problem
from ..search_spaces.grid import Resources
from .agenda import Agenda
from .errors import ClusterUnreachableError
from .work import Keeper, Outcome, Work, run

CONNECT_SECONDS = 5.0
MOST_PORT = 65535
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
    lane: str = "kdsweep.sweep.lane"
    """The module that trains under Ray; another one serves measurements and tests of the rest."""

    def __post_init__(self) -> None:
        """Refuse an address that is none.

        Raises:
            InputError: It is neither `local`, `auto` nor `HOST:PORT`.
        """
        if self.address not in ("local", "auto") and _host_and_port(self.address) is None:
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

    def check_reachable(self) -> None:
        """See whether anything listens at the address; Ray itself would try for minutes.

        Raises:
            ClusterUnreachableError: Nothing does.
        """
        place = _host_and_port(self.address)
        if self.name != "ray" or place is None:
            return
        try:
            socket.create_connection(place, timeout=CONNECT_SECONDS).close()
        except (OSError, UnicodeError) as error:
            raise ClusterUnreachableError(
                f"no Ray cluster answers at {self.address}: {error}"
            ) from error

    def make(self, resources: Resources, *, log: Path, tell: Callable[[str], None]) -> "Executor":
        """The executor for trials that take these resources.

        Args:
            resources: Of a trial.
            log: Where an engine's own processes say what they have to say.
            tell: Says a line to the person who launched.
        """
        match self.name:
            case "serial":
                return Serial()
            case "ray":
                from .ray_executor import RayExecutor

                return RayExecutor(
                    resources=resources,
                    address=self.address,
                    max_concurrent=self.max_concurrent,
                    lane=self.lane,
                    log=log,
                    tell=tell,
                )
            case _:
                assert_never(self.name)


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    is_host = host and not set(host) & set("/@ ")
    is_port = port.isascii() and port.isdecimal() and int(port) <= MOST_PORT
    return (host.strip("[]"), int(port)) if is_host and is_port else None


def wait_until_due(agenda: Agenda) -> bool:
    """Return True once an item can be taken, False if none ever will; for when nothing runs."""
    while seconds := agenda.seconds_until_due():
        # Whoever asks the launch to leave must not wait as long as a trial that failed.
        time.sleep(min(seconds, TICK_SECONDS))
    return seconds is not None


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
        while wait_until_due(agenda) and (id := agenda.take()) is not None:
            work = make_work(id)
            outcome = run(
                work,
                keeper=keeper,
                stop=lambda: agenda.is_draining,
                beat=lambda _: None,
                tell=partial(hear, work),
            )
            settle(work, outcome)
