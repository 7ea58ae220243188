"""Runs an agenda on Ray, from outside of Ray: drivers come and go, the launch stays.

Ray Tune runs in a process of its own, the driver. Whatever ends it (Ray's own memory killer makes
Tune abort all trials, a signal, a lost head node) costs what was running its attempt and nothing
else: this end books what the driver had in hand as `worker_lost` and starts another one.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from .agenda import Agenda
from .errors import ClusterLostError, ClusterUnreachableError
from .executors import Hear, MakeWork, Settle, next_work, wait_until_due
from .failures import LAST_LINES, describe_exit
from .inherited import ensure_token, for_ray
from .work import Outcome, Work, fail

WAVE = 1000
"""Trials of one Tuner; Tune keeps every trial it ever saw in memory."""

MOST_DEATHS = 5
"""As many drivers may die within `DEATHS_SECONDS`; with the next one the cluster counts as lost."""

DEATHS_SECONDS = 3600.0

LEAVE_SECONDS = 10.0
"""Time for a driver to disconnect from its cluster."""

TOKEN = "KDSWEEP_DRIVER"
"""Variable that all processes of a driver inherit: by it they are found when the driver is dead."""


@dataclass(frozen=True)
class RayExecutor:
    """Runs an agenda on a Ray cluster: a local one of its own unless an address is given."""

    address: str
    is_open: bool
    """Whether the cluster is known to ask for no token."""
    max_concurrent: int | None
    lane: str
    """The module that trains."""
    log: Path
    """Where drivers say what they have to say."""
    tell: Callable[[str], None]

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle, hear: Hear) -> None:
        """Return once the agenda is over, driver after driver.

        Raises:
            ClusterUnreachableError: No Ray cluster answers, or none can be started.
            ClusterLostError: It does not answer any more, or its drivers die again and again.
        """
        deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        was_up = False
        is_local = self.address == "local"
        if is_local:
            ensure_token(os.environ, Path.home())
        environment = for_ray(os.environ, is_local=is_local, is_open=self.is_open)
        while wait_until_due(agenda):
            with Driver(self.lane, self.log, environment) as driver:
                served = _Served(driver, agenda, make_work, settle, hear)
                try:
                    why = served.run(self.address, self.max_concurrent)
                except ClusterUnreachableError as error:
                    if was_up:
                        raise ClusterLostError(str(error)) from error
                    raise
                if why is None:
                    return
                driver.end_all()
                served.lose(why)
            was_up = was_up or served.is_up
            # Whoever killed the first one may have meant only that.
            if not was_up and deaths:
                raise ClusterUnreachableError(f"Ray does not start: {why}")
            now = time.monotonic()
            if len(deaths) == MOST_DEATHS and now - deaths[0] < DEATHS_SECONDS:
                raise ClusterLostError(f"drivers of Ray die again and again, at last: {why}")
            deaths.append(now)
            if not agenda.is_over:
                self.tell(f"{why}; another one takes over, and what ran is tried again")


@dataclass
class _Served:
    """One driver's requests, and what it has in hand."""

    driver: "Driver"
    agenda: Agenda
    make_work: MakeWork
    settle: Settle
    hear: Hear
    is_up: bool = False
    _given: dict[str, Work] = field(default_factory=dict)
    _in_wave: int = 0

    def run(self, address: str, max_concurrent: int | None) -> str | None:
        """Serve until the agenda is over, or else return how the driver died.

        Raises:
            ClusterUnreachableError: No Ray cluster answers.
        """
        self.driver.send({"address": address, "max_concurrent": max_concurrent})
        for message in self.driver.messages():
            match message:
                case {"up": _}:
                    self.is_up = True
                case {"unreachable": why}:
                    raise ClusterUnreachableError(why)
                case {"wants": trial}:
                    self.driver.send(self._next(trial))
                case {"heard": trial, "messages": messages}:
                    for said in messages:
                        self.hear(self._given[trial], said)
                case {"ended": trial, "refused": {"class": failure_class, "why": why}}:
                    work = self._given.pop(trial)
                    self.settle(work, fail(work, failure_class, why))
                case {"ended": trial, "outcome": outcome}:
                    self._end(self._given.pop(trial), outcome)
                case {"wave": "over"}:
                    self.lose("Ray Tune lost sight of this attempt")
                    self._in_wave = 0
                    if not wait_until_due(self.agenda):
                        self.driver.leave()
                        return None
                    self.driver.send({"go": True})
                case _:
                    raise ValueError(f"a driver said {message}")
        return self.driver.describe_death()

    def lose(self, why: str) -> None:
        """Book whatever the driver still has in hand as lost."""
        while self._given:
            _, work = self._given.popitem()
            self.settle(work, fail(work, "worker_lost", why))

    def _next(self, trial: str) -> dict[str, Any]:
        if self._in_wave >= WAVE:
            return {"over": True}
        work = next_work(self.agenda, make_work=self.make_work, settle=self.settle)
        if work is None:
            # To wait while nothing runs would make Tune sleep for minutes without a heartbeat.
            return {"wait": True} if self.agenda.running else {"over": True}
        self._in_wave += 1
        self._given[trial] = work
        return {"work": work.model_dump_json()}

    def _end(self, work: Work, outcome: str | None) -> None:
        lost = "the actor that supervised the lane was lost"
        self.settle(
            work,
            fail(work, "worker_lost", lost)
            if outcome is None
            else Outcome.model_validate_json(outcome),
        )


class Driver:
    """The process that speaks with Ray, and all that it starts on this host."""

    def __init__(self, lane: str, log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            lane: The module that trains.
            log: Where it says what it has to say.
            environment: Its variables.
        """
        self._log = log
        self._token = secrets.token_hex(16)
        # Here, since whatever kills the driver would leave it behind.
        self._scratch = tempfile.TemporaryDirectory(
            prefix="kdsweep-tune-", ignore_cleanup_errors=True
        )
        messages, said = os.pipe()
        heard, answers = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "kdsweep.sweep.driver"),
                    *(str(heard), str(said), lane, self._scratch.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(heard, said),
                # A Ctrl-C in the terminal is for the launch alone.
                start_new_session=True,
                env={**environment, TOKEN: self._token},
            )
        os.close(heard)
        os.close(said)
        self._messages = os.fdopen(messages, "rb")
        self._answers = os.fdopen(answers, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        self._scratch.cleanup()
        self._messages.close()
        with contextlib.suppress(BrokenPipeError):
            self._answers.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Answer; a driver that is dead is noticed when it says nothing more."""
        with contextlib.suppress(BrokenPipeError):
            self._answers.write(json.dumps(message).encode() + b"\n")
            self._answers.flush()

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """What it says, until it is gone."""
        for line in self._messages:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    def leave(self) -> None:
        """Have it disconnect from its cluster in order."""
        self.send({"leave": True})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_SECONDS)

    def describe_death(self) -> str:
        """How it ended, in words, with the last lines of its log."""
        try:
            how = describe_exit(self._process.wait(LEAVE_SECONDS), who="the driver of Ray")
        except subprocess.TimeoutExpired:
            how = "the driver of Ray does not speak any more"
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([*lines, how]) if self._process.returncode else how

    def end_all(self) -> None:
        """End it and every process on this host that it started, directly or not."""
        end_processes(self._token)
        self._process.kill()
        self._process.wait()


def end_processes(token: str, *, but: int | None = None) -> None:
    """Kill every process that has inherited a driver's token, except one."""
    # Whoever is killed cannot start another, but one that was just being started may be missed.
    while found := [each for each in _carrying(token) if each.pid != but]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=1.0)


def _carrying(token: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                yield process
