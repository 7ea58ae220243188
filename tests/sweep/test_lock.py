"""One launch at a time."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kdsweep.sweep.errors import StaleEpochError, SweepLockedError
from kdsweep.sweep.lock import Holder, newest_epoch, take


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
    lock.beat(1, ["a"])
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.json", "000001.released"]
