"""Leaving: by command, by signal, or because another launch took over."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from toy import ENDLESS, PROGRAM, is_in_a_trial, wait_for

from kdsweep import results
from kdsweep.results.schema import Attempt
from kdsweep.results.store import Store
from kdsweep.search_spaces.grid import Retries
from kdsweep.sweep import drain, launching
from kdsweep.sweep.agenda import Agenda, Item
from kdsweep.sweep.drain import Drain, signals
from kdsweep.sweep.errors import NothingMatchesError
from kdsweep.sweep.lock import Holder, Lock, drain_request, take
from kdsweep.sweep.retrying import failures_by_class
from kdsweep.sweep.stop_request import ask_to_stop
from kdsweep.sweep.work import Keeper, Outcome, Work, run

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")


def make_sweep(folder: Path) -> Path:
    Store(folder).create({"name": "made", "launches": []})
    return folder / "locks"


def test_stopping_what_does_not_run_says_so_and_asks_nobody(tmp_path: Path) -> None:
    locks = make_sweep(tmp_path / "sweep")
    told: list[str] = []
    with pytest.raises(NothingMatchesError, match="no launch is running"):
        ask_to_stop(locks.parent, wait=False, tell=told.append)
    take(locks).release()
    with pytest.raises(NothingMatchesError, match="no launch is running"):
        ask_to_stop(locks.parent, wait=False, tell=told.append)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (locks / "000002.json").write_text(json.dumps(asdict(replace(Holder.here(), pid=child.pid))))
    with pytest.raises(NothingMatchesError, match=f"pid {child.pid} .* was killed"):
        ask_to_stop(locks.parent, wait=True, tell=told.append)
    assert not list(locks.glob("*.drain"))
    assert told == []


def test_a_launch_on_another_host_is_asked_through_its_store_and_waited_for(tmp_path: Path) -> None:
    locks = make_sweep(tmp_path / "sweep")
    elsewhere = replace(Holder.here(), host="elsewhere", pid=7)
    (locks / "000001.json").write_text(json.dumps(asdict(elsewhere)))
    launch = Lock(locks, 1)
    told: list[str] = []
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        launch.beat(len(naps), [], used={})
        if len(naps) == 5:
            assert drain_request(locks, 1).exists()
            launch.release()

    ask_to_stop(locks.parent, wait=True, tell=told.append, sleep=sleep)
    assert len(naps) == 5
    asked, left = told
    assert asked.startswith("launch 1 (pid 7 on elsewhere, since ")
    assert "has left; go on with: kdsweep resume" in left


def test_a_launch_on_another_host_that_died_is_not_waited_for_longer_than_a_minute(
    tmp_path: Path,
) -> None:
    locks = make_sweep(tmp_path / "sweep")
    elsewhere = replace(Holder.here(), host="elsewhere")
    (locks / "000001.json").write_text(json.dumps(asdict(elsewhere)))
    told: list[str] = []
    naps: list[float] = []
    ask_to_stop(locks.parent, wait=True, tell=told.append, sleep=naps.append)
    assert sum(naps) == 60
    assert "is gone without an orderly end" in told[-1]


class Running:
    """A serial launch of trials that train nothing, in the middle of one."""

    def __init__(self, grid: Path, environment: Mapping[str, str]) -> None:
        self.store = grid.parent / "runs" / "tiny"
        self.process = subprocess.Popen(
            [*PROGRAM, "launch", str(grid), *SERIAL],
            cwd=grid.parent,
            env={**environment, **ENDLESS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_for(lambda: self.process.poll() is not None or condition())
        assert self.process.poll() is None, self.process.communicate()[1]

    def end(self, *, seconds: float = 120) -> tuple[int, str]:
        said = self.process.communicate(timeout=seconds)[1]
        return self.process.returncode, said


Begin = Callable[..., Running]


@pytest.fixture
def begin(write_grid: WriteGrid, environment: dict[str, str]) -> Iterator[Begin]:
    """Starts a launch, and sees to it that none outlives the test."""
    begun: list[Running] = []

    def start(**variables: str) -> Running:
        begun.append(Running(write_grid(), environment | variables))
        return begun[-1]

    yield start
    for running in begun:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def running(begin: Begin) -> Running:
    made = begin()
    made.wait(lambda: is_in_a_trial(made.store))
    return made


def statuses(store: Path) -> list[str]:
    return [attempt.status for attempt in Store(store).read_attempts() if attempt.what == "trial"]


def test_stop_has_a_launch_checkpoint_and_leave_with_75(running: Running, kdsweep: Kdsweep) -> None:
    said = kdsweep("stop", running.store, "--wait")
    assert said.returncode == 0, said.stderr
    assert f"pid {running.process.pid} on {socket.gethostname()}" in said.stderr
    assert "has left" in said.stderr
    code, told = running.end()
    assert code == 75
    assert "stop: nothing new is started" in told
    assert statuses(running.store) == ["interrupted"]
    assert kdsweep("stop", running.store).returncode == 4


def test_sigterm_has_a_launch_checkpoint_and_leave_with_75(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    code, told = running.end()
    assert code == 75
    assert "SIGTERM: nothing new is started" in told
    assert "go on with: kdsweep resume" in told
    assert statuses(running.store) == ["interrupted"]
    assert set(results.load(running.store).trials["status"]) == {"pending"}


def test_a_training_that_is_asked_to_leave_is_saved_as_it_is_and_goes_on_from_there(
    work: Work,
) -> None:
    keeper, asked = Keeper(), iter([False] * 5 + [True])

    def run_once(number: int, stop: Callable[[], bool]) -> Outcome:
        again = {"number": number, "parent": (work.epoch, 1) if number > 1 else None}
        # Too long for any checkpoint that nobody asked for.
        attempt = work.model_copy(update={**again, "checkpoint_seconds": 1e9})
        return run(attempt, keeper=keeper, stop=stop, beat=lambda _: None, tell=lambda _: None)

    assert run_once(1, lambda: next(asked)) == Outcome(status="interrupted", step=5)
    assert run_once(2, lambda: False).status == "completed"
    first, second = Store(work.store).read_attempts()
    assert (first.status, second.status) == ("interrupted", "completed")
    assert second.resumed_from_step == 5


def test_grace_ends_what_runs_and_not_what_puts_the_store_in_order_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "GRACE_SECONDS", -1.0)
    agenda = Agenda([Item("trial")], allowed=lambda _: 0, failures={})
    agenda.take()
    lock = take(make_sweep(tmp_path / "sweep"))
    asked = Drain(agenda, lock, lambda _: None)
    asked.ask("SIGTERM")
    with pytest.raises(KeyboardInterrupt), signals(asked, agenda):
        asked.look()
        time.sleep(60)
    again = Drain(agenda, lock, lambda _: None)
    with signals(again, agenda):
        again.ask("SIGTERM")
    again.look()


def test_a_second_ctrl_c_ends_a_launch_whose_trial_does_not_listen(
    begin: Begin, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    # Whatever trains first stands still once it has a checkpoint.
    running = begin(KDSWEEP_FAILPOINT=f"checkpoint=hang::{held}")
    running.wait(held.exists)
    running.process.send_signal(signal.SIGINT)
    wait_for(lambda: bool(list((running.store / "locks").glob("*.drain"))))
    running.process.send_signal(signal.SIGINT)
    code, told = running.end()
    assert code == 130
    assert "SIGINT: nothing new is started" in told
    assert "ended at once; what ran goes on from its last checkpoint" in told
    assert Store(running.store).read_attempts() == ()


def test_a_launch_that_wakes_up_after_it_was_overtaken_commits_nothing_and_leaves(
    running: Running,
) -> None:
    running.process.send_signal(signal.SIGSTOP)
    before = statuses(running.store)
    # As another host would after a silent minute.
    holder = replace(Holder.here(), host="elsewhere")
    (running.store / "locks" / "000002.json").write_text(json.dumps(asdict(holder)))
    running.process.send_signal(signal.SIGCONT)
    code, told = running.end()
    assert code == 75
    assert "overtaken: nothing new is started" in told
    assert statuses(running.store) == before == []


def test_single_trials_of_a_launch_are_cancelled_and_the_others_go_on(
    running: Running, kdsweep: Kdsweep
) -> None:
    store = running.store
    first, second, third, _ = results.load(store).trials["trial_id"]
    said = kdsweep("stop", store, "--trial", first[:12], "--trial", second)
    assert said.returncode == 0, said.stderr
    assert f"pid {running.process.pid} on {socket.gethostname()}" in said.stderr
    assert "is asked to end 2 trials" in said.stderr
    wait_for(lambda: bool(list(store.glob(f"work/{third}/*/checkpoints/step-*"))))
    assert kdsweep("stop", store, "--wait").returncode == 0
    assert running.end()[0] == 75
    shown = results.load(store).trials.set_index("trial_id")
    assert list(shown["status"]) == ["failed", "failed", "pending", "pending"]
    assert list(shown["failure_class"][[first, second]]) == ["cancelled", "cancelled"]
    by = [a.values["failure/asked_by"] for a in attempts_of(store, first, second)]
    assert [str(each).endswith(f" on {socket.gethostname()}") for each in by] == [True, True]
    # The second one was never begun, and nothing of the requests is left.
    assert not (store / "work" / second).exists()
    assert not list((store / "locks").glob("*.cancel"))
    # They have failed, like others: `launch` leaves them, `resume` gives them another try.
    failures = failures_by_class(Store(store).read_attempts())
    items = [Item(id) for id in (first, second, third)]
    assert Agenda(items, allowed=Retries().allowed, failures=failures).failed == [first, second]
    rows = Store(store).read_plan()
    chosen = launching._chosen(Store(store), rows, failed_only=True, trials=())
    assert chosen == {first, second}


def attempts_of(store: Path, *ids: str) -> list[Attempt]:
    return [attempt for attempt in Store(store).read_attempts() if attempt.id in ids]


def test_what_cannot_be_cancelled_is_said(launched: Path, kdsweep: Kdsweep) -> None:
    trial, *_ = results.load(launched).trials["trial_id"]
    assert kdsweep("stop", launched, "--trial", trial).returncode == 4
    # As while a launch runs.
    take(launched / "locks")
    said = kdsweep("stop", launched, "--trial", trial, "--trial", "0nothing", "--trial", "xyz")
    assert said.returncode == 2
    assert "--trial: `0nothing` names no trial" in said.stderr
    assert "--trial: `xyz` names no trial" in said.stderr
    said = kdsweep("stop", launched, "--trial", trial)
    assert said.returncode == 4
    assert "1 trial named, and completed already" in said.stderr
    said = kdsweep("stop", launched, "--trial", trial, "--wait")
    assert said.returncode == 2
    assert "with `--trial` it goes on" in said.stderr
    assert not list((launched / "locks").glob("*.cancel"))
