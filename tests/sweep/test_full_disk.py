"""A disk that is full ends the launch in order, loses nothing, and resume completes once it is not.

On a small file system of the test's own, where mounting one is permitted.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.results.store import Store
from kdsweep.sweep.lane_process import LaneProcess
from kdsweep.sweep.work import Work

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
AXES = {
    "knowledge": ["hard_labels", ["hard_labels", "soft_logits"]],
    "shape": [{"layers": 1, "width": 16, "heads": 2}],
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=32m", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, but: int) -> Path:
    """Leave so many bytes of a disk; the file that takes the rest is returned."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - but)
    return filler


def test_a_disk_that_fills_up_ends_the_launch_with_74_and_resume_completes(
    write_grid: WriteGrid,
    kdsweep: Kdsweep,
    disk: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = disk / "sweep"
    grid = write_grid(axes=AXES, retries=0)
    _, second = json.loads(kdsweep("plan", grid, "--json").stdout)["ids"]
    with monkeypatch.context() as broken:
        broken.setenv("KDSWEEP_FAILPOINT", f"row=raise:{second}")
        assert kdsweep("launch", grid, "--store", store, *SERIAL).returncode == 3
    before = results.load(store).trials
    filler = fill(disk, but=120_000)
    for verb in (("launch", grid, "--store", store), ("resume", store)):
        said = kdsweep(*verb, *SERIAL)
        assert said.returncode == 74
        assert "the sweep needs about" in said.stderr
    filler.unlink()
    # Somebody else takes the room once the sweep has begun: too little is left for a checkpoint.
    begun = len(list(store.glob("locks/*.json")))
    words = [sys.executable, "-m", "kdsweep.sweep", "resume", str(store), *SERIAL]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as resumed:
        while len(list(store.glob("locks/*.json"))) == begun:
            assert resumed.poll() is None
            time.sleep(0.01)
        filler = fill(disk, but=120_000)
        _, told = resumed.communicate()
    assert resumed.returncode == 74, told
    assert "No space left on device" in told
    assert f"kdsweep resume {store}" in told
    trials = results.load(store).trials
    assert trials["status"].tolist() == ["completed", "failed"]
    filler.unlink()
    said = kdsweep("resume", store, *SERIAL)
    assert said.returncode == 0, said.stderr
    trials = results.load(store).trials
    assert trials["status"].tolist() == ["completed", "completed"]
    # The trial that failed had cells that no completed one has.
    numbers = before.iloc[:1].dropna(axis="columns").select_dtypes("number").columns
    first, was = trials[numbers].iloc[:1], before[numbers].iloc[:1]
    pd.testing.assert_frame_equal(first, was, check_exact=True, check_dtype=False)
    assert not list(store.rglob(".*"))


def test_a_lost_lane_whose_row_finds_no_room_ends_its_work_as_unwritable(
    write_grid: WriteGrid, prepare: Callable[..., Work], disk: Path, tmp_path: Path
) -> None:
    work = prepare(write_grid(axes=AXES), disk / "sweep")
    dies = tmp_path / "dies.py"
    dies.write_text(f"import os; input(); os.kill(os.getpid(), {signal.SIGKILL:d})")
    lane = LaneProcess((sys.executable, str(dies)))
    filler = fill(disk, but=0)
    lane.begin(work)
    while (outcome := lane.poll(1.0)) is None:
        pass
    assert outcome.status == "unwritable"
    assert os.strerror(errno.ENOSPC) in str(outcome.error)
    filler.unlink()
    assert Store(work.store).read_attempts() == ()
