"""Every fault that a sweep must survive, injected for real."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from fault_table import fault
from toy import GRID, SECONDS, Toy, wait_for

from kdsweep.results.store import Store

slow = pytest.mark.slow

LAUNCH, DRIVER, ACTOR, LANE = "toy_lane.py", "kdsweep.sweep.driver", "ray::LaneTra", "-m toy_lane"
SLOWLY = {"TOY_SECONDS": "0.2"}
KILLED = -signal.SIGKILL
IN_ORDER = "checkpoints, leaves in order, resumes where it was"
LOSS = """def squares(student, teacher, token_mask):
    return ((student - teacher) ** 2).mean()
"""
WITH_LOSS = [
    "hard_labels",
    ["hard_labels", {"kind": "plugin", "loss": "my_loss.squares", "reads": "logits"}],
]
MOST_SECONDS = 20.0
"""About as long as a launch takes in which trials go slowly."""


def kill(toy: Toy, word: str, number: signal.Signals = signal.SIGKILL) -> psutil.Process:
    """Send a signal to one process of the sweep, once there is one."""
    found: list[psutil.Process] = []
    # Ray renames its processes all the time.
    wait_for(lambda: bool(found.extend(toy.processes(word=word)) or found))
    found[0].send_signal(number)
    return found[0]


@slow
@fault(1, "SIGKILL at random moments", "nothing lost, nothing repeated, the same results")
def test_kills_at_random_moments(toy: Toy, reference: pd.DataFrame, kills: int) -> None:
    moments = random.Random(0)
    toy.write_grid(retries={"signal": kills})
    targets = cycle((LAUNCH, DRIVER, LANE))
    done, target = 0, next(targets)
    while done < kills:
        shutil.rmtree(toy.store, ignore_errors=True)
        before: Mapping[str, Any] = {}
        words = ("launch", "grid.yaml")
        while True:
            launch = toy.start(*words, "--quiet", **SLOWLY)
            while is_running_after(launch, moments.uniform(0, MOST_SECONDS)):
                before = toy.completed()
                # There may be none at this very moment; the next moment comes.
                for process in toy.processes(word=target)[:1]:
                    process.kill()
                    done, target = done + 1, next(targets)
                    if process.pid == launch.pid:
                        launch.wait()
            assert launch.returncode in (0, KILLED), toy.said
            assert before.items() <= toy.completed().items()
            if launch.returncode == 0:
                break
            words = ("resume", str(toy.store))
        toy.check(reference, before)


def is_running_after(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether it still runs then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def start_and_hold(toy: Toy, id: str, *points: str, **variables: str) -> "subprocess.Popen[str]":
    """Launch with one lane, and hold it still in the middle of a trial, this once."""
    held = toy.folder / "held"
    points = (f"checkpoint=hang:{id}:{held}", *points)
    words = ("launch", "grid.yaml", "--max-concurrent", "1")
    launch = toy.start(*words, KDSWEEP_FAILPOINT=" ".join(points), **variables)
    wait_for(held.exists)
    return launch


@slow
@fault(3, "SIGKILL of the process that supervises a lane", "tried again, nobody else notices")
def test_an_actor_is_killed(toy: Toy, reference: pd.DataFrame) -> None:
    launch = start_and_hold(toy, reference.index[5])
    before = toy.completed()
    kill(toy, ACTOR)
    assert launch.wait() == 0, toy.said
    toy.check(reference, before)
    assert toy.failures() == ["worker_lost"]


@slow
def test_a_lane_that_does_not_start_is_tried_again_and_says_why(
    toy: Toy, reference: pd.DataFrame
) -> None:
    once = f"lane=raise:{reference.index[5]}:{toy.folder / 'once'}"
    launch = toy.start("launch", "grid.yaml", KDSWEEP_FAILPOINT=once)
    assert launch.wait() == 0, toy.said
    toy.check(reference, {})
    [failed] = [each for each in Store(toy.store).read_attempts() if each.status == "failed"]
    assert failed.failure_class == "worker_lost"
    assert "cannot serve its lane: RuntimeError: failpoint lane" in (failed.error or "")


@fault(1, "SIGKILL of the driver of Ray", "another one takes over")
def test_the_driver_is_killed(toy: Toy, reference: pd.DataFrame) -> None:
    launch = start_and_hold(toy, reference.index[5])
    before = toy.completed()
    kill(toy, DRIVER)
    assert launch.wait() == 0, toy.said
    assert "another one takes over" in toy.said
    toy.check(reference, before)
    assert toy.failures() == ["worker_lost"]


@slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@fault(4, "SIGKILL or SIGSEGV of a lane", "class `signal`, tried again")
def test_a_lane_is_killed(toy: Toy, reference: pd.DataFrame, number: signal.Signals) -> None:
    launch = start_and_hold(toy, reference.index[5])
    before = toy.completed()
    kill(toy, LANE, number)
    assert launch.wait() == 0, toy.said
    toy.check(reference, before)
    assert toy.failures() == ["signal"]


@slow
@fault(2, "SIGKILL in a commit", "the row is whole or absent, and the trial is tried again")
def test_a_commit_is_killed(toy: Toy, reference: pd.DataFrame) -> None:
    point = f"commit=kill:{reference.index[5]}:{toy.folder / 'once'}"
    assert toy.launch(KDSWEEP_FAILPOINT=point) == 0, toy.said
    toy.check(reference, {})
    assert toy.failures() == ["signal"]


@slow
@fault(11, "Tune's own files are removed in mid-sweep", "no effect")
def test_tunes_files_are_removed(toy: Toy, reference: pd.DataFrame) -> None:
    # Names of sockets have a limit, which pytest's folders are beyond.
    with tempfile.TemporaryDirectory(prefix="kdf", dir="/tmp") as short:
        launch = start_and_hold(toy, reference.index[5], TMPDIR=short)
        before = toy.completed()
        (scratch,) = Path(short).glob("kdsweep-tune-*")
        shutil.rmtree(scratch)
        kill(toy, LANE)
        assert launch.wait() == 0, toy.said
    toy.check(reference, before)


@slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
@pytest.mark.parametrize("shift", ["-1d", "+1d"])
@fault(12, "the clock jumps by a day between launch and resume", "no effect")
def test_the_clock_jumps(toy: Toy, reference: pd.DataFrame, shift: str) -> None:
    first = start_and_hold(toy, reference.index[5])
    first.kill()
    first.wait()
    before = toy.completed()
    words = ("resume", toy.store, "--quiet")
    assert toy.run(*words, before=("faketime", "-f", shift)) == 0, toy.said
    toy.check(reference, before)


@slow
@fault(13, "two launches at once", "the second exits 73 and says who holds the sweep")
def test_two_launches(toy: Toy, reference: pd.DataFrame) -> None:
    first = start_and_hold(toy, reference.index[5])
    before = toy.completed()
    assert toy.launch() == 73
    assert f"pid {first.pid}" in toy.said
    kill(toy, LANE)
    assert first.wait() == 0
    toy.check(reference, before)


@slow
@fault(14, "the holder of the lock is killed", "taken over at once on the same host")
def test_a_stale_lock(toy: Toy, reference: pd.DataFrame) -> None:
    first = start_and_hold(toy, reference.index[5])
    before = toy.completed()
    first.kill()
    first.wait()
    toy.finish(reference, before)


@slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=fault(16, "one Ctrl-C", IN_ORDER)),
        pytest.param(signal.SIGTERM, 75, marks=fault(18, "SIGTERM", IN_ORDER)),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_one_signal(toy: Toy, reference: pd.DataFrame, number: signal.Signals, code: int) -> None:
    launch = toy.start("launch", "grid.yaml", "--max-concurrent", "2", TOY_SECONDS="2")
    toy.wait_for_trials(2)
    launch.send_signal(number)
    assert launch.wait() == code, toy.said
    assert "kdsweep resume" in toy.said
    wait_for(lambda: not toy.processes(), seconds=10)
    toy.finish(reference, toy.completed())


@slow
@fault(17, "two Ctrl-C", "ends at once, nothing lost")
def test_two_signals(toy: Toy, reference: pd.DataFrame) -> None:
    launch = toy.start("launch", "grid.yaml", TOY_SECONDS="30")
    wait_for(lambda: bool(toy.processes(word=LANE)))
    wait_for(lambda: bool(list(toy.store.glob("work/*/*/log.txt"))))
    launch.send_signal(signal.SIGINT)
    wait_for(lambda: "a second Ctrl-C ends it at once" in toy.said)
    launch.send_signal(signal.SIGINT)
    assert launch.wait() == 130, toy.said
    assert not toy.processes()
    toy.finish(reference, toy.completed())


@slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another host")
@fault(15, "a launch that was taken for dead wakes up", "it commits nothing and leaves")
def test_a_zombie_wakes(toy: Toy, reference: pd.DataFrame) -> None:
    zombie = start_and_hold(toy, reference.index[5])
    asleep = toy.processes()
    for process in asleep:
        process.suspend()
    before = toy.completed()
    # The other host waits for a minute until it believes that nobody lives here.
    other = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh")
    assert toy.run("resume", toy.store, "--quiet", before=other) == 0, toy.said
    pd.testing.assert_frame_equal(toy.frame(), reference, check_exact=True)
    after = toy.completed()
    for process in asleep:
        process.resume()
    assert zombie.wait(SECONDS) == 75
    assert toy.completed() == after
    toy.check(reference, before)


@slow
@fault(25, "a huge grid", "refused before anything is spent")
def test_a_huge_grid(toy: Toy) -> None:
    toy.write_grid(name="x" * 2_000_000)
    assert toy.launch() == 2
    assert not toy.store.exists()


@slow
@fault(28, "the grid is edited between launches", "completed trials leave only if one agrees")
def test_the_grid_is_edited(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch() == 0, toy.said
    before = toy.completed()
    axes = dict(GRID["axes"])
    toy.write_grid(axes={**axes, "training.learning_rate": [1e-4, 4e-4]})
    assert toy.launch() == 2
    assert "--yes" in toy.said
    assert toy.run("launch", "grid.yaml", "--quiet", "--yes") == 0, toy.said
    assert len(toy.frame()) == 8
    assert before.items() <= toy.completed().items()
    toy.write_grid()
    assert toy.run("launch", "grid.yaml", "--quiet", "--yes") == 0, toy.said
    toy.check(reference, before)
    # What came back was not trained again.
    assert all(toy.attempts(id) == ["completed"] for id in before)


@slow
@fault(29, "packages change between launch and resume", "told; nothing is trained again")
def test_packages_change(toy: Toy, reference: pd.DataFrame) -> None:
    first = start_and_hold(toy, reference.index[5])
    first.kill()
    first.wait()
    before = toy.completed()
    installed = toy.folder / "other" / "datasets-0.1.dist-info" / "METADATA"
    installed.parent.mkdir(parents=True)
    installed.write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 0.1\n")
    assert toy.resume(PYTHONPATH=str(toy.folder / "other")) == 0, toy.said
    assert f"warning: datasets is 0.1 and was {version('datasets')}" in toy.said
    toy.check(reference, before)


@slow
@fault(29, "code that the grid brings is edited", "refused, then what it acts on is trained anew")
def test_code_of_the_grid_changes(toy: Toy) -> None:
    code = toy.folder / "my_loss.py"
    code.write_text(LOSS)
    toy.write_grid(plugins=["my_loss.py"], axes={**GRID["axes"], "knowledge": WITH_LOSS})
    launch = ("launch", "grid.yaml", "--quiet", "--allow-plugins")
    assert toy.run(*launch) == 0, toy.said
    first, before = toy.frame(), toy.completed()
    code.write_text(LOSS + "\n")
    assert toy.resume("--allow-plugins") == 2
    assert f"{code}: the file has changed since the plan was made" in toy.said
    assert toy.run(*launch) == 2
    assert "--yes" in toy.said
    assert toy.run(*launch, "--yes") == 0, toy.said
    # Six of the twelve learn by it; nothing else is new, and nothing is lost.
    assert set(toy.frame()["status"]) == {"completed"}
    assert len(first.index.intersection(toy.frame().index)) == 6
    assert before.items() <= toy.completed().items()
    assert len(toy.completed()) == len(before) + 6
    code.write_text(LOSS)
    assert toy.run(*launch, "--yes") == 0, toy.said
    toy.check(first, before)


@slow
@fault(19, "a loss that is not finite", "class `nan`, tried once, sorted last")
def test_not_a_number(toy: Toy, reference: pd.DataFrame) -> None:
    id = reference.index[5]
    assert toy.launch(TOY_FAULT=f"nan:{id}") == 3, toy.said
    assert toy.failures() == ["nan"]
    assert toy.run("results", toy.store, "best", "-n", "12", "--json") == 0
    before = toy.completed()
    toy.finish(reference, before)


@slow
@fault(20, "every trial raises the same", "stopped after a few, with the last lines of one")
def test_every_trial_raises(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch(TOY_FAULT="raise:") == 3, toy.said
    assert "nothing is what it seems" in toy.said
    tried = {id for id in reference.index if toy.attempts(id)}
    assert len(tried) < len(reference)
    toy.finish(reference, toy.completed())


@slow
@fault(22, "a trial takes more host memory than it asked for", "class `out_of_memory`")
def test_host_memory(toy: Toy, reference: pd.DataFrame) -> None:
    toy.write_grid(retries={"out_of_memory": 0})
    assert toy.launch(TOY_FAULT=f"host_memory:{reference.index[5]}") == 3, toy.said
    assert toy.failures() == ["out_of_memory"]
    toy.finish(reference, toy.completed())


@slow
@fault(22, "Ray's own memory killer strikes whatever runs", "class `worker_lost`, nothing lost")
def test_rays_memory_killer(toy: Toy, reference: pd.DataFrame) -> None:
    toy.write_grid(retries={"worker_lost": 1})
    launch = start_and_hold(toy, reference.index[5])
    launch.kill()
    launch.wait()
    before = toy.completed()
    left = [id for id in reference.index if id not in before]
    # Every host has more than this in use: each actor is killed as soon as Ray looks.
    killed = toy.run(
        *("resume", toy.store, "--quiet", "--trial", left[0]), RAY_memory_usage_threshold="0.0001"
    )
    assert killed == 3, toy.said
    assert toy.failures() == ["worker_lost", "worker_lost"]
    toy.finish(reference, before)


@slow
@pytest.mark.parametrize("place", ["ask", "tell"])
@fault(21, "what Ray Tune calls of ours raises", "another driver takes over, nobody else notices")
def test_a_hook_raises(toy: Toy, reference: pd.DataFrame, place: str) -> None:
    # Nothing raises as long as there is this file.
    calm = toy.folder / "calm"
    calm.touch()
    launch = start_and_hold(toy, reference.index[5], f"{place}=raise::{calm}")
    before = toy.completed()
    calm.unlink()
    assert launch.wait() == 0, toy.said
    assert f"failpoint {place} of" in toy.said
    assert "another one takes over" in toy.said
    toy.check(reference, before)
    assert toy.failures() == ["worker_lost"]


@slow
@fault(23, "out of memory on a GPU", "class `out_of_memory`")
def test_gpu_memory(toy: Toy, reference: pd.DataFrame) -> None:
    toy.write_grid(retries={"out_of_memory": 0})
    assert toy.launch(TOY_FAULT=f"gpu_memory:{reference.index[5]}") == 3, toy.said
    assert toy.failures() == ["out_of_memory"]
    toy.finish(reference, toy.completed())


@slow
@fault(24, "a trial hangs, with a child that ignores SIGTERM", "class `timeout`, and all is ended")
def test_a_hang(toy: Toy, reference: pd.DataFrame) -> None:
    # Long enough for any other trial, however busy the machine is.
    toy.write_grid(retries={"timeout": 0}, resources={"memory_gb": 1.0, "timeout_minutes": 1})
    launch = toy.start("launch", "grid.yaml", TOY_FAULT=f"grandchild:{reference.index[5]}")
    wait_for(lambda: bool(toy.processes(word="time.sleep")))
    assert launch.wait() == 3, toy.said
    assert toy.failures() == ["timeout"]
    assert not toy.processes(word="time.sleep")
    toy.write_grid()
    toy.finish(reference, toy.completed())


@slow
@fault(27, "the file system hiccups (EIO, ESTALE)", "asked again, nobody notices")
def test_hiccups(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch(TOY_FAULT=f"hiccup:{reference.index[5]}") == 0, toy.said
    assert toy.failures() == []
    toy.check(reference, {})


@slow
@fault(30, "lanes cannot even be started", "the sweep stops before thousands fail")
def test_lanes_do_not_start(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch(TOY_FAULT="import") == 3, toy.said
    assert set(toy.failures()) == {"environment"}
    assert len(toy.failures()) < 5
    toy.finish(reference, {})


@slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@fault(8, "the disk is full in mid-sweep", "exit 74, nothing lost, completes once there is room")
def test_a_full_disk(toy: Toy, reference: pd.DataFrame) -> None:
    disk = toy.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)
    try:
        launch = toy.start("launch", "grid.yaml", "--max-concurrent", "2", TOY_SECONDS="2")
        toy.wait_for_trials(2)
        ballast = disk / "ballast"
        fill(ballast)
        assert launch.wait(SECONDS) == 74, toy.said
        before = toy.completed()
        ballast.unlink()
        toy.finish(reference, before)
    finally:
        wait_for(lambda: not toy.processes())
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@slow
@fault(
    9, "parts are cut, emptied, overwritten", "named and left out; only what they held is redone"
)
def test_damaged_parts(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch() == 0, toy.said
    before = dict(toy.completed())
    parts = {id: toy.store / f"attempts/{id}.1-1.parquet" for id in reference.index}
    cut, emptied, overwritten, *others = parts.values()
    cut.write_bytes(cut.read_bytes()[:-100])
    emptied.write_bytes(b"")
    overwritten.write_bytes(b"PAR1 is how it begins")
    assert toy.run("results", toy.store, "table", "--json") == 0
    for part in (cut, emptied, overwritten):
        assert f"attempts/{part.name}: " in toy.said
    for damaged in (cut, emptied, overwritten):
        del before[damaged.name.partition(".")[0]]
    assert toy.completed() == before
    # What is damaged moves aside; nothing that was whole is touched.
    assert toy.run("doctor", toy.store, "--repair") == 0, toy.said
    assert {path.name for path in (toy.store / "quarantine" / "attempts").iterdir()} == {
        part.name for part in (cut, emptied, overwritten)
    }
    assert all(part.exists() for part in others)
    toy.finish(reference, before)


@slow
@fault(
    10, "a byte of the plan is flipped", "`resume` names it; `launch` plans anew, trains nothing"
)
def test_a_flipped_byte(toy: Toy, reference: pd.DataFrame) -> None:
    assert toy.launch() == 0, toy.said
    before = toy.completed()
    (part,) = toy.store.glob("plan/*.parquet")
    flip(part)
    assert toy.resume() == 2
    assert f"plan/{part.name}: is damaged" in toy.said
    assert toy.launch() == 0, toy.said
    assert toy.run("doctor", toy.store, "--repair") == 0, toy.said
    assert (toy.store / "quarantine" / "plan" / part.name).exists()
    toy.finish(reference, before)


def flip(part: Path) -> None:
    """Change a byte amidst the first column of a Parquet file."""
    chunk = pq.ParquetFile(part).metadata.row_group(0).column(0)
    content = bytearray(part.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(content)
