"""One launch at a time."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from kdsweep.results.store import Store
from kdsweep.search_spaces.grid import Grid
from kdsweep.sweep import launching
from kdsweep.sweep import lock as locking
from kdsweep.sweep.errors import StaleEpochError, SweepLockedError
from kdsweep.sweep.lock import Holder, Lock, is_released, newest_epoch, take


def hold(locks: Path, holder: Holder, *, epoch: int = 1) -> None:
    locks.mkdir(exist_ok=True)
    (locks / f"{epoch:06d}.json").write_text(json.dumps(asdict(holder)))


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_epochs_grow_by_one_with_each_launch(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        lock = take(tmp_path)
        assert lock.epoch == epoch
        lock.release()


def test_a_living_launch_on_this_host_keeps_the_sweep(tmp_path: Path) -> None:
    take(tmp_path)
    with pytest.raises(SweepLockedError, match=f"pid {os.getpid()}"):
        take(tmp_path)
    assert newest_epoch(tmp_path) == 1


def test_a_launch_that_was_killed_on_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), pid=dead_process()))
    assert take(tmp_path).epoch == 2


def test_another_process_under_the_old_pid_does_not_count_as_the_launch(tmp_path: Path) -> None:
    here = Holder.here()
    hold(tmp_path, replace(here, started=here.started - 1000))
    assert take(tmp_path).epoch == 2


def test_a_launch_before_a_reboot_does_not_hold_the_sweep(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), boot_id="another boot"))
    assert take(tmp_path).epoch == 2


def test_a_launch_on_another_host_holds_the_sweep_while_its_beat_changes(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), host="elsewhere"))
    beat = tmp_path / "000001.beat"
    beats = iter(range(100))

    def sleep(seconds: float) -> None:
        beat.write_text(str(next(beats)))

    with pytest.raises(SweepLockedError, match="elsewhere"):
        take(tmp_path, sleep=sleep)


def test_a_launch_on_another_host_is_taken_over_after_a_silent_minute(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), host="elsewhere"))
    (tmp_path / "000001.beat").write_text("7")
    waited: list[float] = []
    assert take(tmp_path, sleep=waited.append).epoch == 2
    assert sum(waited) == 60


def test_of_two_launches_at_once_one_gets_the_sweep(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from kdsweep.sweep.errors import SweepLockedError\n"
        "from kdsweep.sweep.lock import take\n"
        "try: lock = take(Path(sys.argv[1])); print(lock.epoch); time.sleep(3)\n"
        "except SweepLockedError: print('locked')"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = sorted(child.communicate()[0].strip() for child in children)
    assert said == ["1", "locked", "locked", "locked"]


def test_an_overtaken_launch_learns_that_it_may_commit_nothing(tmp_path: Path) -> None:
    old = take(tmp_path)
    old.check()
    hold(tmp_path, Holder.here(), epoch=2)
    with pytest.raises(StaleEpochError, match="launch 2 has taken over from launch 1"):
        old.check()


def test_a_released_sweep_leaves_only_its_epoch_and_the_mark_of_its_end(tmp_path: Path) -> None:
    lock = take(tmp_path)
    lock.beat(1, ["a"], used={})
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.json", "000001.released"]


def test_a_start_is_not_told_by_the_wall_clock_which_may_be_set_forward() -> None:
    # Seconds since the epoch are 300 times as many as those of any boot.
    assert 0 < Holder.here().started <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_launch_that_leaves_while_another_host_waits_for_its_beat_is_followed_at_once(
    tmp_path: Path,
) -> None:
    hold(tmp_path, replace(Holder.here(), host="elsewhere"))
    waited: list[float] = []

    def leave(seconds: float) -> None:
        waited.append(seconds)
        Lock(tmp_path, 1).release()

    assert take(tmp_path, sleep=leave).epoch == 2
    assert len(waited) == 1


def test_one_change_of_the_beat_is_life_even_at_the_end_of_the_minute(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), host="elsewhere"))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) == 60:
            (tmp_path / "000001.beat").write_text("1")

    with pytest.raises(SweepLockedError):
        take(tmp_path, sleep=sleep)


@pytest.mark.parametrize("content", ["", '{"host": "elsew', "[1]", '{"pid": 1}', "\0\0"])
def test_a_damaged_lock_counts_as_another_hosts_and_is_taken_over_after_a_silent_minute(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "000001.json").write_text(content)
    (tmp_path / "000001.beat").write_text("7")
    waited: list[float] = []
    told: list[str] = []
    assert take(tmp_path, sleep=waited.append, tell=told.append).epoch == 2
    assert sum(waited) == 60
    assert told == [
        "launch 1 (the file of its lock is damaged): waiting up to 60 seconds for a sign that it "
        "still lives"
    ]


def test_a_launch_that_was_quicker_while_this_one_looked_keeps_the_sweep(tmp_path: Path) -> None:
    hold(tmp_path, replace(Holder.here(), host="elsewhere"))

    def another_takes_over(seconds: float) -> None:
        if not (tmp_path / "000002.json").exists():
            hold(tmp_path, replace(Holder.here(), host="third"), epoch=2)

    with pytest.raises(SweepLockedError, match="another launch took this sweep just now"):
        take(tmp_path, sleep=another_takes_over)
    assert newest_epoch(tmp_path) == 2


def test_files_that_are_no_locks_are_no_epochs(tmp_path: Path) -> None:
    for name in ("000007.drain", "000008.beat", ".000009.json.12-ab.tmp", "10.json"):
        (tmp_path / name).touch()
    assert take(tmp_path).epoch == 1


def test_whoever_takes_a_sweep_beats_from_then_on_until_it_is_told_that_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.01)
    sweep = Store(tmp_path / "sweep")
    sweep.create({})
    beat = sweep.locks_folder / "000001.beat"
    # The grid is for a sweep that is not there yet.
    with launching._held(sweep, cast("Grid", None), Console(quiet=True)) as (held, stop_beating):
        until = time.monotonic() + 60
        while not (beat.exists() and json.loads(beat.read_text())["count"] > 2):
            assert time.monotonic() < until, "a launch that prepares says nothing"
            time.sleep(0.01)
        stop_beating()
        last = beat.read_text()
        time.sleep(0.1)
        assert beat.read_text() == last
    assert is_released(sweep.locks_folder, held.epoch)
